"""Every stage reads the weights that transformers reads, however odd a checkpoint is: keeping all changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.damage import edit_config, edit_weights, write_index
from tests.tiny.models import FAMILIES
from transformers import AutoModelForCausalLM

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.stored import SINGLE
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import CheckpointError
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.stitch.stitch import stitch

TOKENS = torch.arange(3, 43).view(2, 20)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@torch.no_grad()
def assert_one_model(folder: Path) -> None:
    """transformers, our loader, and a model with all units kept have the same logits."""
    checkpoint = Checkpoint.open(folder)
    reader = DatabaseReader(folder, checkpoint, UnitsSettings())
    every = tuple(
        next(place for place, level in enumerate(module.levels) if level.sizes == reader.shapes[module.place].sizes)
        for module in reader.modules
    )
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(TOKENS).logits
    for ours in (checkpoint.load(torch.float32), stitch(reader, every).float()):
        torch.testing.assert_close(ours.eval()(TOKENS).logits, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_every_family(model_type, tiny_folder):
    """Also in bfloat16, with what a family keeps in float32."""
    assert_one_model(folder := tiny_folder(model_type))
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    placed = Checkpoint.open(folder).load(torch.bfloat16)
    assert torch.equal(whole(TOKENS).logits, placed(TOKENS).logits)
    assert placed.generation_config.eos_token_id == whole.generation_config.eos_token_id
    theirs, ours = dict(whole.named_parameters()), dict(placed.named_parameters())
    assert theirs.keys() == ours.keys(), "tied weights stay tied"
    assert not placed.training
    assert not any(parameter.requires_grad for parameter in ours.values())


def _tie(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    edit_config(folder, tie_word_embeddings=True)
    edit_weights(folder, change)


def _split(folder: Path, *, keep_whole: bool) -> None:
    tensors = load_file(folder / SINGLE)
    names = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for shard in set(names.values()):
        save_file({n: tensors[n] for n in names if names[n] == shard}, folder / shard, metadata={"format": "pt"})
    write_index(folder, names)
    if keep_whole:
        edit_weights(folder, lambda others: [tensor.mul_(2) for tensor in others.values()])
    else:
        (folder / SINGLE).unlink()


ODD: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "a head that is the embedding": (
        lambda folder: _tie(folder, lambda t: t.update({HEAD: t[EMBEDDING].clone()})),
        None,
    ),
    "no head": (lambda folder: _tie(folder, lambda t: t.pop(HEAD)), None),
    "another head": (lambda folder: _tie(folder, lambda t: None), "tie_word_embeddings"),
    "a head alone": (lambda folder: _tie(folder, lambda t: t.pop(EMBEDDING)), EMBEDDING),
    "bfloat16": (
        lambda folder: edit_weights(folder, lambda t: t.update({n: v.bfloat16() for n, v in t.items()})),
        None,
    ),
    "mixed types": (lambda folder: edit_weights(folder, lambda t: t.update({HEAD: t[HEAD].half()})), None),
    "shards": (lambda folder: _split(folder, keep_whole=False), None),
    "shards beside other weights": (lambda folder: _split(folder, keep_whole=True), SINGLE),
    "an index of one file": (
        lambda folder: write_index(folder, dict.fromkeys(load_file(folder / SINGLE), SINGLE)),
        None,
    ),
    "buffers of old releases": (
        lambda folder: edit_weights(
            folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
        ),
        None,
    ),
    "NaN in a block": (
        lambda folder: edit_weights(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"][0].fill_(torch.nan)),
        "finite",
    ),
    "the type in words": (lambda folder: edit_config(folder, dtype="bfloat16"), None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_checkpoints(name, model_copy):
    change, refused = ODD[name]
    change(model_copy)
    if refused is None:
        assert_one_model(model_copy)
    else:
        with pytest.raises(CheckpointError, match=refused):
            assert_one_model(model_copy)
