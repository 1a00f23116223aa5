"""The smallest size within a bound: bisection, what scores say, and whole runs on a tiny model."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets
from transformers import AutoModelForCausalLM

from darwinlm.recipe import load_recipe
from darwinlm.report.curve_figures import CurveFigures
from darwinlm.runs.bound import Judge, Within, parse_within
from darwinlm.runs.smallest import smallest
from darwinlm.runs.within import _short
from darwinlm.runtime.errors import MeasureError, RecipeError

pytestmark = pytest.mark.usefixtures("own_cache")


@dataclass
class Size:
    keep: float
    holds: bool


@pytest.mark.parametrize("least", [0.3, 0.325, 0.5, 0.625, 0.75, 0.95, 0.975])
def test_bisection_finds_the_smallest_size_in_few_steps(least):
    tried = []

    def measure(keep):
        tried.append(keep)
        return Size(keep, keep >= least - 1e-9)

    found = smallest(measure, lambda first, second: True)
    assert found.passing is not None
    assert found.passing[0] == pytest.approx(least)
    assert found.failing is None or found.failing[0] == pytest.approx(least - 0.025)
    assert len(tried) == len(set(tried)) <= 5


def test_bisection_ends_where_sizes_are_alike():
    found = smallest(lambda keep: Size(keep, keep > 0.7), lambda first, second: first.keep - second.keep > 0.1)
    assert found.alike
    assert found.passing[0] - found.failing[0] <= 0.1
    assert found.passing[0] > 0.7 >= found.failing[0]


def test_no_size_and_sizes_that_cannot_be_made():
    assert smallest(lambda keep: Size(keep, False), lambda first, second: True).passing is None
    found = smallest(lambda keep: Size(keep, True) if keep > 0.5 else None, lambda first, second: False)
    assert found.passing[0] == pytest.approx(0.525)
    assert not found.alike


@pytest.mark.parametrize(
    ("text", "value", "nats"),
    [("2%", 0.02, False), ("0.02", 0.02, False), ("0.02 nats", 0.02, True), ("1nat", 1, True)],
)
def test_bounds_are_read(text, value, nats):
    within = parse_within(text)
    assert (within.value, within.nats) == (pytest.approx(value), nats)


@pytest.mark.parametrize("text", ["", "2", "0", "-2%", "many", "x nats", "0 nats", "nan nats", "60%"])
def test_wrong_bounds(text):
    with pytest.raises(RecipeError, match=r"--within .*: give the share of the dense model's score that may be lost"):
        parse_within(text)


def test_every_measure_must_hold():
    dense = {"a": [1.0] * 10, "b": [1.0] * 10}
    judge = Judge(Within(0.1, False, "10%"), dense)
    assert judge.holds({"a": [1.0] * 9 + [0.0], "b": [1.0] * 10})
    assert not judge.holds({"a": [1.0] * 10, "b": [1.0] * 8 + [0.0] * 2})
    assert judge.worst == {"a": pytest.approx(0.9), "b": pytest.approx(0.9)}
    assert Judge(None, dense).holds(dense) is None
    nats = Judge(Within(0.1, True, "0.1 nats"), {"KL": [0.0] * 4})
    assert nats.holds({"KL": [0.05, 0.15, 0.1, 0.1]})
    assert not nats.holds({"KL": [0.2] * 4})


def test_a_dense_model_that_scores_nothing():
    with pytest.raises(MeasureError, match=r"a: the dense model scores 0\.0 %, so no size can keep a share of it"):
        Judge(Within(0.1, False, "10%"), {"a": [0.0, 0.0]})


def test_few_items_tell_nothing_apart_and_say_how_many_would():
    judge = Judge(Within(0.02, False, "2%"), {"a": [1.0] * 10})
    first, second = {"a": [1.0] * 9 + [0.0]}, {"a": [1.0] * 8 + [0.0] * 2}
    assert not judge.tells_apart(first, second)
    assert judge.needed(first, second) > 50
    assert judge.needed(first, first) is None
    many = [1.0] * 900 + [0.0] * 100
    assert judge.tells_apart({"a": many}, {"a": [1.0] * 700 + [0.0] * 300})
    (remark,) = judge.remarks(first)
    assert remark.startswith("a: 10 items can't show a loss of 2 %; about ")


def test_a_size_that_is_tried_takes_no_more_than_the_preset_quick():
    quick = load_recipe(None, (), {"preset": "quick"})
    short = _short(load_recipe(None, ("recovery.tokens=4096",), {"budget.keep": 0.5}), 0.75)
    assert short.budget.bound.value == 0.75
    assert (short.search.generations, short.search.rounds) == (quick.search.generations, quick.search.rounds)
    assert (short.refit.tokens, short.recovery.tokens) == (quick.refit.tokens, 0)
    few = load_recipe(None, ("search.generations=1", "search.rounds=[{tokens: 64, survivors: 1}]", "refit.tokens=64"))
    less = _short(few, 0.75)
    assert (less.search, less.refit) == (few.search, few.refit)
    two = _short(load_recipe(None, ("search.offspring=2", "search.rounds=[{tokens: 8192, survivors: 1}]")), 0.5)
    assert two.search.rounds[0].survivors < two.search.offspring


def test_a_dense_model_without_a_score_is_named():
    (remark,) = Judge(None, {"a": [0.0] * 4}).remarks({"a": [0.0] * 4})
    assert remark == "a: the dense model scores 0.0 %, so no share of it can be kept."


# ------------------------------------------------------------------------------------------------------- whole runs

FUNCTION = """
import pathlib

