"""The notebooks and the examples of docs/extending.md run as they are, with a tiny model, text and settings."""

import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.docs.test_docs import blocks
from tests.tiny.checkpoint import SETTINGS

from darwinlm.recipe import load_recipe
from darwinlm.runtime.artifact import read_json
from darwinlm.steps.budget.kinds import BUDGETS
from darwinlm.steps.database.removal_metrics import REMOVAL_METRICS
from darwinlm.steps.evaluate.metric import METRICS
from darwinlm.steps.recover.recovery_losses import RECOVERY_LOSSES
from darwinlm.steps.search.search_method import SEARCH_METHODS
from lab.comparison.methods import BASELINES

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))
MOST_BYTES = 10_000


def cells(path: Path) -> list[tuple[str, list[str]]]:
    """Source and tags of the cells of code."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["nbformat"] == 4
    code = [cell for cell in tree["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code), "outputs are large and go out of date"
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in code]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tiny_llama, tiny_text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert path.stat().st_size < MOST_BYTES
    tiny = {
        "MODEL": str(tiny_llama),
        "TEXT": str(tiny_text_file),
        "SETTINGS": list(SETTINGS),
        "SIZES": "80%,60%",
        "RECIPE": None,
        "DEVICE": "cpu",
        "TOKENS": 256,
    }
    names: dict[str, object] = {"__name__": "notebook"}
    ran = 0
    for source, tags in cells(path):
        code = compile(source, path.name, "exec")
        if "needs-gpu" in tags and not torch.cuda.is_available():
            continue
        exec(code, names)
        ran += 1
        if "parameters" in tags:
            assert ran == 1, "the first cell has what people change"
            names |= {name: value for name, value in tiny.items() if name in names}
    assert ran >= 2
    printed = capsys.readouterr().out
    for words in SAID[path.stem]:
        assert words in printed
    for page in PAGES[path.stem]:
        assert "<h1>" in (tmp_path / "runs" / page).read_text(encoding="utf-8")


SAID = {
    "quickstart": ("perplexity", "report.html", "block  0"),
    "choosing-a-size": ("keep-80", "keep-60"),
    "one-gpu": ("parameters", "before,"),
}
PAGES = {
    "quickstart": ("quick/report.html",),
    "choosing-a-size": ("sizes/index.html", "sizes/keep-80/report.html"),
    "one-gpu": ("gpu/report.html", "gpu-recovered/report.html"),
}


EXAMPLES = blocks(ROOT / "docs" / "extending.md", "python")


def summary(folder):
    return read_json(Path("runs") / folder / "summary.json")


def keys(folder, step):
    """What the result of a step depends on."""
    return read_json(Path("runs") / folder / "stages" / step / "manifest.json")["key"]


def check_wanda(printed):
    assert float(printed[-1]) > 0
    assert summary("wanda")["recipe"]["database"]["metric"] == {"name": "wanda", "power": 0.5}
    assert not Path("runs/wanda/stages/gradients").exists(), "it needs no gradients"
    assert keys("wanda", "database")["extensions"]["Wanda"]["source"] is not None


def check_multiplications(printed):
    budget = summary("multiplications")["budget"]
    assert budget["unit"] == "multiplications"
    assert 0.85 * 0.6 * budget["dense"] < budget["used"] <= 0.6 * budget["dense"]
    assert summary("multiplications")["recipe"]["budget"]["multiplications"] == {"value": 0.6, "context": 4096}


def check_reverse(printed):
    assert summary("reverse")["steps"]["recover"]["tokens"] == 2048


def check_switches(printed):
    assert "with random level switches" in Path("runs/switches/report.html").read_text(encoding="utf-8")
    assert keys("switches", "search")["extensions"]["Switches"]["source"] is not None


def check_top_five(printed):
    assert 0 < float(printed[-1]) <= 1
    run = Path("runs/top_five")
    for page in ("report.html", "model/README.md"):
        assert "dense token in top five" in (run / page).read_text(encoding="utf-8")


def check_rescaled(printed):
    assert "source" in keys("rescaled", "rescale")["extensions"]["Rescale"]
    assert keys("rescaled", "refit")["inputs"]["stitched"]["step"] == "rescale"
    before, after = (
        {name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()}
        for folder in (Path("runs/rescaled/stages") / step / "model" for step in ("stitch", "rescale"))
    )
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name].float(), after[name].float())]
    assert changed
    assert all(name.endswith("down_proj.weight") for name in changed)


def check_compared(printed):
    kls = {name: float(kl) for name, kl in map(str.split, printed[-4:])}
    assert list(kls) == ["dense", "chance", "magnitude", "darwinlm"]
    assert kls["dense"] < 1e-4 < kls["darwinlm"] < kls["chance"]


CHECKS = [
    check_wanda,
    check_multiplications,
    check_reverse,
    check_switches,
    check_top_five,
    check_rescaled,
    check_compared,
]
REGISTRIES = (REMOVAL_METRICS, BUDGETS, RECOVERY_LOSSES, SEARCH_METHODS, METRICS)


@pytest.fixture
def as_before():
    """Forget what an example registers."""
    names, baselines = [registry.names() for registry in REGISTRIES], dict(BASELINES)
    yield
    for registry, known in zip(REGISTRIES, names, strict=True):
        for name in set(registry) - set(known):
            registry.remove(name)
    BASELINES.clear()
    BASELINES.update(baselines)


def test_every_example_is_checked():
    names = {check.__name__.removeprefix("check_") for check in CHECKS}
    assert all(any(f"runs/{name}" in example for name in names) for example in EXAMPLES)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("check", CHECKS)
def test_an_example_runs(check, tiny_llama, tiny_text_file, tmp_path, monkeypatch, capsys):
    name = check.__name__.removeprefix("check_")
    (example,) = [example for example in EXAMPLES if f'"runs/{name}"' in example]
    overrides = {"model": str(tiny_llama), "text.source": str(tiny_text_file), "budget.keep": "60%"}
    recipe = load_recipe(None, SETTINGS, overrides).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    runpy.run_path(str(script), run_name="example")
    check(capsys.readouterr().out.strip().splitlines())
