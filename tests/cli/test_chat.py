"""`darwinlm chat` with tiny models: piped questions, templates, two models, and what is refused."""

import io
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny.command import Ended
from tests.tiny.tokenizer import TEMPLATE

from darwinlm.evaluation.conversation import AnswerSettings, Conversation
from darwinlm.formats.opened import Opened, open_model
from darwinlm.runtime.errors import DataError
from darwinlm.runtime.limits import visible


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch):
    """What is piped into the command."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def talker(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny model with a chat template."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "talker"))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("</s>", "\n"))
    return folder


@pytest.fixture
def opened(talker: Path) -> Opened:
    return open_model(str(talker), dtype="float32")


def test_piped_questions_are_answered_in_turn(command, said, opened: Opened, talker: Path) -> None:
    said("hello\n\nand you?\n/exit\nnot asked\n")
    ended = command("chat", talker, "--temperature", "0", "--max-tokens", "8", "--dtype", "float32").succeeded()
    talk = Conversation(opened, AnswerSettings(8, 0.0))
    assert ended.out == visible(f"{talk.answer('hello')}\n{talk.answer('and you?')}\n")


def test_a_run_is_talked_to_beside_its_dense_model(command, said, finished_llama: Path, tiny_llama: Path) -> None:
    said("the river\n")
    ended = command(
        "chat", finished_llama, "--against", tiny_llama, "--temperature", "0", "--max-tokens", "4"
    ).succeeded()
    assert ended.out.index(f"[{finished_llama}]") < ended.out.index(f"[{tiny_llama}]")
    assert "has no chat template: it continues your text" in ended.err


def test_there_must_be_something_to_continue(tiny_llama: Path) -> None:
    with pytest.raises(DataError, match="there is no text to continue: write something"):
        Conversation(open_model(str(tiny_llama), dtype="float32"), AnswerSettings(4, 0.0)).answer("")


def test_turns_are_remembered_and_forgotten(opened: Opened) -> None:
    talk = Conversation(opened, AnswerSettings(4, 0.0, system="be brief"))
    first = talk.answer("one")
    assert [each["role"] for each in talk.messages] == ["system", "user", "assistant"]
    assert talk.messages[-1]["content"] == first
    talk.answer("two")
    assert len(talk.messages) == 5
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    assert talk.answer("one") == first


def test_oldest_turns_go_where_the_context_is_full(opened: Opened) -> None:
    opened.model.config.max_position_embeddings = 120
    talk = Conversation(opened, AnswerSettings(4, 0.0))
    for number in range(6):
        talk.answer(f"question number {number}")
    assert 2 <= len(talk.messages) < 12
    assert talk.messages[-2]["content"] == "question number 5"
    with pytest.raises(DataError, match=r"the model takes 120: shorten the message, type /reset, or lower"):
        talk.answer("x" * 200)


def test_an_answer_ends_at_the_tokens_that_the_model_and_the_tokenizer_name(opened: Opened, monkeypatch) -> None:
    """Random bytes are no text that could be tokenised again, so the tokens themselves are watched."""
    written: list[list[int]] = []
    original = opened.model.generate

    def generate(ids: torch.Tensor, **how: object) -> torch.Tensor:
        out = original(ids, **how)
        written.append(out[0, ids.shape[1] :].tolist())
        return out

    monkeypatch.setattr(opened.model, "generate", generate)
    Conversation(opened, AnswerSettings(12, 0.0)).answer("hello")
    (free,) = written
    last = free[2]
    assert len(free) > free.index(last) + 1, "it would have gone on"
    opened.model.generation_config.eos_token_id = [1, last]
    Conversation(opened, AnswerSettings(12, 0.0)).answer("hello")
    assert written[1] == free[: free.index(last) + 1]


def test_without_a_temperature_the_most_likely_token_is_taken(opened: Opened) -> None:
    """It is what the model's own `generate` writes; a hidden penalty changed the answers of every model."""
    opened.model.generation_config.repetition_penalty = 1.2
    talk = Conversation(opened, AnswerSettings(24, 0.0))
    ids = talk._prompt("hello hello hello")
    with torch.no_grad():
        for _ in range(24):
            ids = torch.cat([ids, opened.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    expected = opened.tokenizer.decode(ids[0, -24:], skip_special_tokens=True)
    assert talk.answer("hello hello hello") == expected
    penalised = Conversation(opened, AnswerSettings(24, 0.0, repetition_penalty=5.0)).answer("hello hello hello")
    assert penalised != expected


def test_drawing_follows_the_seed(opened: Opened) -> None:
    answers = [Conversation(opened, AnswerSettings(12, 1.5, seed=seed)).answer("hello") for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("arguments", "question", "parts"),
    [
        ("{model} --against nowhere", "hello", ["there is no model at 'nowhere'"]),
        ("{model} --temperature -1", "hello", ["--temperature -1: must be from 0"]),
        ("{model} --repetition-penalty 0", "hello", ["--repetition-penalty 0: must be above 0"]),
        ("{model}", "refuse", ["chat template refuses", "roles must alternate"]),
        ("{model}", "x" * 5000, ["shorten the message"]),
    ],
)
def test_what_is_refused(command, said, talker: Path, arguments, question, parts) -> None:
    if question == "refuse":
        (talker / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    said(f"{question}\n")
    ended = command("chat", *arguments.format(model=talker).split())
    Ended(ended.code, ended.out, ended.err.splitlines()[-1]).refused(*parts)
