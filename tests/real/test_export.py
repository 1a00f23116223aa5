"""The demo's model with layers of different sizes, in the real llama.cpp: as good on text as in PyTorch."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny.command import command_runner
from tests.tiny.pruned import layer_row

from darwinlm.data import read_documents
from darwinlm.engines import EngineProcess
from darwinlm.errors import DataError, MissingExtraError, ModelError
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.resolve import resolve_model
from darwinlm.runs.demo import demo_model, demo_text
from darwinlm.surgery.stitch import empty_model, smaller_config

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

HEADS, GROUPS, COLUMNS, WIDTH = 9, 3, 64, 1536
CUTS = {
    7: (3, 0),
    12: (2, 1216),
    17: (2, 1024),
    19: (0, 1280),
    22: (1, 1536),
    25: (3, 1000),
}
"""KV groups and MLP channels that stay; blocks that aren't named stay whole."""
SEQUENCE, SEQUENCES = 256, 2


def cut(dense: Checkpoint, folder: Path) -> Path:
    """Cut without a database: the last KV groups and the channels of the least magnitude go."""
    sizes = [CUTS.get(block, (GROUPS, WIDTH)) for block in range(dense.n_blocks)]
    table = {block: layer_row((groups * HEADS // GROUPS, groups, width)) for block, (groups, width) in enumerate(sizes)}
    model = empty_model(smaller_config(dense, table), dense)
    tensors = dense.read()
    for block, (groups, width) in CUTS.items():
        attention, mlp = (f"model.layers.{block}.{name}" for name in ("self_attn", "mlp"))
        queries, keys = groups * HEADS // GROUPS * COLUMNS, groups * COLUMNS
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            tensors[f"{attention}.{name}.weight"] = tensors[f"{attention}.{name}.weight"][:rows]
        tensors[f"{attention}.o_proj.weight"] = tensors[f"{attention}.o_proj.weight"][:, :queries]
        down, up = (tensors[f"{mlp}.{name}.weight"].float() for name in ("down_proj", "up_proj"))
        kept = (down.norm(dim=0) * up.norm(dim=1)).topk(width).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            tensors[f"{mlp}.{name}.weight"] = tensors[f"{mlp}.{name}.weight"][kept]
        tensors[f"{mlp}.down_proj.weight"] = tensors[f"{mlp}.down_proj.weight"][:, kept]
    wanted = {name for name, _ in model.named_parameters()}
    model.load_state_dict({k: v.clone() for k, v in tensors.items() if k in wanted}, assign=True, strict=False)
    model.tie_weights()
    assert not any(weight.is_meta for weight in model.parameters())
    save_model(model.to(torch.bfloat16), folder, tokenizer=dense.tokenizer())
    return folder


def passages() -> str:
    """Source of the demo's text without its questions. Raises DataError."""
    return demo_text().replace("#question+passage", "#passage")


def held_out(checkpoint: Checkpoint, source: str) -> torch.Tensor:
    """Tokens [n, t] of a text."""
    ids: list[int] = []
    for document in read_documents(source):
        ids += checkpoint.tokenizer()(document)["input_ids"]
        if len(ids) >= SEQUENCES * SEQUENCE:
            break
    return torch.tensor(ids[: SEQUENCES * SEQUENCE]).view(SEQUENCES, SEQUENCE)


def perplexity(logits: list[torch.Tensor], tokens: torch.Tensor) -> float:
    """Of tokens [n, t], from logits [t, v] of each row."""
    losses = [torch.nn.functional.cross_entropy(found[:-1], row[1:]) for found, row in zip(logits, tokens, strict=True)]
    return float(torch.stack(losses).mean().exp())


def test_the_tokenizer_of_the_file_splits_text_as_llama_cpp_does(tmp_path: Path):
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra llama-cpp")
    try:
        source, dense = passages(), resolve_model(str(demo_model()), tmp_path / "dense")
    except (ModelError, DataError, MissingExtraError) as missing:
        pytest.skip(str(missing))
    documents = [document for _, document in zip(range(200), read_documents(source), strict=False)]
    tokenizer = dense.tokenizer()
    texts = [*documents, "a  12 and\n\n  3400 or x7\t 8"]
    assert sum(text.count(f" {digit}") for text in texts for digit in range(10)) > 100
    with EngineProcess("llama.cpp", demo_model(), context=SEQUENCE) as engine:
        for text in texts:
            assert engine.tokenize(text) == tokenizer(text)["input_ids"], text


@torch.no_grad()
def test_held_out_perplexity_in_llama_cpp(tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra llama-cpp")
    try:
        source, dense = passages(), resolve_model(str(demo_model()), tmp_path / "dense")
    except (ModelError, DataError, MissingExtraError) as missing:
        pytest.skip(str(missing))
    tokens = held_out(dense, source)
    folder = cut(dense, tmp_path / "cut")
    model = Checkpoint.open(folder).load(torch.float32)
    expected = perplexity([model(input_ids=row[None], use_cache=False).logits[0] for row in tokens], tokens)
    del model
    assert expected < 100, "the cuts went so deep that the comparison says little"

    file = tmp_path / "cut.gguf"
    ended = command_runner(monkeypatch, capsys)("export", folder, "--to", "gguf", "--quant", "f16", "--out", file)
    assert ended.code == 0, ended
    report = json.loads(Path(f"{file}.export.json").read_text())
    assert report["details"]["architecture"] == "deci"
    assert [row["right"] for row in report["comparisons"]][-1] == "the file in llama.cpp"
    assert any(note.startswith("block 25: MLP padded with zeros, 1000 → 1024") for note in report["notes"])

    with EngineProcess("llama.cpp", file, context=SEQUENCE) as engine:
        found = perplexity([torch.from_numpy(engine.logits(row.tolist())) for row in tokens], tokens)
    assert found == pytest.approx(expected, rel=0.01)
