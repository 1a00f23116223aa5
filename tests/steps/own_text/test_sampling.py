"""Text that a model writes itself: sampling in a batch, chats from a template, and that text on disk."""

import json
from functools import wraps

import numpy as np
import pytest
import torch
from tests.tiny.models import tiny_model
from tests.tiny.tokenizer import EOS_ID, TEMPLATE, tiny_tokenizer

from darwinlm.runtime.errors import ArtifactError, DataError
from darwinlm.steps.own_text import written as own_text
from darwinlm.steps.own_text.sampler import Sampler, Segment, choose
from darwinlm.steps.own_text.written import write_own_text

PREFIX = (1, 50, 60, 70)


def tokenizer_with(template=TEMPLATE):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def alone(model, number, length):
    """What the sampler writes with seed 0, of one sequence without a cache."""
    uniform = torch.from_numpy(np.random.default_rng([0, number]).random(length, dtype=np.float32))
    tokens = list(PREFIX)
    with torch.no_grad():
        while len(tokens) < length and (len(tokens) == len(PREFIX) or tokens[-1] != EOS_ID):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1]
            tokens.append(int(choose(logits, torch.ones(1), uniform[len(tokens)][None])))
    return tuple(tokens)


@pytest.mark.parametrize(
    ("model_type", "continuous"), [("llama", True), ("qwen3", True), ("gemma3_text", False), ("qwen3_next", False)]
)
def test_rows_write_what_each_would_write_alone(model_type, continuous):
    model = tiny_model(model_type).eval()
    sampler = Sampler(model, PREFIX, (Segment(1.0, (EOS_ID,), 24),), 40, 0, rows=3)
    assert sampler.continuous == continuous
    found = {each.number: each for each in sampler.sample(iter(range(7)))}
    assert sorted(found) == list(range(7))
    for number, each in found.items():
        assert each.tokens == alone(model, number, 24)
        assert each.parts[0] == each.tokens[len(PREFIX) : len(each.tokens) - each.ended]


def test_a_sequence_depends_on_its_number_alone():
    model = tiny_model("llama").eval()
    segments = (Segment(1.0, (EOS_ID, 5, 6, 7, 8, 9), 20, (5, 30, 31)), Segment(0.7, (EOS_ID, *range(10, 40)), 40))
    written = []
    for rows, numbers in ((2, range(12)), (5, reversed(range(12)))):
        sampler = Sampler(model, PREFIX, segments, 40, 3, rows=rows)
        written.append({each.number: each for each in sampler.sample(iter(numbers))})
    assert written[0] == written[1]
    chats_of_two = [each for each in written[0].values() if len(each.parts) == 2]
    assert chats_of_two
    for each in chats_of_two:
        end = each.begins[1]
        assert each.tokens[end - 3 : end] == (5, 30, 31)
        assert each.tokens[: each.begins[0]] == PREFIX
        assert each.parts[0] == each.tokens[each.begins[0] : end - 3]
        assert each.parts[1] == each.tokens[end : len(each.tokens) - each.ended]


def test_tokens_are_drawn_by_their_probabilities():
    logits = torch.tensor([[0.0, 1.0, 3.0, -2.0]]).expand(4000, -1)
    uniform = (torch.arange(4000) + 0.5) / 4000
    for temperature in (1.0, 0.5):
        drawn = choose(logits, torch.full((4000,), temperature), uniform).bincount(minlength=4) / 4000
        torch.testing.assert_close(drawn, torch.softmax(logits[0] / temperature, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('only tools') }}", "only tools"),
        ("<user>", "0 times"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "2 times"),
        ("{{ messages[0]['content'] }}", "nothing before or after"),
        ("x" * 40 + "{{ messages[0]['content'] }}</s>", "takes 41 of 64 tokens"),
    ],
)
def test_models_without_a_usable_template_write_documents(template, reason, tmp_path):
    said = []
    model = tiny_model("llama").eval()
    write_own_text(model, tokenizer_with(template), tmp_path, 200, length=64, say=said.append)
    assert len(said) == 1
    assert reason in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["documents-0.jsonl"]
    assert all("text" in json.loads(line) for line in (tmp_path / "documents-0.jsonl").read_text().splitlines())


def model_that_says(tokens):
    """A model that always says these tokens, by the position."""
    model = tiny_model("llama").eval()
    forward = model.forward

    @wraps(forward)
    def scripted(input_ids, **more):
        output = forward(input_ids=input_ids, **more)
        positions = more.get("position_ids", torch.zeros_like(input_ids))
        output.logits.fill_(-50.0)
        told = torch.tensor(tokens)[(positions - 6).clamp(0, len(tokens) - 1)]
        output.logits.scatter_(-1, told[:, -1:, None], 50.0)
        return output

    model.forward = scripted
    return model


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (list(range(40, 200)), "don't end the user's turn"),
        ([*range(40, 50), EOS_ID, *range(60, 80), EOS_ID], "repeat an earlier prompt or text"),
        ([EOS_ID], "are empty or end in a loop"),
    ],
)
def test_models_whose_prompts_are_of_no_use(says, reason, tmp_path):
    said = []
    with pytest.raises(DataError, match="name a text with --text"):
        write_own_text(model_that_says(says), tokenizer_with(), tmp_path, 500, length=64, say=said.append)
    assert reason in said[0]
    assert list(tmp_path.iterdir()) == []


def test_text_that_comes_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(own_text, "TRIAL", 1)
    monkeypatch.setattr(own_text, "RECENT", 8)
    says = [*range(40, 50), EOS_ID, *range(60, 80), EOS_ID]
    with pytest.raises(DataError, match="comes to an end after"):
        write_own_text(model_that_says(says), tokenizer_with(), tmp_path, 5000, length=64)


def test_interrupted_text_goes_on(tmp_path):
    model, tokenizer = tiny_model("llama").eval(), tokenizer_with(None)
    write_own_text(model, tokenizer, tmp_path / "whole", 1500, length=48, rows=4)
    whole = (tmp_path / "whole" / "documents-0.jsonl").read_text().splitlines()
    (tmp_path / "cut").mkdir()
    begun = tmp_path / "cut" / "documents-0.jsonl"
    begun.write_text("\n".join(whole[: len(whole) // 2]) + '\n{"text": "brok')
    done = []
    write_own_text(model, tokenizer, tmp_path / "cut", 1500, length=48, rows=4, progress=lambda *at: done.append(at))
    again = begun.read_text().splitlines()
    assert sorted(again)[: len(whole)] == sorted(whole)[: len(whole)]
    assert done[-1] == (1500, 1500)
    assert [at for at, _ in done] == sorted(at for at, _ in done)
    assert done[0][0] > 500, "what was there is counted"
    assert len({at for at, _ in done}) > len(again) - len(whole) // 2 + 2, "unfinished documents are counted too"
    assert [at for at, _ in done].count(1500) < 4, "it isn't said to be done while documents are unfinished"
    for damaged in ("\0\0\0", "[]", '{"number": "x", "tokens": 1, "identity": "a"}'):
        begun.write_text(f"{whole[0]}\n{damaged}\n")
        with pytest.raises(ArtifactError, match=r"documents-0\.jsonl is damaged \(line 2"):
            write_own_text(model, tokenizer, tmp_path / "cut", 1500, length=48, rows=4)
