"""Fits of a mixture's experts against least squares over all of them at once."""

import numpy as np
import pytest
import torch
from torch import nn

from darwinlm.families.family import families
from darwinlm.streaming.experts import Routing
from darwinlm.surgery import experts as fitted
from darwinlm.surgery.experts import Mixture, fit_experts

EXPERTS, WIDTH, CHANNELS, ASKED = 3, 6, 5, 2
NAMES = families()["mixtral"].mlp.experts


class Tiny(nn.Module):
    """A mixture as transformers holds it."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.gate_up_proj = torch.randn(EXPERTS, 2 * CHANNELS, WIDTH, generator=generator)
        self.down_proj = torch.randn(EXPERTS, WIDTH, CHANNELS, generator=generator)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.tanh(gate) * up


def side_by_side(module: Tiny, routing: Routing) -> torch.Tensor:
    """What all experts' projections get, one beside the other [n, e d], written out token by token."""
    rows = torch.zeros(len(routing.hidden), EXPERTS, CHANNELS)
    for row, hidden, chosen, weights in zip(rows, routing.hidden, routing.chosen, routing.weights, strict=True):
        for expert, weight in zip(chosen, weights, strict=True):
            gate, up = (module.gate_up_proj[expert] @ hidden).chunk(2)
            row[expert] = weight * torch.tanh(gate) * up
    return rows.flatten(1)


def text(module: Tiny, seed: int, asked=range(EXPERTS), scale: float = 1.0) -> Mixture:
    """A text on which a change of the experts' weights would mend most of what is missing."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(EXPERTS * CHANNELS, WIDTH, generator=torch.Generator().manual_seed(9))
    routing, missing = [], []
    for n in (60, 40):
        order = torch.stack([torch.randperm(len(asked), generator=generator) for _ in range(n)])
        chosen = torch.tensor(list(asked))[order][:, :ASKED]
        hidden = torch.randn(n, WIDTH, generator=generator)
        routing.append(Routing(hidden, chosen, torch.rand(chosen.shape, generator=generator)))
        noise = 0.3 * torch.randn(n, WIDTH, generator=generator)
        missing.append(side_by_side(module, routing[-1]) @ change + noise)
    return Mixture(module, NAMES, routing, missing, scale)


def joint(module: Tiny, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of all projections and what is missing, over the whole text."""
    X = torch.cat([mixture.scale * side_by_side(module, routing) for routing in mixture.routing])
    return X.double().numpy(), torch.cat(mixture.missing).double().numpy()


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_experts_that_take_turns_come_to_joint_least_squares(monkeypatch, scale):
    monkeypatch.setattr(fitted, "ROUNDS", 60)
    module = Tiny(torch.Generator().manual_seed(0))
    X, missing = joint(module, text(module, 1, scale=scale))
    change, *_ = np.linalg.lstsq(X, missing, rcond=None)
    same = text(module, 1, scale=scale), text(module, 1, scale=scale)
    weights, _ = fit_experts(*same, module.down_proj, (1e-9,), "block 0 mlp")
    expected = module.down_proj.double().numpy() + change.T.reshape(WIDTH, EXPERTS, CHANNELS).transpose(1, 0, 2)
    np.testing.assert_allclose(weights.double().numpy(), expected, rtol=1e-2, atol=1e-2)
    left = torch.cat(same[1].missing).double().numpy()
    assert (left**2).sum() == pytest.approx(((missing - X @ change) ** 2).sum(), rel=1e-4)


def test_fits_that_only_do_harm_are_not_taken():
    module = Tiny(torch.Generator().manual_seed(0))
    held_out = text(module, 2)
    for missing in held_out.missing:
        missing.zero_()
    weights, ridge = fit_experts(text(module, 1), held_out, module.down_proj, (0.01,), "block 0 mlp")
    assert ridge is None
    assert torch.equal(weights, module.down_proj)
