"""Figures of chat models: closeness on the dense model's answers, and code."""

import pytest
import torch
from tests.tiny.models import tiny_model
from tests.tiny.tokenizer import TEMPLATE, tiny_tokenizer
from torch.nn import functional

from darwinlm.runtime.errors import ModelError
from darwinlm.steps.chats.answers import Answers, measure_answers, write_answers
from darwinlm.steps.chats.code import TASKS, compare_code, greedy_answers, write_code


@pytest.fixture
def tokenizer():
    made = tiny_tokenizer()
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def ending():
    """A model that ends its turns: eos is likely at every position."""
    model = tiny_model("llama").eval()
    with torch.no_grad():
        model.lm_head.weight[2] = model.lm_head.weight.abs().mean(0) * 3
    return model


def test_only_answers_count_and_padding_does_not():
    dense, other = (tiny_model("llama", seed=seed).eval() for seed in (0, 1))
    rows = [(list(range(40, 60)), 8), (list(range(70, 82)), 5)]
    tokens = torch.zeros(2, 20, dtype=torch.int64)
    answer = torch.zeros(2, 20, dtype=torch.bool)
    expected = []
    for row, (ids, begin) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        answer[row, begin : len(ids)] = True
        with torch.no_grad():
            logits = [m(input_ids=torch.tensor([ids])).logits[0, begin - 1 : len(ids) - 1] for m in (dense, other)]
        log_p, log_q = (each.log_softmax(-1) for each in logits)
        kl = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        expected.append(torch.stack((kl, (log_p.argmax(-1) == log_q.argmax(-1)).float())))
    kl, agreed = torch.cat(expected, 1)
    for batch_tokens in (20, 40):
        given = {"other": other, "dense": dense}
        found = measure_answers(dense, given, Answers(tokens, answer), batch_tokens=batch_tokens)
        assert found["dense"].kl < 1e-6
        figures = found["other"]
        assert figures.tokens == len(kl) == 19
        assert figures.kl == pytest.approx(float(kl.mean()), rel=1e-4)
        assert figures.agreement == pytest.approx(float(agreed.mean()))


def test_the_dense_model_writes_the_answers(ending, tokenizer):
    answers = write_answers(ending, tokenizer, 40)
    assert isinstance(answers, Answers)
    assert int(answers.answer.sum()) >= 40
    header = tokenizer("<assistant>", add_special_tokens=False)["input_ids"]
    for tokens, answer in zip(answers.tokens, answers.answer, strict=True):
        begin = int(answer.int().argmax())
        assert tokens[begin - len(header) : begin].tolist() == header
    assert "no chat template" in write_answers(ending, tiny_tokenizer(), 40)


def test_answers_are_the_models_own(ending, tokenizer):
    prompts = ["the sea", "a very long prompt about the sea"]
    whole, how = [], {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    with ending.get_output_embeddings().register_forward_hook(lambda _, x, __: whole.append(x[0].is_contiguous())):
        together = greedy_answers(ending, tokenizer, prompts, 8)
    assert all(whole), "torch copies a head's weights for every strided row"
    for prompt, answer in zip(prompts, together, strict=True):
        ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **how)["input_ids"]
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
        out = ending.generate(ids, pad_token_id=0, **given)
        assert answer == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    with pytest.raises(ModelError, match="no chat template: coding tasks are for chat models"):
        greedy_answers(ending, tiny_tokenizer(), prompts, 8)


def test_only_blocks_of_code_count(monkeypatch, ending, tokenizer):
    answers = ["Sure:\n```python\nx = 1\n```\nDone.", "```\nx = 2\n```", "x = 3", "```py\nx = 4"]
    monkeypatch.setattr("darwinlm.steps.chats.code.greedy_answers", lambda *asked: answers)
    assert write_code(ending, tokenizer) == ["x = 1\n", "x = 2\n", None, None]


def test_a_models_code_against_the_dense_ones():
    dense = ["x = 1", "def f(:", "y = [\n  1]", None, "z"]
    figures = compare_code(["x  =  1  # one", "a\0b", None, "x", "(" * 500 + ")" * 500], dense)
    assert (figures.tasks, figures.parsed, figures.same) == (4, 0.25, 0.25)
    assert compare_code(dense, dense).model_dump() == {"tasks": 4, "parsed": 0.75, "same": 0.75}
    assert compare_code(["x"], [None]) is None
    documented = 'def f():\n    """Says what."""\n    return 1'
    assert compare_code([documented], ["def f(): return 1  # one"]).same == 1


def test_a_model_that_writes_no_code_has_no_figures(ending, tokenizer):
    codes = write_code(ending, tokenizer)
    assert codes == [None] * len(TASKS)
    assert compare_code(codes, codes) is None
