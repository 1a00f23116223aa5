"""Mixtures of experts: what reaches each expert, the channels that each loses, and how their checkpoints are stored."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.models import FAMILIES, mlp_of
from tests.tiny.stages import result
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import family_of
from darwinlm.model.walk.stream import stream_of
from darwinlm.runtime.errors import CheckpointError
from darwinlm.steps.database.block_moments import BlockMoments, stream_moments
from darwinlm.steps.database.order import damp_
from darwinlm.steps.database.step import PruningDatabase

MIXTURES = ("mixtral", "deepseek_v2", "gpt_oss", "gemma4_text_experts")
TOGETHER = ("gpt_oss", "gemma4_text")
"""Mixtures whose checkpoints hold all experts in one tensor, as the model does."""
CHANNELS = 32


@pytest.fixture(scope="module", params=MIXTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts narrower than the residual stream: what reaches an output projection can be read off behind it."""
    own = "moe_intermediate_size" in FAMILIES[request.param]
    width = {"moe_intermediate_size" if own else "intermediate_size": CHANNELS}
    return tiny_checkpoint(tmp_path_factory.mktemp("experts") / request.param, request.param, **width)


@pytest.fixture(scope="module")
def built(folder, make_run, tmp_path_factory) -> tuple[PruningDatabase, list[BlockMoments], Tensor]:
    run = make_run(folder, tmp_path_factory.mktemp("built") / "out")
    texts = result(run, "text")
    seen = list(stream_moments(stream_of(run.context, result(run, "dense"), texts["calibration"].tokens)))
    return result(run, "database"), seen, texts["calibration"].tokens


@torch.no_grad()
def weighted_inputs(model, block: int, tokens: Tensor) -> list[Tensor]:
    """For each expert [n, d]: what it makes of every token times the token's weight for it, zero where it isn't asked.

    Found without looking inside: with the identity as the only output projection that isn't zero, it is the output.
    Where a norm follows, all is divided by what it divides the dense output by.
    """
    experts = mlp_of(model.model.layers[block]).experts
    found, seen = [], []
    handle = experts.register_forward_hook(lambda _, __, output: seen.append(output))
    model(tokens, use_cache=False)
    normed = family_of(model.config).mlp.post_norm is not None
    by = (seen[0].square().mean(-1, keepdim=True) + 1e-6).sqrt() if normed else 1
    dense = copy.deepcopy(experts.state_dict())
    if hasattr(experts, "down_proj_bias"):
        experts.down_proj_bias.zero_()
    for expert in range(experts.num_experts):
        outputs(experts).zero_()[expert, :CHANNELS] = torch.eye(CHANNELS)
        seen.clear()
        model(tokens, use_cache=False)
        found.append(seen[0][:, :CHANNELS] / by)
    handle.remove()
    experts.load_state_dict(dense)
    return found


def outputs(experts) -> Tensor:
    """A view of the output projections of all experts, [e, m, d]."""
    return experts.down_proj.mT if experts.is_transposed else experts.down_proj


def test_each_expert_is_direct_least_squares_on_channels_of_its_own(built):
    database, _, tokens = built
    reader = database.reader
    model = reader.checkpoint.load(torch.float32)
    different = 0
    for module in reader.modules:
        shape = reader.shapes[module.block, module.kind]
        if not shape.sizes.experts:
            continue
        W = outputs(mlp_of(model.model.layers[module.block]).experts).double()
        H = [damp_(x.double().T @ x.double() / tokens.numel()) for x in weighted_inputs(model, module.block, tokens)]
        energy = sum(float(((w @ h) * w).sum()) for w, h in zip(W, H, strict=True))
        widths = [level for level in module.levels if level.sizes.experts in (0, shape.sizes.experts)]
        for level in widths[1:-1]:
            kept = reader.kept(module.block, "mlp", level)
            assert kept.columns.shape == (shape.sizes.experts, level.sizes.width)
            assert kept.weight.shape == (shape.sizes.experts, W.shape[1], level.sizes.width)
            different += len({tuple(columns) for columns in kept.columns.tolist()}) > 1
            error = 0.0
            for w, h, k, weight in zip(W, H, kept.columns, kept.weight, strict=True):
                best = torch.linalg.lstsq(h[k][:, k], (w @ h)[:, k].T).solution.T
                torch.testing.assert_close(weight.double(), best, rtol=1e-3, atol=1e-4)
                V = torch.zeros_like(w)
                V[:, k] = best
                error += float((((w - V) @ h) * (w - V)).sum())
            assert reader.error(module.block, "mlp", level) == pytest.approx(error / energy, rel=1e-3)
        errors = [reader.error(module.block, "mlp", level) for level in widths]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] == pytest.approx(1)
    assert different > 3, "experts lose different channels"


@pytest.mark.parametrize("damage", ["an expert is missing", "a part is missing", "an expert is too small"])
def test_damaged_mixtures_are_refused(folder, tmp_path, damage):
    if Checkpoint.open(folder).family.model_type in TOGETHER:
        pytest.skip("its experts aren't stored one by one")
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(path)
    last = sorted(name for name in tensors if re.search(r"layers\.3\..*experts\.\d+\.(w1|gate_proj)", name))
    if damage == "an expert is missing":
        expert = last[-1].rpartition(".experts.")[0] + f".experts.{len(last) - 1}."
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(expert)}
    elif damage == "a part is missing":
        del tensors[last[1]]
    else:
        tensors[last[0]] = tensors[last[0]][:-8].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.experts\.(gate_up|down)_proj.*fetch the model again"):
        Checkpoint.open(tmp_path / "copy")
