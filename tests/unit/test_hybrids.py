"""Models with more than attention and MLPs: what is kept, counted, left out and refused."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import edit_weights
from tests.tiny.stages import run_stages

from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import FURTHER, Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.recipe import load_recipe
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import CheckpointError
from darwinlm.search.problem import space_of
from darwinlm.units.space import kept_whole


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("llama", ""),
        ("mixtral", "attention of 4 blocks is kept"),
        ("qwen3_5_text", "linear attention of 2 blocks is kept"),
        ("qwen3_5_moe_text", "attention of 2 blocks and linear attention of 2 blocks are kept"),
        ("gemma4_text", "attention of 2 blocks and per-layer input of 4 blocks are kept"),
        ("lfm2", "short convolution of 2 blocks is kept"),
        ("granitemoehybrid", "state space of 2 blocks is kept"),
        ("gemma4_text_experts", "attention of 4 blocks and MLP beside experts of 4 blocks are kept"),
        (
            "granitemoehybrid_experts",
            "attention of 2 blocks, MLP beside experts of 4 blocks and state space of 2 blocks are kept",
        ),
    ],
)
def test_what_is_never_cut_is_named(tiny_folder: Callable[[str], Path], model_type: str, words: str):
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    recipe = load_recipe(None, ("units.mlp_multiple=8",), {"model": "x", "budget.keep": "50%"})
    space = space_of(recipe, checkpoint, module_shapes(checkpoint))
    assert kept_whole(space, checkpoint.family) == words


@pytest.mark.parametrize(
    ("model_type", "names", "words"),
    [
        ("qwen3_next", ("mtp.fc.weight", "mtp.layers.0.mlp.gate.weight"), "multi-token prediction (2 tensors)"),
        ("deepseek_v3", ("model.layers.4.eh_proj.weight",), "multi-token prediction (1 tensor) is left out"),
        ("llama", (), ""),
    ],
)
def test_multi_token_prediction_is_left_out_and_named(
    tmp_path: Path, make_run: Callable[..., Any], model_type: str, names: tuple[str, ...], words: str
):
    folder = tiny_checkpoint(tmp_path / "model", model_type)
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(2, 2) for name in names}))
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.further) == set(names)
    assert not set(names) & set(checkpoint.tensors)
    console = Console(file=io.StringIO(), width=200, record=True)
    run_stages(make_run(folder, tmp_path / "out", reporter=Reporter(console)), "plan")
    assert words in (said := console.export_text())
    assert words or "multi-token" not in said
    save_model(checkpoint.load(torch.float32), tmp_path / "saved")
    assert not any(read_json(tmp_path / "saved" / "config.json").get(name) for name in FURTHER)


def test_a_block_too_many_that_predicts_nothing_is_refused(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.4.mlp.down_proj.weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match=r"holds the tensor model\.layers\.4\.mlp\.down_proj"):
        Checkpoint.open(folder)
