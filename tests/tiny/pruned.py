"""Tiny checkpoints of any sizes, layer by layer, with a byte-level tokenizer that engines accept."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.levels import ModuleLevels
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.steps.stitch.stitch import stitch
from tests.tiny.checkpoint import WORDS
from tests.tiny.models import randomised, tiny_config
from tests.tiny.reader import FirstUnits
from tests.tiny.vocabulary import trained_bytes

ENGINE_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
"""Sizes that every quantisation in blocks of 32 fits."""

Row = tuple[int, ...]
"""Query heads, KV heads and MLP channels of one layer, 0 where a sub-layer is gone; then the experts, if some are."""

MIXED: dict[int, Row] = {0: (0, 0, 96), 1: (2, 2, 0), 2: (2, 1, 40)}
SQUARE = {"hidden_size": 128}
DELTA = {"num_hidden_layers": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
GEMMA4: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    **{"global_head_dim": 64, "num_global_key_value_heads": 1, "num_key_value_heads": 2},
}
BESIDE = {"hidden_size_per_layer_input": 0, "moe_intermediate_size": 64}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges, as GPT-2's."""
    return PreTrainedTokenizerFast(
        tokenizer_object=trained_bytes(WORDS, 310),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def pruned_checkpoint(
    folder: Path,
    model_type: str,
    rows: Mapping[int, Row],
    *,
    attention: str = "lattice",
    dtype: torch.dtype = torch.float32,
    tokenizer: Any = None,
    **overrides: Any,
) -> Path:
    """Save the first units of a random model, so many in each layer; layers that `rows` leaves out are whole.

    With `attention="query_head"`, the rows' query heads share all KV heads as they did before.
    """
    with TemporaryDirectory() as whole:
        checkpoint = Checkpoint.open(plain_checkpoint(Path(whole), model_type, **overrides))
        reader = FirstUnits(checkpoint, UnitsSettings(mlp_multiple=8, attention=attention, experts="both"))
        allocation = (level_of(module, rows[module.block]) if module.block in rows else -1 for module in reader.modules)
        levels = (at % len(module.levels) for module, at in zip(reader.modules, allocation, strict=True))
        model = stitch(reader, tuple(levels))
    model.name_or_path = model.config.name_or_path = ""  # the folder is gone
    return _save(model, folder, dtype, tokenizer)


def level_of(module: ModuleLevels, row: Row) -> int:
    """Place of the level with these sizes; -1 for the whole of a module that can't be cut."""
    heads, groups, width, *experts = row
    if not (heads if module.kind == "attention" else width):
        return 0
    if module.kind == "attention":
        fits = [(level.sizes.heads, level.sizes.groups) == (heads, groups) for level in module.levels]
    else:
        wanted = width, *(experts or [module.levels[-1].sizes.experts])
        fits = [(level.sizes.width, level.sizes.experts) == wanted for level in module.levels]
    assert any(fits) or len(module.levels) == 1, f"{module.name} has no level {row}"
    return fits.index(True) if any(fits) else -1


def plain_checkpoint(
    folder: Path, model_type: str, *, dtype: torch.dtype = torch.float32, tokenizer: Any = None, **overrides: Any
) -> Path:
    """Save a random model of equal layers, of the family's own class."""
    config = tiny_config(model_type, **{**ENGINE_SIZES, **overrides})
    vectors = 0.1 if model_type.startswith("gemma4") else 0.2  # whose scales of layers amplify llama.cpp's rounding
    model = randomised(lambda: AutoModelForCausalLM.from_config(config), vectors=vectors)
    return _save(model, folder, dtype, tokenizer)


def any_checkpoint(folder: Path, model_type: str, rows: Mapping[int, Row] | None, **overrides: Any) -> Path:
    if rows is None:
        return plain_checkpoint(folder, model_type, **overrides)
    return pruned_checkpoint(folder, model_type, rows, **overrides)


def _save(model: Any, folder: Path, dtype: torch.dtype, tokenizer: Any) -> Path:
    model.to(dtype).save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    """Logits [1, 9, v] of a saved model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(torch.tensor([[5, 17, 101, 33, 250, 8, 99, 4, 61]])).logits
