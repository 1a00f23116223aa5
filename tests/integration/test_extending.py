"""The examples of docs/extending.md run as they stand, with a tiny model, text and settings in their recipe."""

from pathlib import Path

import pytest
import yaml
from tests.tiny.checkpoint import SETTINGS
from tests.unit.test_docs import ROOT, blocks

from darwinlm.database.metrics import METRICS
from darwinlm.recipe import load_recipe
from darwinlm.recovery.losses import LOSSES
from darwinlm.runtime.artifact import read_json
from lab.comparison.methods import BASELINES

EXAMPLES = blocks(ROOT / "docs" / "extending.md", "python")


def summary(folder):
    return read_json(Path("runs") / folder / "summary.json")


def check_wanda(printed):
    assert float(printed[-1]) > 0
    assert summary("wanda")["recipe"]["database"]["metric"] == "wanda"
    assert not Path("runs/wanda/stages/gradients").exists(), "it needs no gradients"


def check_multiplications(printed):
    budget = summary("multiplications")["budget"]
    assert budget["unit"] == "multiplications"
    assert 0.85 * 0.6 * budget["dense"] < budget["used"] <= 0.6 * budget["dense"]


def check_reverse(printed):
    assert summary("reverse")["recovery"]["tokens"] == 2048


def check_compared(printed):
    kls = {name: float(kl) for name, kl in map(str.split, printed[-4:])}
    assert list(kls) == ["dense", "chance", "magnitude", "darwinlm"]
    assert kls["dense"] < 1e-4 < kls["darwinlm"] < kls["chance"]


@pytest.mark.parametrize("check", [check_wanda, check_multiplications, check_reverse, check_compared])
def test_an_example_runs(check, tiny_llama, tiny_text_file, tmp_path, monkeypatch, capsys):
    name = check.__name__.removeprefix("check_")
    (example,) = [each for each in EXAMPLES if f'Path("runs/{name}")' in each]
    overrides = {"model": str(tiny_llama), "text.source": str(tiny_text_file), "budget.keep": "60%"}
    recipe = load_recipe(None, SETTINGS, overrides).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    known = [dict(table) for table in (METRICS, LOSSES, BASELINES)]
    try:
        exec(compile(example, "extending.md", "exec"), {"__name__": "extending"})
    finally:
        for table, before in zip((METRICS, LOSSES, BASELINES), known, strict=True):
            table.clear()
            table.update(before)
    check(capsys.readouterr().out.strip().splitlines())
