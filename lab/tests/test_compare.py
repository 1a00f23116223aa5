"""`python -m lab compare` on a tiny model: budgets, rows of the pipeline itself, resuming, and refusals."""

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny.checkpoint import SETTINGS, tiny_text
from tests.tiny.command import Command, sets
from transformers import AutoModelForCausalLM

from darwinlm.runtime.artifact import MANIFEST, read_json
from lab.comparison.entries import everywhere
from lab.comparison.methods import BASELINES

SETS = sets(SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture
def compare(command: Command, tiny_llama: Path, tiny_text_file: Path, folder: Path) -> Command:
    """Compare with tiny settings and a text of another domain: compare("--methods", "all")."""
    other = folder / "other.txt"
    if not other.exists():
        tiny_text(other, seed=7)
    common = ("compare", tiny_llama, "--text", tiny_text_file, "--domain", f"other={other}", "--keep", "60%")
    return lambda *more, out=folder / "out": command(*common, "--out", out, *SETS, *more)


def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "comparison.json").read_text(encoding="utf-8"))


def test_every_method_keeps_the_budget(compare, folder):
    compare("--methods", "all").succeeded()
    result = found(folder)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["dense", *everywhere(), "darwinlm", "darwinlm+refit"]
    assert rows["dense"]["texts"]["other"]["values"]["kl"] == pytest.approx(0, abs=1e-6)
    for name, row in rows.items():
        assert set(row["texts"]) == {"held out", "other"}
        if name != "dense":
            assert row["block_params"] <= result["budget"]["upper"]
            assert row["block_params"] > 0.7 * result["budget"]["upper"]
            assert row["texts"]["held out"]["values"]["kl"] > 0
            assert f"| {row['title']} |" in (folder / "out" / "comparison.md").read_text(encoding="utf-8")
    for name in everywhere():
        stage = folder / "out" / "stages" / f"method_{name}"
        model = AutoModelForCausalLM.from_pretrained(stage / "model")
        inside = sum(parameter.numel() for parameter in model.model.layers.parameters())
        assert inside == rows[name]["block_params"]

    searched = read_json(folder / "out" / "stages" / "search" / "result.json")
    assert rows["uniform"]["allocation"] == searched["uniform"]
    made = [read_json(folder / "out" / "stages" / stage / MANIFEST) for stage in ("gradients", "database")]
    for name in ("ziplm", "darwinlm", "darwinlm+refit"):
        assert rows[name]["database_seconds"] == pytest.approx(sum(each["seconds"] for each in made)) != 0
    assert rows["magnitude"]["database_seconds"] is None
    assert rows["darwinlm"]["allocation"] == searched["allocation"]
    assert rows["darwinlm"]["texts"]["held out"]["values"]["kl"] < rows["random"]["texts"]["held out"]["values"]["kl"]


def test_blocks_of_several_kinds(
    command: Command, tiny_folder: Callable[[str], Path], tiny_text_file: Path, tmp_path: Path
) -> None:
    common = ("--text", tiny_text_file, "--keep", "60%", "--out", tmp_path / "out", *SETS)
    ended = command("compare", tiny_folder("qwen3_5_text"), *common, "--methods", "all").succeeded()
    rows = {row["method"]: row for row in found(tmp_path)["rows"]}
    assert list(rows) == ["dense", *(name for name in everywhere() if name != "shortgpt"), "darwinlm", "darwinlm+refit"]
    assert re.search(r"left out, since .* (is|are) kept: shortgpt", ended.out)
    for name, row in rows.items():
        if name != "dense":
            assert 0 < row["block_params"] <= found(tmp_path)["budget"]["upper"]
            assert row["texts"]["held out"]["values"]["kl"] > 0


def test_rankings_of_experts(
    command: Command, tiny_folder: Callable[[str], Path], tiny_text_file: Path, tmp_path: Path
) -> None:
    common = ("--text", tiny_text_file, "--keep", "70%", "--out", tmp_path / "out", *SETS)
    command("compare", tiny_folder("mixtral"), *common, "--methods", "reap,frequency,reap+refit").succeeded()
    rows = {row["method"]: row for row in found(tmp_path)["rows"]}
    assert list(rows) == ["dense", "reap", "frequency", "reap+refit"]
    assert rows["frequency"]["allocation"] == rows["reap"]["allocation"]
    assert rows["frequency"]["texts"]["held out"]["values"]["kl"] != rows["reap"]["texts"]["held out"]["values"]["kl"]


