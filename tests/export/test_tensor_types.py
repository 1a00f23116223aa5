"""A type for each tensor of a GGUF file: which weights' losses it has, and what fits into the file."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from tests.export.test_gguf_families import BESIDE, GEMMA4
from tests.tiny.pruned import any_checkpoint, plain_checkpoint, pruned_checkpoint
from torch import nn

from darwinlm.calibration.expert_rounding import WatchedExperts
from darwinlm.export.tensor_types import UNKNOWN, _in_file, choose_types, room_for, tensor_bytes
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.gguf.layout import choose_layout
from darwinlm.gguf.quantise import types_for
from darwinlm.gguf.sizes import BYTES
from darwinlm.runtime.errors import BudgetError, ExportError
from darwinlm.streaming.experts import expert_module
from darwinlm.surgery.reshape import Reshaper

pytest.importorskip("gguf", reason="the extra gguf")

MIXED = {0: (0, 0, 96), 1: (2, 2, 0), 2: (2, 1, 64)}
SQUARE = {"hidden_size": 128}
FEWER = {1: (2, 1, 96)}
WIDE = {"hidden_size": 256, "num_attention_heads": 8}
MAMBA = {"num_hidden_layers": 4, "mamba_n_heads": 4, "mamba_d_head": 32}
DELTA = {"num_hidden_layers": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
UNLIMITED = {"sliding_window": None}
EXPERTS = [f"blk.1.ffn_{part}_exps" for part in ("gate", "up", "down")]
QKV = ("attn_q", "attn_k", "attn_v")
QUARTERS = {"blk.1.attn_q": 1 / 2, "blk.1.attn_k": 1 / 4, "blk.1.attn_v": 1 / 4}


class Opened:
    """A model on its way into a file, with a loss of each weight and type."""

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        self.reshaper, self.tied = Reshaper(checkpoint), checkpoint.config.tie_word_embeddings
        self.layout = choose_layout(self.reshaper, 32)
        model, family = checkpoint.skeleton(), checkpoint.family
        weights = {name: each.weight for name, each in model.named_modules() if isinstance(each, nn.Linear)}
        weights[family.embedding] = model.get_submodule(family.embedding).weight
        if self.tied:
            weights.pop(family.head, None)
        columns = {f"{name}.weight": weight.shape[-1] for name, weight in weights.items()}
        for block in range(checkpoint.n_blocks):
            mixture = expert_module(model.get_submodule(f"{family.layers}.{block}"), family.mlp)
            if mixture is not None:
                prefix = f"{checkpoint.block_prefix(block)}{family.mlp.prefix}"
                tensors = WatchedExperts(mixture, family.mlp).weights()
                columns |= {f"{prefix}{name}": tensor.shape[-1] for name, tensor in tensors.items()}
        self.losses = {
            name: {
                kind: (1 + number % 7) * 2.0 ** (-2 * 8 * BYTES[kind][1] / BYTES[kind][0]) for kind in types_for(count)
            }
            for number, (name, count) in enumerate(columns.items())
            if types_for(count)
        }

    def choose(self, room: int = 10**9):
        return choose_types(self.reshaper, self.layout, self.losses, room)

    def only(self, part: str) -> dict[str, float]:
        """Losses of tensors in Q8_0 if each weight with this in its name has a loss of 1, and others have none."""
        losses = {name: {"Q8_0": 1.0} if part in name else {} for name in self.losses}
        found = _in_file(losses, self.reshaper, self.layout, room_for(self.reshaper, self.layout, 10**9)[0])
        return {name: row["Q8_0"] for name, row in found.items() if row}


def opened(folder: Path, model_type: str, rows=None, **overrides) -> Opened:
    return Opened(any_checkpoint(folder / "model", model_type, rows, **overrides))


@pytest.mark.parametrize(
    ("model_type", "rows", "overrides", "part", "expected"),
    [
        ("llama", None, {}, "1.self_attn.k_proj", {"blk.1.attn_k": 1}),
        ("phi3", None, SQUARE, "1.self_attn.qkv_proj", {"blk.1.attn_qkv": 1}),
        ("phi3", None, SQUARE, "1.mlp.gate_up_proj", {"blk.1.ffn_up": 1}),
        ("phi3", FEWER, {}, "1.self_attn.qkv_proj", QUARTERS),
        ("phi3", FEWER, {}, "1.mlp.gate_up_proj", {"blk.1.ffn_gate": 1 / 2, "blk.1.ffn_up": 1 / 2}),
        ("qwen3", FEWER, {}, "1.self_attn.q_proj", {"blk.1.attn_qkv": 1}),
        ("qwen3", FEWER, {}, "1.self_attn", {"blk.1.attn_qkv": 3, "blk.1.attn_output": 1}),
        ("glm", None, {}, "1.mlp.gate_up_proj", {"blk.1.ffn_gate": 1 / 2, "blk.1.ffn_up": 1 / 2}),
        ("glm4", None, {}, "1.mlp.gate_up_proj", {"blk.1.ffn_up": 1}),
        ("granitemoehybrid", None, MAMBA, "1.shared_mlp.input", {"blk.1.ffn_gate": 1 / 2, "blk.1.ffn_up": 1 / 2}),
        ("granitemoehybrid", None, MAMBA, "1.shared_mlp.output", {"blk.1.ffn_down": 1}),
        ("apertus", None, {}, "1.mlp.up_proj", {"blk.1.ffn_up": 1}),
        ("mixtral", None, UNLIMITED, "1.mlp.experts", dict.fromkeys(EXPERTS, 1)),
        ("gemma4_text_experts", None, GEMMA4 | BESIDE, "1.experts.gate_up_proj", {"blk.1.ffn_gate_up_exps": 2}),
        ("llama", {0: (0, 0, 0), 2: (2, 1, 64)}, {}, "2.mlp.up_proj", {"blk.1.ffn_up": 1}),
        ("llama", {0: (0, 0, 0), 2: (2, 1, 64)}, {}, "layers.0.", {}),
        ("llama", None, {}, "lm_head", {"output": 1}),
        ("llama", None, {}, "embed_tokens", {"token_embd": 1}),
        ("qwen3", None, {}, "embed_tokens", {"token_embd": 1}),
        ("granite", FEWER, {"tie_word_embeddings": True}, "embed_tokens", {"token_embd": 1, "output": 1}),
    ],
)  # fmt: skip
def test_where_the_loss_of_a_weight_goes(tmp_path, model_type, rows, overrides, part, expected):
    """Whether the checkpoint or the file joins projections, whatever blocks the file leaves out."""
    found = opened(tmp_path, model_type, rows, **overrides).only(part)
    assert found == {f"{name}.weight": pytest.approx(share) for name, share in expected.items()}


@pytest.mark.parametrize(
    ("model_type", "rows", "overrides", "unknown"),
    [
        ("llama", None, {}, set()),
        ("gemma3_text", None, {"num_hidden_layers": 7, "layer_types": None}, set()),
        ("qwen3", FEWER, {}, set()),
        ("phi3", FEWER, {}, set()),
        ("qwen3_5_text", None, DELTA, set()),
        ("granitemoehybrid", None, MAMBA, set()),
        ("mixtral", None, UNLIMITED, set()),
        ("llama", {1: (4, 2, 40)}, {}, {"ffn_down"}),
        ("llama", MIXED, {}, {*QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down"}),
    ],
)
def test_only_padded_rows_and_zeros_have_no_known_loss(tmp_path, model_type, rows, overrides, unknown):
    given = opened(tmp_path, model_type, rows, **overrides)
    shapes, _ = room_for(given.reshaper, given.layout, 10**9)
    smallest = given.choose(least(given)).types
    assert smallest.keys() == shapes.keys()
    assert {re.sub(r"^blk\.\d+\.|\.weight$", "", name) for name, kind in smallest.items() if kind == UNKNOWN} == unknown
    for name, kind in smallest.items():
        if kind != UNKNOWN:
            assert tensor_bytes(shapes[name], kind) == tensor_bytes(shapes[name], types_for(shapes[name][-1])[0])


def least(given: Opened) -> int:
    """The smallest room in which tensors fit, to 32 bytes."""
    low, high = 0, 10**7
    while high - low > 32:
        middle = (low + high) // 2
        try:
            given.choose(middle)
        except BudgetError:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize(
    ("model_type", "rows", "overrides"),
    [
        ("llama", None, WIDE),
        ("llama", {1: (0, 0, 0), 2: (2, 1, 40)}, {}),
        ("phi3", None, SQUARE),
        ("mixtral", None, UNLIMITED),
    ],
)
def test_a_smaller_file_never_loses_less_and_none_is_too_large(tmp_path, model_type, rows, overrides):
    given = opened(tmp_path, model_type, rows, **overrides)
    shapes, left = room_for(given.reshaper, given.layout, 10**9)
    first, most = least(given), given.choose().bytes
    assert set(given.choose().types.values()) == {"Q8_0"}
    lost = []
    for room in [*range(first, most, (most - first) // 9), most]:
        chosen = given.choose(room)
        sizes = [tensor_bytes(shape, chosen.types[name]) for name, shape in shapes.items()]
        assert chosen.bytes == 10**9 - left + sum(sizes)
        assert room - 0.03 * most < chosen.bytes <= room
        lost.append(chosen.loss)
    assert all(one >= other - 1e-3 * one for one, other in pairwise(lost))
    assert lost[0] > 2 * lost[-1]


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_what_cannot_fit_is_refused(tmp_path, model_type):
    given = opened(tmp_path, model_type, **(UNLIMITED if model_type == "mixtral" else {}))
    fits = least(given)
    for call in (room_for, lambda *arguments: choose_types(*arguments[:2], given.losses, arguments[2])):
        with pytest.raises(
            BudgetError, match=r"even the smallest types need .* for the tensors, but the file has room"
        ):
            call(given.reshaper, given.layout, fits - 64)
    assert room_for(given.reshaper, given.layout, fits)


def test_rows_without_a_type_are_refused(tmp_path):
    given = Opened(plain_checkpoint(tmp_path / "model", "llama", hidden_size=48))
    with pytest.raises(
        ExportError, match=r"a bound on the file needs rows .* multiple of 32, .* has rows of 48: use f16"
    ):
        room_for(given.reshaper, given.layout, 10**9)


def test_the_pads_of_a_pruned_model_are_in_the_sum(tmp_path):
    padded, exact = (
        Opened(pruned_checkpoint(tmp_path / str(width), "llama", {1: (4, 2, width)})).choose().bytes
        for width in (40, 64)
    )
    assert padded == exact


def test_sizes_of_tensors_are_multiples_of_the_alignment():
    assert tensor_bytes((3, 32), "Q8_0") == 128
    assert tensor_bytes((7,), "F32") == 32
    assert tensor_bytes((2, 3, 256), "Q4_K") == 6 * 144 + 0 * 32
