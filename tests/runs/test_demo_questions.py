"""How many questions both models of a run answer."""

import json

from tests.tiny.stages import run_stages

from darwinlm.runs import demo_questions
from darwinlm.runs.demo_questions import QUESTIONS, count_answers


def test_each_model_is_asked_all_questions(make_run, tiny_llama, tmp_path, monkeypatch):
    """Of two questions with opposite answers, every model is right on one."""
    file = tmp_path / "questions.jsonl"
    of_two = {"question": "Is it?", "choices": ["yes", "no"]}
    file.write_text("".join(json.dumps(of_two | {"answer": answer}) + "\n" for answer in of_two["choices"]))
    monkeypatch.setattr(demo_questions, "QUESTIONS", file)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = make_run(tiny_llama, tmp_path / "out")
    run_stages(run, "report")
    assert count_answers(run) == (1, 1, 2)


def test_fifty_different_questions():
    questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len({question["question"] for question in questions}) == len(questions) == 50
