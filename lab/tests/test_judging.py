"""`python -m lab judging` on a tiny model, and the statistics of a choice."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets

from darwinlm.evaluation.measures.likelihood import log_likelihoods
from darwinlm.model.families.checkpoint import Checkpoint
from lab.judging.choice import choice, spread
from lab.judging.packed_choices import Item, scores


def test_the_half_that_chose_is_never_reported():
    # The second finalist answers all even items and no odd ones; the first is even on both.
    first, second = [1.0, 0.0, 0.0, 1.0] * 5, [1.0, 0.0] * 10
    found = choice([first, second], [0.1, 0.2])
    assert found.by_kl == 0
    assert found.winners == (1, 0)
    assert found.gain == pytest.approx(-0.25)  # on the odd items the winner of the even ones has none, the other half
    assert found.stderr > 0


def test_equal_scores_leave_the_choice_to_the_kl():
    found = choice([[1.0, 0.0] * 4] * 3, [0.3, 0.1, 0.2])
    assert found.winners == (1, 1)
    assert (found.gain, found.stderr) == (0.0, 0.0)


def test_finalists_that_differ_by_chance_have_the_spread_of_chance():
    generator = torch.Generator().manual_seed(0)
    rows = (torch.rand(40, 2000, generator=generator) < 0.5).double().tolist()
    measured, by_chance = spread(rows)
    assert measured == pytest.approx(by_chance, rel=0.3)
    better = [[1.0 if at < 1500 else 0.0 for at in range(2000)], [1.0 if at < 500 else 0.0 for at in range(2000)]]
    measured, by_chance = spread(better)
    assert measured > 10 * by_chance


def test_packed_questions_have_the_likelihoods_of_single_ones(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    model, tokenizer = checkpoint.load(torch.float32), checkpoint.tokenizer()
    items = [Item(f"w{at} w{at + 1} w{at + 2}", tuple(f"w{at * 3 + k} w{k}" for k in range(3)), 0) for at in range(12)]
    expected = []
    for item in items:
        prompt = tokenizer(item.prompt)["input_ids"]
        values = log_likelihoods(model, [(prompt, tokenizer(f" {text}")["input_ids"]) for text in item.choices])
        per_byte = [value / len(text) for value, text in zip(values, item.choices, strict=True)]
        expected.append(float(per_byte[0] == max(per_byte)))
    assert scores(model, tokenizer, items) == expected
    assert 0 < sum(expected) < len(items)


def test_the_command_writes_each_finalist_once(command, tiny_llama, tiny_text_file, tmp_path):
    data = tmp_path / "data" / "piqa"
    data.mkdir(parents=True)
    rows = [{"goal": f"w{at}", "sol1": f"w{at + 1} w2", "sol2": f"w{at + 2}", "label": at % 2} for at in range(12)]
    (data / "validation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    options = ("--keep", "60%", "--items", "piqa=10", "--data-dir", tmp_path / "data", "--out", tmp_path / "out")
    run = ("judging", tiny_llama, *options, "--text", tiny_text_file, *sets(SETTINGS))
    said = command(*run).succeeded().out
    files = sorted((tmp_path / "out" / "keep-60" / "finalists").glob("*.json"))
    names = {file.stem for file in files}
    assert names >= {"search", "equal layers", "late blocks gone", "attention whole"}
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    for finalist in found.values():
        assert len(finalist["scores"]["piqa"]) == 10
        assert finalist["kl"] > 0
    assert found["late blocks gone"]["allocation"][-2:] == [0, 0]
    whole = found["attention whole"]["allocation"][::2]
    assert len({*whole}) == 1
    before = [file.stat().st_mtime_ns for file in files]
    again = command(*run).succeeded().out
    assert [file.stat().st_mtime_ns for file in files] == before
    assert said.splitlines()[-1].startswith("keep-60  piqa     10 ")
    assert again.splitlines()[-1] == said.splitlines()[-1]


def test_tasks_that_it_does_not_know(command, tiny_llama, tmp_path):
    ended = command("judging", tiny_llama, "--keep", "60%", "--items", "other=5", "--data-dir", tmp_path)
    ended.refused("tasks are sciq, piqa, arc_easy")
