"""`lab/reading`: readers are made, cut, distilled and measured, here on pico models and a tiny BoolQ."""

import gzip
import json
import sys

import numpy as np
import pytest
import torch
from tests.tiny.pruned import plain_checkpoint

import darwinlm
from darwinlm.runs.exporting import export_model

pytest.importorskip("sentence_transformers", reason="comes with the extra reading")

from lab.reading import boolq, distilling, quality, speed, table, training
from lab.reading.readers import Embedder, Reranker, open_reader

WORDS = [f"{first}{last}" for first in "aeiou" for last in ("lpha", "eta", "amma", "elta")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty questions for each part: a topic's word, which its two articles and two passages of each share."""
    folder = tmp_path_factory.mktemp("boolq")
    for split in (boolq.TRAINING, boolq.HELD_OUT):
        records = [
            {
                "question": f"is {word} of {kind}",
                "passage": f"{word} {kind} -- {word} is {kind} in part {part} of {split}",
            }
            for part in range(2)
            for kind in ("red", "blue")
            for word in WORDS
        ]
        with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
            file.write("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


@pytest.fixture
def run(monkeypatch):
    """Run a script in this process: run(quality, "MODEL", "--out", file)."""

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
        script.main()

    return call


def error_on(labels, folder):
    """Mean squared error of a model's outputs to the dense model's."""
    columns, reader = json.loads(labels.read_text()), open_reader(folder, torch.float32)
    if isinstance(reader, Embedder):
        found = reader.model.encode(columns["text"])
    else:
        pairs = list(zip(columns["query"], columns["document"], strict=True))
        found = reader.model.predict(pairs, activation_fn=torch.nn.Identity())
    return ((found - np.array(columns["label"])) ** 2).mean()


def test_other_passages_share_words_but_not_the_article(data):
    found = boolq.rankings(data, boolq.HELD_OUT, questions=12, others=5, pool=80)
    assert len({ranking.passage for ranking in found}) == 12
    for ranking in found:
        assert ranking.question.endswith("?")
        word, kind = ranking.passage.split()[:2]
        assert len(ranking.others) == 5
        assert not any(other.startswith(f"{word} {kind} ") for other in ranking.others)
        assert all(other.startswith(f"{word} ") for other in ranking.others[:2])
        assert not any(other.startswith(f"{word} ") for other in ranking.others[2:])
    assert found == boolq.rankings(data, boolq.HELD_OUT, questions=12, others=5, pool=80)
    with pytest.raises(SystemExit, match="80 passages for validation"):
        boolq.rankings(data, boolq.HELD_OUT, questions=500, others=5, pool=80)


def test_figures_of_a_question_follow_the_rank_of_its_passage():
    found = quality.per_question([[3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [1.0] + [2.0] * 10])
    assert found[quality.MRR] == [1.0, 0.5, 0.0]
    assert found[quality.NDCG] == pytest.approx([1.0, 1 / np.log2(3), 0.0])


def test_the_error_of_a_share_is_that_of_paired_differences():
    dense = [1.0, 0.0, 0.5, 0.9]
    assert quality.ratio_of(dense, dense) == (1.0, 0.0)
    share = quality.ratio_of([value - 0.12 for value in dense], dense)
    assert share == pytest.approx((0.8, 0.0))
    assert quality.mean_of(dense).error == pytest.approx(np.std(dense, ddof=1) / 2)
    with pytest.raises(SystemExit, match="2 questions for one model and 4"):
        quality.ratio_of([1.0, 1.0], dense)


@pytest.mark.parametrize(("kind", "reader"), [("reranker", Reranker), ("embedder", Embedder)])
def test_a_reader_is_made_cut_distilled_and_measured(kind, reader, data, run, tmp_path, monkeypatch, capsys):
    base = plain_checkpoint(tmp_path / "base", "llama")
    monkeypatch.setattr(training, "base_folder", lambda _: base)
    given = ("--data", data, "--pool", 80)
    dense, results = tmp_path / kind / "model", tmp_path / "results"
    run(training, kind, *given, "--out", tmp_path / kind, "--questions", 12, "--length", 16, "--batch", 4)
    assert isinstance(open_reader(dense), reader)
    layers = json.loads((dense / "config.json").read_text())["num_hidden_layers"]
    run(boolq, "--data", data, "--out", tmp_path / "pairs.jsonl", "--questions", 80)
    amounts = ("text.sequence_length=16", "text.evaluation_tokens=64")
    sized = {"keep": 1 - 1 / layers, "layers": "first", "assignments": (*amounts, "compute.dtype=float32")}
    half = darwinlm.prune(dense, tmp_path / "run", text=tmp_path / "pairs.jsonl", **sized).model
    assert json.loads((half / "config.json").read_text())["num_hidden_layers"] == layers - 1
    run(distilling, "labels", dense, *given, "--out", tmp_path / "labels.json", "--questions", 12)
    run(distilling, "train", half, "--labels", tmp_path / "labels.json", "--out", tmp_path / "trained", "--rate", 1e-3)
    before, after = (error_on(tmp_path / "labels.json", folder) for folder in (half, tmp_path / "trained"))
    assert after < before
    for name, folder in (("dense", dense), ("dropped-50", half), ("dropped-50+distilled", tmp_path / "trained")):
        run(quality, folder, *given, "--out", results / f"{name}.json", "--questions", 12, "--candidates", 4)
    timed = ("--data", data, "--tokenizer", dense / "tokenizer.json", "--tokens", 8, "--batches", 1, 2, "--rounds", 2)
    run(speed, f"dense={dense}", f"dropped-50={half}", *timed, "--out", results / "speed-pytorch.json")
    capsys.readouterr()
    run(table, results, "--out", tmp_path, "--speed", "pytorch, batch 2")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["dense", "dropped-50", "dropped-50+distilled"]
    assert "100.0% ± 0.0%" in lines[2]
    assert lines[3].split("|")[-3:] == lines[4].split("|")[-3:]  # distillation leaves the speed
    assert "dropped, distilled" in (tmp_path / "picture.svg").read_text()


def test_a_file_is_measured_as_a_folder(data, run, tmp_path, monkeypatch):
    """In llama.cpp, as darwinlm exports it: the same scores, and documents at a rate."""
    pytest.importorskip("llama_cpp_py_sync", reason="llama.cpp with pooling comes with the extra reading")
    monkeypatch.setattr(training, "base_folder", lambda _: plain_checkpoint(tmp_path / "base", "llama"))
    run(training, "reranker", "--data", data, "--pool", 80, "--out", tmp_path, "--questions", 4, "--length", 64)
    model, file = tmp_path / "model", tmp_path / "model.gguf"
    export_model(model, file, quantisation="f32")
    asked = boolq.rankings(data, boolq.HELD_OUT, questions=4, others=3, pool=80)
    dense, found = (torch.tensor(open_reader(path, torch.float32).scores(asked)) for path in (model, file))
    assert (found - dense).abs().max() < 1e-2 * dense.abs().max()  # keys and values are in float16
    documents = speed.documents_of(data, model / "tokenizer.json", number=3, tokens=6)
    assert len(speed.timed({"file": speed.in_llama_cpp(file)}, documents, rounds=2)["file"]) == 2


def test_pairs_for_pruning_are_of_the_training_part(data, run, tmp_path):
    run(boolq, "--data", data, "--out", tmp_path / "pairs.jsonl", "--questions", 6)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [pair["label"] for pair in pairs] == [1, 0] * 6
    for right, wrong in zip(pairs[::2], pairs[1::2], strict=True):
        assert right["query"] == wrong["query"]
        assert right["document"] != wrong["document"]
        assert all("of train" in pair["document"] for pair in (right, wrong))
