"""Text that the dense model writes itself as a stage: the default, kept, resumed, mixed, and for recovery."""

import json

import pytest
from tests.tiny.checkpoint import SETTINGS, tiny_text
from tests.tiny.command import sets
from tests.tiny.models import tiny_model
from tests.tiny.tokenizer import tiny_tokenizer

SMALL = (
    *SETTINGS,
    "text.calibration_tokens=256",
    "text.evaluation_tokens=64",
    "refit.tokens=256",
    "search.generations=1",
)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """A model with a chat template that ends its turns."""
    folder = tmp_path_factory.mktemp("model") / "chatting"
    model = tiny_model("llama")
    model.lm_head.weight.data[2] *= 6
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}?{% else %}!{% endif %}{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}!{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def written(out, name="own_text"):
    return [
        json.loads(line)
        for path in sorted((out / "stages" / name / "documents").glob("*.jsonl"))
        for line in path.open()
    ]


def test_a_run_needs_no_text(command, chatting, tmp_path, monkeypatch):
    monkeypatch.setattr("darwinlm.steps.text.text_settings.LEAST_FOR_ANSWERS", 64)
    out = tmp_path / "run"
    first = command("prune", chatting, "--keep", "75%", "--out", out, *sets(SMALL)).succeeded()
    chats = written(out)
    assert all(set(each) >= {"messages", "tokens"} for each in chats)
    assert sum(each["tokens"] for each in chats) >= 640
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"]["text"]["source"] == "self"
    page, card = ((out / path).read_text() for path in ("report.html", "model/README.md"))
    assert "text that the dense model wrote" in page
    answers = summary["steps"]["chats"]["answers"]
    assert list(answers) == ["uniform", "refit"]
    assert all(answer["metrics"]["kl"] > 0 and answer["tokens"] >= 16 for answer in answers.values())
    for words in (page, card, command("show", out).out):
        assert "answers of the dense model" in words
    again = command("prune", chatting, "--keep", "75%", "--out", out, *sets(SMALL)).succeeded()
    assert "the model's own text: already done, reused" in again.out
    assert "the model's own text: already done" not in first.out

    recovered = tmp_path / "recovered"
    settings = sets(["compute.batch_tokens=256"])
    command("recover", out, "--tokens", 512, "--out", recovered, *settings).succeeded()
    assert not (recovered / "stages" / "own_text").exists()
    new = written(recovered, "own_text_recovery")
    assert min(each["number"] for each in new) >= 1 << 20
    assert sum(each["tokens"] for each in new) >= 512
    summary = json.loads((recovered / "summary.json").read_text())
    assert list(summary["steps"]["chats"]["answers"]) == ["before", "recovered"]


def test_own_text_beside_a_file(command, tiny_llama, tmp_path):
    text = tiny_text(tmp_path / "text.txt", documents=400)
    out = tmp_path / "run"
    ended = command(
        "prune", tiny_llama, "--text", f"self,{text}", "--out", out, "--until", "text", *sets(SMALL)
    ).succeeded()
    assert "the model has no chat template, so it writes documents instead of chats" in ended.out
    assert sum(each["tokens"] for each in written(out)) >= 320
    assert all("text" in each for each in written(out))
