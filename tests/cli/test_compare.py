"""`darwinlm compare` on a tiny model: budgets met, our own rows the pipeline's, resumed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny.checkpoint import SETTINGS, tiny_text
from tests.tiny.command import Command, command_runner
from transformers import AutoModelForCausalLM

from darwinlm.artifact import read_json
from darwinlm.stages.methods import BASELINES

SETS = tuple(word for setting in SETTINGS for word in ("--set", setting))
SHEARED = ("--set", "baselines.sheared_tokens=1024", "--set", "baselines.sheared_batch_tokens=64")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


def arguments(model: Path, text: Path, folder: Path, *more: object) -> tuple[object, ...]:
    other = folder / "other.txt"
    if not other.exists():
        tiny_text(other, seed=7)
    domain = ("--domain", f"other={other}")
    return ("compare", model, "--text", text, *domain, "--keep", "60%", "--out", folder / "out", *SETS, *SHEARED, *more)


def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "comparison.json").read_text(encoding="utf-8"))


def test_every_method_keeps_the_budget(command: Command, tiny_llama: Path, tiny_text_file: Path, folder: Path) -> None:
    ended = command(*arguments(tiny_llama, tiny_text_file, folder, "--methods", "all"))
    assert ended.code == 0, ended.err
    result = found(folder)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["dense", *BASELINES, "darwinlm", "darwinlm+refit"]
    assert rows["dense"]["texts"]["other"]["kl"] == 0
    for name, row in rows.items():
        assert set(row["texts"]) == {"held out", "other"}
        if name != "dense":
            assert row["block_params"] <= result["budget"]["upper"]
            assert row["block_params"] > 0.7 * result["budget"]["upper"]
            assert row["texts"]["held out"]["kl"] > 0
            assert f"| {row['title']} |" in (folder / "out" / "comparison.md").read_text(encoding="utf-8")
    for name in BASELINES:
        stage = folder / "out" / "stages" / f"method_{name}"
        model = AutoModelForCausalLM.from_pretrained(stage / "model")
        inside = sum(parameter.numel() for parameter in model.model.layers.parameters())
        assert inside == rows[name]["block_params"]

    searched = read_json(folder / "out" / "stages" / "search" / "result.json")
    assert rows["uniform"]["allocation"] == searched["uniform"]
    assert rows["darwinlm"]["allocation"] == searched["allocation"]
    assert rows["darwinlm"]["texts"]["held out"]["kl"] < rows["random"]["texts"]["held out"]["kl"]


def test_finished_methods_are_reused(command: Command, tiny_llama: Path, tiny_text_file: Path, folder: Path) -> None:
    before = found(folder)
    ended = command(*arguments(tiny_llama, tiny_text_file, folder, "--methods", "ziplm,sheared"))
    assert ended.code == 0, ended.err
    done = [line for line in ended.out.splitlines() if line.endswith("done before, reused")]
    assert {line.partition(":")[0] for line in done} >= {"ZipLM", "Sheared-LLaMA-style", "measure ziplm"}
    again = {row["method"]: row for row in found(folder)["rows"]}
    assert list(again) == ["dense", "ziplm", "sheared"]
    for row in before["rows"]:
        if row["method"] in again:
            assert again[row["method"]] == row


def test_variant_of_the_search_is_a_row_of_its_own(
    command: Command, tiny_llama: Path, tiny_text_file: Path, folder: Path
) -> None:
    variant = folder / "paper.yaml"
    variant.write_text(
        "search: {start: uniform, trade: same_kind, screen: false, generations: 2}\nunits: {levels: paper}\n",
        encoding="utf-8",
    )
    options = ("--methods", "darwinlm", "--variant", f"paper={variant}")
    ended = command(*arguments(tiny_llama, tiny_text_file, folder, *options))
    assert ended.code == 0, ended.err
    rows = {row["method"]: row for row in found(folder)["rows"]}
    assert list(rows) == ["dense", "darwinlm", "paper"]
    assert rows["paper"]["title"] == "DarwinLM, paper"
    assert rows["paper"]["block_params"] <= found(folder)["budget"]["upper"]
    assert not (folder / "out" / "variants" / "paper" / "stages" / "text").exists()
    searched = read_json(folder / "out" / "variants" / "paper" / "stages" / "search" / "result.json")
    assert searched["record"]["start"] == "uniform"
    variant.write_text("text: {calibration_tokens: 5}", encoding="utf-8")
    ended = command(*arguments(tiny_llama, tiny_text_file, folder, *options))
    ended.refused("must be a recipe with nothing but search, units, database, refit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variant", "paper"), "--variant takes NAME=SOURCE, not 'paper'"),
        (("--variant", "ziplm=x.yaml"), "--variant names 'ziplm' twice"),
        (("--variant", "paper=nowhere.yaml"), "must be a recipe with nothing but"),
        (("--methods", "zipml"), "there is no method 'zipml': did you mean 'ziplm'"),
        (("--methods", "xyzzy"), "known are uniform, random"),
        (("--methods", ","), "--methods is empty"),
        (("--methods", "ziplm,ziplm"), "--methods names one twice"),
        (("--domain", "books"), "--domain takes NAME=SOURCE, not 'books'"),
        (("--domain", "other=x.txt"), "--domain names 'other' twice"),
        (("--domain", "held out=x.txt"), "--domain names 'held out' twice"),
        (("--suite", "piqa", "--data-dir", "nowhere"), "there is no such folder"),
        (("--methods", "darwinlm+refit", "--set", "refit.enabled=false"), "refit.enabled is false"),
    ],
)
def test_wrong_request(
    options: tuple[str, ...], message: str, command: Command, tiny_llama: Path, tiny_text_file: Path, folder: Path
) -> None:
    command(*arguments(tiny_llama, tiny_text_file, folder, *options)).refused(message)


def test_domain_that_shares_text_is_refused(
    command: Command, tiny_llama: Path, tiny_text_file: Path, folder: Path
) -> None:
    options = ("--methods", "ziplm", "--domain", f"same={tiny_text_file}")
    ended = command(*arguments(tiny_llama, tiny_text_file, folder, *options))
    ended.refused("and same share")
