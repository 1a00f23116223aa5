"""The recipes of the 7B to 14B models end to end, on shrunken random models of the same families.

The code path is the recipe's own; only widths, depth, numbers of tokens and of generations are small.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages
from transformers import AutoModelForCausalLM

from darwinlm.pipeline import open_run
from darwinlm.recipe import Recipe, load_recipe, shipped_recipes
from darwinlm.runs.recovery import recover
from darwinlm.runtime.console import Reporter

SHRUNKEN = {
    "llama2-7b-2.7b": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "llama3.1-8b-4.6b": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2}),
    "qwen2.5-14b-8.4b": ("qwen2", {"num_attention_heads": 10, "num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3-8b-4b": ("qwen3", {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False}),
}
"""Heads in the proportions of the published models."""

SHARES = {"llama2-7b-2.7b": 0.3764, "llama3.1-8b-4.6b": 0.5085, "qwen2.5-14b-8.4b": 0.518, "qwen3-8b-4b": 0.3967}
"""Shares of the block parameters that the published sizes keep."""

WIDTHS = {"hidden_size": 64, "intermediate_size": 320, "head_dim": 8}


def shrunken(name: str) -> dict[str, Any]:
    """A recipe's tree with small numbers of tokens and generations, and narrow units."""
    tree = yaml.safe_load(shipped_recipes()[name].read_text(encoding="utf-8"))
    text = tree["text"]
    text |= {"sequence_length": 16, "calibration_tokens": 1024}
    text |= {"evaluation_tokens": 128}
    tree["compute"] |= {"dtype": "float32", "batch_tokens": 128}
    tree["units"]["mlp_multiple"] = 8
    # The same share of the blocks; what lies outside them is another part of so small a model.
    tree["budget"] = {"keep": SHARES[name.removesuffix("-fast")], "tolerance": 0.1}
    search = tree.setdefault("search", {})
    search |= {"generations": 2}
    search["rounds"] = [
        {**each, "tokens": 16 * (place + 1), **({"training_tokens": 32} if each.get("training_tokens") else {})}
        for place, each in enumerate(search["rounds"])
    ]
    if tree["refit"]["tokens"]:
        tree["refit"]["tokens"] = 512
    tree["recovery"] |= {"batch_tokens": 64}
    return tree


def recipe_for(name: str, model: Path, text: Path) -> Recipe:
    tree = shrunken(name)
    tree["model"] = str(model)
    tree["text"]["source"] = str(text)
    path = model.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_recipe(path)


def model_for(name: str, folder: Path) -> Path:
    model_type, heads = SHRUNKEN[name.removesuffix("-fast")]
    return tiny_checkpoint(folder / "model", model_type, **WIDTHS, **heads)


GROWN = ("llama2-7b-2.7b", "qwen2.5-14b-8.4b-fast")
"""Recipes whose model is trained afterwards: the paper's on text alone, ours by distillation."""


def trained_in_phases(run: Path, text: Path) -> list[int]:
    """Train a run with the bundled recipes of both phases, with small numbers; returns the steps of each."""
    steps = []
    for phase in ("recover-documents", "recover-chats"):
        tree = yaml.safe_load(shipped_recipes()[phase].read_text(encoding="utf-8"))
        tree["compute"] |= {"dtype": "float32", "batch_tokens": 64}
        tree["text"]["sequence_length"] //= 256
        recovery = tree["recovery"]
        scale = 2**21 // 64
        recovery |= {name: recovery[name] // scale for name in ("batch_tokens",)}
        recovery["tokens"] = {"10B": 512, "3B": 192}[recovery["tokens"]]
        recovery["text"] = ",".join(str(text) for _ in recovery["text"].split(","))
        path = run.parent / f"{phase}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        summary = recover(run, run.parent / phase, recipe=path, reporter=Reporter(quiet=True))
        steps.append(summary.recovery.steps)
        run = run.parent / phase
    return steps


@pytest.mark.parametrize("name", [*GROWN, "llama3.1-8b-4.6b", "qwen3-8b-4b-fast"])
def test_recipe_runs_end_to_end(name: str, tiny_text_file: Path, tmp_path: Path) -> None:
    recipe = recipe_for(name, model_for(name, tmp_path), tiny_text_file)
    published = load_recipe(name)
    assert recipe.units.attention == published.units.attention
    assert recipe.units.levels == published.units.levels
    assert len(recipe.search.rounds) == len(published.search.rounds)
    out, reporter = tmp_path / "out", Reporter(quiet=True)
    summary = run_stages(open_run(recipe, out, reporter), "report").report
    models = summary.models
    assert set(models) == {"dense", "uniform", "stitched", *(["refit"] if recipe.refit.tokens else [])}
    kept = summary.budget.block_params / summary.budget.dense_block_params
    assert 0.85 * recipe.budget.keep <= kept <= recipe.budget.keep
    saved = AutoModelForCausalLM.from_pretrained(out / "model")
    assert sum(parameter.numel() for parameter in saved.model.layers.parameters()) == summary.budget.block_params
    if name.endswith("-fast"):
        assert trained_in_phases(out, tiny_text_file) == [8, 3]
    if name not in GROWN:
        return
    searched = (out / "stages" / "search" / "result.json").stat().st_mtime_ns
    grown = run_stages(open_run(load_recipe(recipe, ["recovery.tokens=512"], {}), out, reporter), "report").report
    assert (out / "stages" / "search" / "result.json").stat().st_mtime_ns == searched
    assert grown.models[summary.saved_key].kl == summary.saved.kl
    assert grown.recovery.steps == 8
    assert (grown.saved.kl == summary.saved.kl) == (grown.recovery.kept == "before")
