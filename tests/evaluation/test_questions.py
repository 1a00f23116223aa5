"""Files of questions: each kind against a model whose answers are known, and a message for each mistake."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny.tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from darwinlm.evaluation.measures import questions as questions_module
from darwinlm.evaluation.measures.judged_answer import contains, normal
from darwinlm.evaluation.measures.likelihood import log_likelihoods
from darwinlm.evaluation.measures.questions import FileMeasure
from darwinlm.runtime.errors import DataError, MeasureError, RecipeError


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def model(tiny_llama: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


@pytest.fixture
def answers(monkeypatch):
    """Let the model answer with these texts, in order; its prompts are collected."""
    said, asked = [], []

    def continued(model, tokenizer, inputs, new_tokens):
        del model
        asked.extend((tokenizer.decode(ids), new_tokens) for ids in inputs)
        return [said.pop(0) for _ in inputs]

    monkeypatch.setattr(questions_module, "continued", continued)

    def set_answers(*texts: str) -> list[tuple[str, int]]:
        said.extend(texts)
        return asked

    return set_answers


def scores(path: Path, model: PreTrainedModel, *, run_code: bool = False, tokenizer: object = None) -> list[float]:
    return list(FileMeasure(path, run_code=run_code).score(model, tokenizer or tiny_tokenizer()))


def test_answers_that_contain_or_are_the_expected_one(tmp_path, model, answers):
    asked = answers("It is Paris.\nQuestion: next", "Parisian", "paris!", "It is Paris", "The 7th", "no\n7")
    path = written(
        tmp_path / "q.jsonl",
        {"question": "The capital of France?", "answer": "Paris"},
        {"question": "France's capital?", "answer": "Paris"},
        {"question": "The capital of France?", "answer": "Paris", "match": "exact"},
        {"question": "The capital of France?", "answer": ["Rome", "Paris"], "match": "exact"},
        {"prompt": "The days of a week: the ", "answer": ["7th", "seven"], "tokens": 64},
        {"question": "How many?", "answer": 7},
    )
    assert scores(path, model) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert asked[0] == ("Question: The capital of France?\nAnswer:", 64)
    assert asked[4][0] == "The days of a week: the "


def test_a_chat_model_gets_its_template(tmp_path, model, answers):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"
    )
    asked = answers("first line\nParis", "Paris")
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "Capital?"}]
    path = written(
        tmp_path / "q.jsonl", {"question": "Capital?", "answer": "paris"}, {"messages": chat, "answer": "paris"}
    )
    assert scores(path, model, tokenizer=tokenizer) == [1.0, 1.0]
    assert [text for text, _ in asked] == ["<user>Capital?<me>", "<system>short<user>Capital?<me>"]


def test_choices_are_ranked_by_likelihood_for_their_length(tmp_path, model):
    tokenizer = tiny_tokenizer()
    choices = ["river stone", "light", "copper morning harbour"]
    prompt = tokenizer("The winter")["input_ids"]
    with torch.no_grad():
        values = []
        for choice in choices:
            ids = tokenizer(f"The winter {choice}")["input_ids"]
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            values.append(
                sum(float(log_p[place - 1, ids[place]]) for place in range(len(prompt), len(ids))) / len(choice)
            )
    best = values.index(max(values))
    path = written(
        tmp_path / "q.jsonl",
        *({"prompt": "The winter", "choices": choices, "answer": answer} for answer in (0, 1, 2)),
        {"prompt": "The winter ", "choices": choices, "answer": choices[best]},
    )
    assert scores(path, model)[:3] == [float(place == best) for place in range(3)]


def test_likelihoods_do_not_depend_on_what_is_beside_them(model, monkeypatch):
    texts = [([1, 2, 3], [4, 5]), ([7], [8, 9, 10, 11, 12]), ([3, 3], [1])]
    together = log_likelihoods(model, texts)
    monkeypatch.setattr("darwinlm.evaluation.measures.likelihood.TOKENS", 1)
    assert together == pytest.approx(log_likelihoods(model, texts), abs=1e-4)


def test_code_is_run_only_where_it_is_allowed(tmp_path, model, answers):
    path = written(
        tmp_path / "code.jsonl",
        {"question": "Write double.", "tests": "assert double(2) == 4"},
        {"prompt": "def double(x):\n", "tests": "assert double(2) == 4"},
        {"prompt": "def double(x):\n", "tests": "assert double(3) == 6"},
    )
    with pytest.raises(RecipeError, match=r"code\.jsonl: item 1 has tests.*no sandbox: allow it with --run-code"):
        FileMeasure(path, run_code=False)
    asked = answers(
        "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.",
        "    return 2 * x\n\n\nprint(double('x', 1))",
        "    return x\n",
    )
    assert scores(path, model, run_code=True) == [1.0, 1.0, 0.0]
    assert all(0 < tokens < 256 for _, tokens in asked), "the context holds no more"


def test_scores_go_on_where_they_stopped(tmp_path, model, answers, monkeypatch):
    monkeypatch.setattr(questions_module, "TOGETHER", 2)
    path = written(tmp_path / "q.jsonl", *({"question": f"{n}?", "answer": "yes"} for n in range(5)))
    asked = answers("no", "yes", "yes")
    assert list(FileMeasure(path, run_code=False).score(model, tiny_tokenizer(), known=2)) == [0.0, 1.0, 1.0]
    assert asked[0][0].startswith("Question: 2?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "x"}, "line 2: give one of question, messages and prompt, not none of them"),
        ({"question": "x", "prompt": "y", "answer": "x"}, "not question and prompt"),
        ({"question": "", "answer": "x"}, "question is empty"),
        ({"prompt": " \n", "answer": "x"}, "prompt is empty"),
        ({"question": "x"}, "the answer is missing or empty: give answer, or tests for code"),
        ({"question": "x", "answer": " "}, "the answer is missing or empty"),
        ({"question": "x", "answer": []}, "the answer is missing or empty"),
        ({"question": "x", "anwser": "y"}, "there is no field 'anwser': did you mean 'answer'"),
        ({"question": "x", "answer": "y", "tests": "z"}, "neither an answer nor choices"),
        ({"question": "x", "tests": "\n"}, "tests is empty"),
        ({"question": "x", "choices": ["a"], "answer": 0}, "choices must be two or more different texts"),
        ({"question": "x", "choices": ["a", "a"], "answer": 0}, "choices must be two or more different texts"),
        ({"question": "x", "choices": ["a", "b"], "answer": 2}, "its number from 0 to 1"),
        ({"question": "x", "choices": ["a", "b"], "answer": "c"}, "must be one of the choices"),
        ({"question": "x", "answer": "y", "match": "some"}, "match: "),
        ({"question": "x", "answer": "y", "tokens": 0}, "tokens: "),
        ([1], "not a record"),
        ({"question": "x", "answer": True}, "answer: true must be text in quotation marks"),
        ({"question": "x", "choices": ["yes", "no"], "answer": True}, "answer: true must be text in quotation marks"),
        ({"question": "x", "answer": 3.5}, r"answer: 3\.5 must be text in quotation marks"),
        ({"question": "x", "answer": ["a", 3]}, "or a list of such texts"),
        ({"question": "x", "answer": "...", "match": "exact"}, "an answer of punctuation alone"),
        ({"question": "x \ud800", "answer": "y"}, "half of a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, message):
    path = written(tmp_path / "q.jsonl", {"question": "x", "answer": "y"}, row)
    with pytest.raises(DataError, match=message) as caught:
        FileMeasure(path, run_code=True)
    assert "q.jsonl" in str(caught.value)


def test_an_empty_file_and_a_missing_one(tmp_path):
    (tmp_path / "q.jsonl").touch()
    with pytest.raises(DataError, match="holds no questions"):
        FileMeasure(tmp_path / "q.jsonl", run_code=False)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RecipeError, match=r"--measure .*folder\.jsonl: this is no plain file"):
        FileMeasure(tmp_path / "folder.jsonl", run_code=False)
    with pytest.raises(RecipeError, match="there is no such file"):
        FileMeasure(tmp_path / "r.jsonl", run_code=False)


def test_a_question_that_the_model_cannot_read(tmp_path, model):
    long = written(tmp_path / "long.jsonl", {"question": "x", "answer": "y"}, {"question": "x" * 300, "answer": "y"})
    many = written(tmp_path / "many.jsonl", {"question": "x", "answer": "y", "tokens": 300})
    with pytest.raises(MeasureError, match=r"item 1 takes .* shorten it, or give it fewer `tokens`"):
        scores(many, model)
    with pytest.raises(MeasureError, match=r"long\.jsonl: item 2 takes \d+ tokens .* the model reads 256: shorten it"):
        scores(long, model)
    chat = written(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "x"}], "answer": "y"})
    with pytest.raises(MeasureError, match=r"c\.jsonl: item 1: this is a chat.*no chat template"):
        scores(chat, model)


def test_words_are_compared_without_case_and_punctuation():
    assert normal("  'The  Answer'. ") == "the answer"
    assert contains("It is 42.", "42")
    assert not contains("It is 420.", "42")
    assert contains("c++ it is", "C++")


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("5", "5", True),
        ("**5**.", "5", True),
        ("(Yes)!", "yes", True),
        ("-5", "5", False),
        ("50%", "50", False),
        ("C++", "C", False),
        ("C#.", "C#", True),
        (".5", "5", False),
    ],
)
def test_signs_belong_to_an_exact_answer(answer, expected, right):
    assert (normal(answer) == normal(expected)) is right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("It is 5.", "5", True),
        ("5, or 6", "5", True),
        ("It costs $5", "5", True),
        ("pages 3-5", "5", True),
        ("-5", "5", False),
        ("It is -5.", "5", False),
        ("It is 2.5", "5", False),
        ("5.2", "5", False),
        ("5,000", "5", False),
        ("1,500", "500", False),
        ("It is -5.", "-5", True),
    ],
)
def test_a_number_is_found_as_a_whole(answer, expected, right):
    assert contains(answer, expected) is right


def test_a_limit_takes_the_first_questions(tmp_path, model, answers):
    path = written(tmp_path / "q.jsonl", *({"question": f"{n}?", "answer": "yes"} for n in range(5)))
    asked = answers("yes", "no")
    limited = FileMeasure(path, 2, run_code=False)
    assert list(limited.score(model, tiny_tokenizer())) == [1.0, 0.0]
    assert len(asked) == 2
    assert limited.digest != FileMeasure(path, run_code=False).digest


@pytest.mark.parametrize("again", [{"question": "x", "answer": "y"}, {"id": 7, "question": "x", "answer": "y"}])
def test_an_item_that_occurs_twice_is_refused(tmp_path, again):
    """It would count twice, and narrow the interval. Other answers or choices make it another item."""
    other = [{"question": "x", "answer": "z"}, {"question": "x", "choices": ["y", "z"], "answer": "y"}]
    path = written(tmp_path / "q.jsonl", {"question": "x", "answer": "y", "id": 1}, *other, again)
    with pytest.raises(DataError, match=r"q\.jsonl, line 4: the same item as in line 1: keep one of them"):
        FileMeasure(path, run_code=False)
    assert len(FileMeasure(written(path, again, *other), run_code=False).questions) == 3
