"""How many questions both models of a run answer, what is shown of it, and what the plan says of it."""

import json

import pytest
from tests.tiny.stages import run_stages

from darwinlm import pipeline
from darwinlm.planning.run_plan import rows_of
from darwinlm.runs import demo_questions
from darwinlm.runs.demo_questions import QUESTIONS, SHOWN, SimpleQuestions, ask
from darwinlm.steps.run_sizes import RunSizes


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Set the answers that count as right to the first questions, and to one that no model can answer."""
    file = tmp_path / "questions.jsonl"

    def set_answers(*answers: str) -> None:
        expected = zip((*SHOWN[:2], "?"), (*answers, "no model says this"), strict=True)
        lines = [{"question": question, "answer": answer, "tokens": 8} for question, answer in expected]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    set_answers("x", "y")
    monkeypatch.setattr(demo_questions, "QUESTIONS", file)
    return set_answers


def test_right_answers_of_both_models_are_counted(make_run, tiny_llama, tmp_path, asked):
    run = make_run(tiny_llama, tmp_path / "out")
    run_stages(run, "report")
    first = ask(run)
    assert [answer.question for answer in first.shown] == list(SHOWN[:2])
    said = [first.answers[0].original, first.answers[1].smaller]
    assert all(said), "both models say something"
    asked(*said)
    again = ask(run)
    assert again.answers[0].original_right
    assert again.answers[1].smaller_right
    assert 1 <= again.original_right <= 2
    assert 1 <= again.smaller_right <= 2
    assert not again.answers[2].original_right
    assert not again.answers[2].smaller_right


def test_a_finished_step_is_reused(make_run, tiny_llama, tmp_path, asked, monkeypatch):
    run = make_run(tiny_llama, tmp_path / "out")
    run_stages(run, "report")
    first = ask(run)
    monkeypatch.setattr(SimpleQuestions, "work", None)
    assert ask(run) == first


def test_the_plan_counts_the_questions(make_run, tiny_llama, tmp_path):
    from darwinlm.model.families.checkpoint import Checkpoint

    recipe = make_run(tiny_llama, tmp_path / "out").recipe
    sizes = RunSizes(Checkpoint.open(tiny_llama), recipe)
    rows = rows_of((*pipeline.STEPS, SimpleQuestions), sizes, on_cpu=True, memory=1e10)
    assert rows[-1].step == SimpleQuestions.name
    assert rows[-1].cost.operations > sizes.operations(50 * 24, 1 + sizes.kept, heads=2)


def test_fifty_different_questions():
    questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    asked = [question["question"] for question in questions]
    assert len({*asked}) == len(questions) == 50
    assert set(SHOWN) < {*asked}