def score(model, tokenizer):
    with pathlib.Path(__file__).with_name("calls").open("a") as stream:
        stream.write("x")
    count = sum(parameter.numel() for parameter in model.parameters())
    share = count / {dense}
    return [float(share > place / 400) for place in range(400)]
"""


@pytest.fixture
def function(tmp_path, tiny_llama) -> Path:
    """A function whose score is the share of the parameters."""
    dense = sum(each.numel() for each in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters())
    (tmp_path / "check.py").write_text(FUNCTION.format(dense=dense), encoding="utf-8")
    return tmp_path / "check.py"


@pytest.fixture
def prune(command, tiny_llama, tiny_text_file, tmp_path):
    def run(*options: object, model: object = tiny_llama):
        where = ("--out", tmp_path / "out", "--text", tiny_text_file)
        return command("prune", model, *where, *sets(SETTINGS), *options)

    return run


def curve(folder: Path) -> CurveFigures:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return CurveFigures.model_validate(summary["curve"])


def test_the_smallest_model_within_a_share_of_the_score(prune, function, tmp_path):
    options = ("--within", "20%", "--measure", f"{function}:score")
    said = prune(*options).succeeded().out
    found = curve(tmp_path / "out")
    assert found.within == "20%"
    assert found.items == {"check.py:score": 400}
    scores = {point.keep: point.scores["check.py:score"] for point in found.points}
    for point in found.points:
        if point.kind == "tried":
            assert point.holds == (scores[point.keep].value >= 0.8)
    dense, *_, chosen = found.points
    assert (dense.kind, chosen.kind) == ("dense", "chosen")
    assert dense.scores["check.py:score"].value == 1.0
    tried = [point for point in found.points if point.kind == "tried"]
    assert chosen.keep <= min(point.keep for point in tried if point.holds)
    assert all(point.keep < min(each.keep for each in tried if each.holds) for point in tried if not point.holds)
    assert found.series("check.py:score")["tried"] == [
        (point.keep, scores[point.keep].value, pytest.approx(scores[point.keep].stderr)) for point in tried
    ]
    assert "is the smallest that was found within 20% of the dense model's score" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Which size is safe?" in page
    assert "Which size is safe?" in (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")

    calls = (tmp_path / "calls").read_text()
    assert len(calls) == len(found.points)
    announced = [line for line in said.splitlines() if line.startswith("scores: ")]
    assert announced[0] == "scores: the dense model on check.py:score"
    assert announced[1:] == ["scores: the smaller model on check.py:score"] * (len(calls) - 1)
    again = prune(*options).succeeded().out
    assert (tmp_path / "calls").read_text() == calls, "scores and sizes are reused"
    assert "search: already done, reused" in again
    assert "scores: the" not in again
    prune("--within", "5%", "--measure", f"{function}:score").refused("holds a finished run within 20%: choose another")
    prune("--keep", "50%").refused("holds a finished run with another budget")


def test_the_smallest_model_within_a_kl(prune, command, tmp_path):
    prune("--within", "0.2 nats").succeeded()
    found = curve(tmp_path / "out")
    assert found.nats
    kl = {point.kind: point.scores["KL"].value for point in found.points}
    assert kl["dense"] == 0
    assert kl["chosen"] > 0
    assert all(point.holds == (point.scores["KL"].value <= 0.2) for point in found.points)
    assert "nats" in command("show", tmp_path / "out").succeeded().out


def test_a_fault_in_the_middle_loses_nothing(prune, function, tmp_path):
    text = function.read_text(encoding="utf-8")
    function.write_text(text.replace("share =", "count != {} and 1 / (count > {})\n    share ="), encoding="utf-8")
    good = text.replace("    share =", "    if count < 10:\n        return 1 / 0\n    share =")
    function.write_text(good.replace("count < 10", "not pathlib.Path(__file__).with_name('go').exists()"), "utf-8")
    options = ("--within", "20%", "--measure", f"{function}:score")
    ended = prune(*options)
    assert ended.code == 2
    assert "check.py:score: before it returned its scores: ZeroDivisionError" in ended.err
    assert (tmp_path / "out" / "stages" / "text" / "manifest.json").is_file()
    (tmp_path / "go").touch()
    prune(*options).succeeded()


def test_a_given_size_is_measured_and_a_sweep_too(prune, function, tmp_path):
    prune("--keep", "70%,50%", "--measure", f"{function}:score").succeeded()
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Score against size" in page
    found = curve(tmp_path / "out" / "keep-70")
    assert [point.kind for point in found.points] == ["dense", "equal layers", "chosen"]
    assert found.points[-1].holds is None
    assert len((tmp_path / "calls").read_text()) == 5, "the dense model answers once"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--within 2%", "--within 2% is a share of a score: name what scores it, such as --measure sciq"),
        ("--within 2% --keep 50%", "--within finds the size itself, and runs to its report: leave --keep out"),
        ("--within 2% --keep 50%,40%", "leave --keep out"),
        ("--within 2% --until search", "leave --until out"),
        ("--within 2% --time 3m --measure {check}:score", "can't keep a time limit"),
        ("--within 1nats --measure {check}:score", "bounds the KL to the dense model: leave --measure out"),
        ("--within much --measure {check}:score", "--within much: give the share"),
        ("--measure {check}:nothing", "the file has no function 'nothing'"),
        ("--set measure={check}:score", "unknown field 'measure'"),
    ],
)
def test_wrong_options(prune, function, tmp_path, options, said):
    prune(*options.format(check=function).split()).refused(said)
    assert not (tmp_path / "out" / "stages").exists()


def test_no_size_keeps_the_bound(prune, tmp_path):
    (tmp_path / "check.py").write_text(
        "def score(model, tokenizer):\n"
        "    return [1.0] * 20 if type(model).__name__ == 'LlamaForCausalLM' else [0.5] * 20\n",
        encoding="utf-8",
    )
    ended = prune("--within", "2%", "--measure", f"{tmp_path}/check.py:score")
    assert ended.code == 2
    assert "no size below that of the whole model keeps it (" in ended.err
    assert "check.py:score: 20 items can't show a loss of 2 %; about" in ended.err
    assert not (tmp_path / "out" / "model").exists()


def test_a_plan_takes_the_same_line(command, tiny_llama, function):
    said = (
        command("plan", tiny_llama, "--within", "2%", "--measure", f"{function}:score", *sets(SETTINGS)).succeeded().out
    )
    assert "--within 2% finds the size: this is one at 50 %. It tries up to five sizes first" in said
    assert "the time of --measure isn't in this plan" in said


@pytest.mark.parametrize("openings", [0, 0.25])
def test_items_in_the_text_are_refused(prune, tiny_text_file, tmp_path, openings):
    documents = tiny_text_file.read_text(encoding="utf-8").split("\n\n\n")
    rows = [json.dumps({"question": document, "answer": "x", "tokens": 1}) for document in documents]
    (tmp_path / "own.jsonl").write_text("\n".join(rows), encoding="utf-8")
    ended = prune("--keep", "50%", "--measure", tmp_path / "own.jsonl", "--set", f"text.openings={openings}")
    assert ended.code == 2
    assert "items occur in the text of the run" in ended.err


@pytest.mark.parametrize(("option", "name"), [(("--limit", 5), "--limit"), (("--run-code",), "--run-code")])
def test_options_of_a_measure_that_is_not_given(prune, option, name):
    prune("--keep", "60%", *option).refused(f"{name} belongs to --measure, which isn't given")
