"""The questions at the end of the demo; its run is tested on the real model in `tests/real`."""

from types import SimpleNamespace

from rich.console import Console

from darwinlm.cli.demo import _answers
from darwinlm.evaluation import chat
from darwinlm.models import opened as models
from darwinlm.runs.demo import QUESTIONS


def test_both_models_get_the_same_questions_and_a_cut_answer_says_so(monkeypatch, capsys, tmp_path):
    opened, asked = [], []

    def open_model(folder, **how):
        opened.append(folder)
        return SimpleNamespace(folder=folder)

    def answer(self, question):
        asked.append((self.opened.folder, question))
        return "Paris." if self.opened.folder.endswith("source") else "Paris is\n the"

    monkeypatch.setattr(models, "open_model", open_model)
    monkeypatch.setattr(chat.Conversation, "__init__", lambda self, opened, settings: setattr(self, "opened", opened))
    monkeypatch.setattr(chat.Conversation, "answer", answer)
    _answers(Console(width=100, highlight=False), tmp_path)
    dense, smaller = opened
    assert (dense, smaller) == (str(tmp_path / "stages" / "source"), str(tmp_path / "model"))
    assert asked == [(folder, question) for question in QUESTIONS for folder in (dense, smaller)]
    said = capsys.readouterr().out
    assert said.count("dense: Paris.\n") == said.count("smaller: Paris is the …\n") == len(QUESTIONS)