def test_variant_of_the_search_is_a_row_of_its_own(compare, folder):
    variant = folder / "paper.yaml"
    variant.write_text("search: {method: paper, generations: 2}\ndatabase: {metric: output}\n", encoding="utf-8")
    options = ("--methods", "darwinlm", "--variant", f"paper={variant}")
    compare(*options).succeeded()
    rows = {row["method"]: row for row in found(folder)["rows"]}
    assert list(rows) == ["dense", "darwinlm", "paper"]
    assert rows["paper"]["title"] == "DarwinLM, paper"
    assert rows["paper"]["block_params"] <= found(folder)["budget"]["upper"]
    stages = folder / "out" / "variants" / "paper" / "stages"
    assert not {"text", "gradients"} & {path.name for path in stages.iterdir()}
    assert rows["paper"]["database_seconds"] == read_json(stages / "database" / MANIFEST)["seconds"] != 0
    variant.write_text("text: {calibration_tokens: 5}", encoding="utf-8")
    compare(*options).refused("must be a recipe with nothing but search, units, database, refit, recovery")


def test_every_method_reads_text_with_openings(compare, folder):
    compare("--methods", ",".join(everywhere()), *sets(["text.openings=0.25"]), out=folder / "openings").succeeded()
    record = json.loads((folder / "openings" / "comparison.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in record["rows"]] == ["dense", *everywhere()]


def test_the_readmes_command_gives_the_cells_of_its_table(command, tiny_llama, tiny_text_file, tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    page = (root / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^python -m lab (compare .*)$", page, flags=re.M)
    (table,) = re.findall(r"^\|half of .*?\n\n", page, flags=re.M | re.S)
    places = {"MODEL": tiny_llama, "TEXT": tiny_text(tmp_path / "text.txt", documents=1000)}
    places |= {"web=WEB": f"web={tiny_text_file}", "runs/table": tmp_path / "out"}
    words = [places.get(word, word) for word in shlex.split(line)]
    quick = sets(each for each in SETTINGS if "search" not in each)
    ended = command(*words, *quick, *sets(["search.minutes=0.05", "recovery.tokens=256"])).succeeded()
    assert "searches are limited to 3.0 s\n" in ended.out
    record = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    rows = [row for row in record["rows"] if row["method"] != "dense"]
    cells = [line.strip("|").split("|")[1:] for line in table.strip().splitlines()[2:]]
    assert len(rows) == sum(map(len, cells))
    assert all(set(row["texts"]) == {"held out", "web"} for row in rows)


RECOVERY = (
    "recovery.tokens=256", "recovery.batch_tokens=64",
    "recovery.learning_rate=0.003",
)  # fmt: skip


def test_text_that_is_measured_on_is_not_trained_on(compare, folder):
    """Training on the text of another domain leaves out the measured documents, so there is too little text."""
    few = tiny_text(folder / "few.txt", documents=12, seed=11)
    settings = (*RECOVERY, f"recovery.text={few}", "recovery.epochs=1", "recovery.tokens=4096")
    ended = compare("--methods", "ziplm+recovery", "--domain", f"few={few}", *sets(settings))
    ended.refused("few.txt", "of other purposes")


def test_a_method_beyond_the_budget_is_no_row(compare, tmp_path, monkeypatch):
    def whole(inputs, folder):
        return dataclasses.replace(magnitude.make(inputs, folder), allocation=inputs.plan.space.dense)

    magnitude = BASELINES["magnitude"]
    monkeypatch.setitem(BASELINES, "magnitude", dataclasses.replace(magnitude, make=whole))
    ended = compare("--methods", "magnitude", out=tmp_path / "out")
    ended.refused("magnitude needs", "parameters, more than the budget: please report this")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--variant paper", "--variant takes NAME=SOURCE, not 'paper'"),
        ("--variant paper=nowhere.yaml", "must be a recipe with nothing but"),
        ("--variant a+b=x.yaml", "the name 'a+b' must not contain"),
        ("--methods zipml", "there is no method 'zipml': did you mean 'ziplm'"),
        ("--methods paper", "Write 'search: {method: paper}' into a file, and add --variant paper=FILE"),
        ("--methods ,", "--methods is empty"),
        ("--methods ziplm,ziplm", "--methods names one twice"),
        ("--methods ziplm+rifit", "a method may be followed by +refit, +recovery or +refit+recovery"),
        ("--methods ziplm+recovery", "recovery.tokens is 0: say how many tokens to train on"),
        ("--methods ziplm+recovery --set recovery.tokens=1k --set recovery.batch_tokens=80", "can't share evenly"),
        ("--methods darwinlm+refit --set refit.tokens=0", "refit.tokens is 0"),
        ("--domain other=x.txt", "--domain names 'other' twice"),
        ("--domain held:out=x.txt", "--domain names 'held out' twice"),
        ("--methods ziplm --domain same={text}", "and same share"),
        ("--suite piqa --data-dir nowhere", "there is no such folder"),
    ],
)
def test_wrong_request(options, message, compare, tiny_text_file):
    words = options.format(text=tiny_text_file).split()
    compare(*(word.replace("held:out", "held out") for word in words)).refused(message)
