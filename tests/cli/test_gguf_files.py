"""Our own GGUF files as inputs: they answer, are measured and shown by llama.cpp, with the tokenizer in them."""

import io
import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint

from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.formats.gguf.file_sizes import predicted_sizes
from darwinlm.formats.opened import open_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.report.summary import FileFigures
from darwinlm.runs.exporting import export_model

pytest.importorskip("cyllama", reason="comes with the extra gguf")

UNEQUAL = {0: (2, 1, 96), 1: (0, 0, 64), 2: (4, 2, 32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pruned_checkpoint(tmp_path_factory.mktemp("unequal") / "model", "llama", UNEQUAL)


@pytest.fixture(scope="module")
def file(folder):
    export_model(folder, folder.parent / "m.gguf", quantisation="f32")
    return folder.parent / "m.gguf"


def test_its_logits_and_answers_are_those_of_the_folder(command, monkeypatch, folder, file):
    """Also of padded texts, of the last tokens, and of a text that goes on."""
    ours, theirs = open_model(str(file)), open_model(str(folder), dtype="float32")
    assert (ours.engine, theirs.engine, ours.params) == ("llama.cpp", "PyTorch", theirs.params)
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    tokens = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    for keep, shown in ((0, None), (5, None), (0, mask)):
        more = {} if shown is None else {"attention_mask": shown}
        logits = [each.model(input_ids=tokens, logits_to_keep=keep, **more).logits for each in (ours, theirs)]
        there = torch.ones(2, logits[0].shape[1], dtype=torch.bool) if shown is None else shown.bool()
        found, meant = (each[there] for each in logits)
        assert (found - meant).norm() < 5e-3 * meant.norm()
    said = []
    for model in (file, folder):
        monkeypatch.setattr(sys, "stdin", io.StringIO("the river turns\nand then?\n"))
        dtype = ("--dtype", "float32") if model == folder else ()
        said.append(command("chat", model, "--temperature", "0", "--max-tokens", "8", *dtype).succeeded().out)
    assert said[0] == said[1]


def test_quality_of_a_quantised_file_against_the_folder(command, folder, tiny_text_file, tmp_path):
    export_model(folder, tmp_path / "q.gguf", quantisation="q4_0")
    request = ("--text", tiny_text_file, "--against", folder, "--sequence-length", "32", "--tokens", "256")
    ended = command("evaluate", tmp_path / "q.gguf", *request, "--out", tmp_path / "e.json").succeeded()
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["engine"], found["request"]["dtype"]) == ("llama.cpp", "auto")
    assert 0 < found["texts"][0]["kl"] < 2
    assert "run by llama.cpp" in ended.out
    assert command("evaluate", tmp_path / "q.gguf", *request, "--out", tmp_path / "e.json").code == 0


def test_a_file_that_nothing_here_can_read_names_what_to_do(command, prune, monkeypatch, file):
    prune(model=file).refused("can't read the GGUF file", "give the model's original folder or hub id".capitalize())
    monkeypatch.setitem(ENGINES, LLAMA_CPP, replace(ENGINES[LLAMA_CPP], package="not_installed_here"))
    command("chat", file).refused("can't read the GGUF file", "in llama.cpp (pip install 'darwinlm[gguf]')")


UNLIKE = {0: (0, 0, 96), 1: (2, 1, 0), 2: (4, 2, 64), 3: (0, 0, 0), 4: (4, 2, 96)}


@pytest.mark.parametrize(
    ("family", "sizes", "unlike"),
    [
        ("llama", (96, 192, 8), None),
        ("llama", (256, 512, 8), None),
        ("llama", (64, 96, 5), UNLIKE),
        ("qwen3", (64, 96, 5), UNLIKE),
        ("nemotron", (128, 256, 4), None),
    ],
)
def test_predicted_sizes_are_those_of_the_files(tmp_path, monkeypatch, family, sizes, unlike):
    """Rows of whole and of broken blocks of 256, absent sub-layers and blocks, joined projections, own heads."""
    monkeypatch.setattr("darwinlm.formats.gguf.checked_file._check", lambda job, path: None)  # sizes alone matter here
    sizes = dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers"), sizes, strict=True))
    sizes |= {"tie_word_embeddings": True} if family != "llama" else {}
    make = plain_checkpoint if unlike is None else partial(pruned_checkpoint, rows=unlike)
    folder = make(tmp_path / "model", family, **sizes)
    predicted = predicted_sizes(Checkpoint.open(folder))
    same = 0
    for quantisation in ("q8_0", "q4_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m"):
        out = tmp_path / f"{quantisation}.gguf"
        export_model(folder, out, quantisation=quantisation)
        error = predicted[quantisation] - out.stat().st_size
        assert abs(error) <= 2048
        same = error if quantisation == "q8_0" else same
        assert error == pytest.approx(same, abs=64), "what isn't tensors is the same in all files"
    file = FileFigures(bytes=predicted["q4_k_m"] + 1, dense=predicted, predicted=predicted)
    assert file.smaller == "q4_k_m"
