"""The order in which experts go, against models that run without them, are refitted slowly, and are run as they are."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.checkpoint import stream_over, tiny_checkpoint

from darwinlm.database.expert_order import RIDGE, STRENGTH, expert_order
from darwinlm.database.lens import Lens
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import NumericsError

BLOCK, LENGTH = 2, 24
TOKENS = torch.randint(3, 250, (9, LENGTH), generator=torch.Generator().manual_seed(0))
FIT, JUDGED = TOKENS[:6], TOKENS[6:]
CASES = [
    ("mixtral", {}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("gpt_oss", {}),
    ("deepseek_v2", {}),
    ("ernie4_5_moe", {}),
    ("gemma4_text_experts", {}),
]


class Slow:
    """A model whose experts in one block are removed, refitted and judged one set after another.

    Letters: n tokens, m residual width, d channels.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model, self.names = checkpoint.load(torch.float32), checkpoint.family.mlp
        self.k = checkpoint.family.mlp.experts.chosen_of(checkpoint.config)
        (_, _, _, self.target), self.after, _, _ = self.passed(self.model, FIT)
        _, self.judged_after, self.last, self.logits = self.passed(self.model, JUDGED)

    def passed(self, model: Any, tokens: torch.Tensor) -> Any:
        """Arguments and result of the experts, streams after their block and after the last one, and logits."""
        seen: dict[str, Any] = {}
        layers = model.model.layers
        hooks = [
            self.experts(model).register_forward_hook(lambda _, given, out: seen.update(call=(*given, out))),
            layers[BLOCK].register_forward_hook(lambda _, __, out: seen.update(after=first(out))),
            layers[-1].register_forward_hook(lambda _, __, out: seen.update(last=first(out))),
        ]
        logits = model(tokens, use_cache=False).logits
        for hook in hooks:
            hook.remove()
        return seen["call"], seen["after"], seen["last"], logits

    def experts(self, model: Any) -> Any:
        block = model.model.layers[BLOCK]
        return block.get_submodule(f"{self.names.prefix}{self.names.experts.name}")

    def without(self, gone: set[int]) -> Any:
        """A copy whose router and experts have lost some rows."""
        small = copy.deepcopy(self.model)
        block = small.model.layers[BLOCK]
        router = block.get_submodule(f"{self.names.prefix}{self.names.experts.router}")
        experts = self.experts(small)
        stay = [expert for expert in range(experts.num_experts) if expert not in gone]
        owner = block.get_submodule(self.names.name) if self.names.name else block
        tensors = [*router.named_parameters(), *router.named_buffers(), *experts.named_parameters()]
        if owner is not block:
            tensors += [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if name.endswith("e_score_correction_bias"):
                tensor.data = tensor.data[..., stay]
            elif name != "scale":
                tensor.data = tensor.data[stay]
        router.num_experts = experts.num_experts = len(stay)
        if hasattr(owner, "n_routed_experts"):
            owner.n_routed_experts = len(stay)
        return small

    def refit(self, small: Any) -> None:
        """Two rounds of ridge regressions; the weights end three quarters of the way."""
        (hidden, chosen, weights, _), _, _, _ = self.passed(small, FIT)
        experts, transposed = self.experts(small), self.names.experts.transposed
        before = experts.down_proj.data.clone()
        by = self.target.square().mean(-1, keepdim=True).add(1e-6).sqrt() if self.names.post_norm else torch.ones(1)
        for expert in [*range(len(before)), *range(len(before))]:
            token, place = torch.where(chosen == expert)
            missing = ((self.target - experts(hidden, chosen, weights)) / by)[token]
            gate_up = experts.gate_up_proj[expert]
            inputs = hidden[token] @ (gate_up if transposed else gate_up.T)
            if hasattr(experts, "gate_up_proj_bias"):
                inputs = inputs + experts.gate_up_proj_bias[expert]
            x = (experts._apply_gate(inputs) * weights[token, place, None] / by.expand(len(hidden), 1)[token]).double()
            d = x.shape[1]
            damped = torch.cat([x, torch.eye(d) * (RIDGE * x.square().sum() / d).sqrt()])
            wanted = torch.cat([missing.double(), torch.zeros(d, missing.shape[1])])
            change = torch.linalg.lstsq(damped, wanted).solution.float()
            if len(token):
                experts.down_proj.data[expert] += change if transposed else change.T
        experts.down_proj.data = torch.lerp(before, experts.down_proj.data, STRENGTH)

    def judged(self, small: Any) -> tuple[float, float]:
        """Squared error of the experts' output, and KL with the block's error added after the last block."""
        (*_, output), after, _, _ = self.passed(small, JUDGED)
        (*_, dense), _, _, _ = self.passed(self.model, JUDGED)
        by = dense.square().mean(-1, keepdim=True).add(1e-6).sqrt() if self.names.post_norm else 1
        return float(((output - dense) / by).square().sum(-1).mean()), self.divergence(after - self.judged_after)

    def divergence(self, error: torch.Tensor) -> float:
        """KL if an error is added to the stream after the last block."""

        def replace(_: Any, __: Any, out: Any) -> Any:
            moved = self.last + error
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        hook = self.model.model.layers[-1].register_forward_hook(replace)
        q = self.model(JUDGED, use_cache=False).logits.double().log_softmax(-1)
        hook.remove()
        p = self.logits.double().log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).mean())

    def loss(self, gone: set[int]) -> tuple[float, float]:
        small = self.without(gone)
        self.refit(small)
        return self.judged(small)

    def emptied(self) -> float:
        """KL without the whole mixture, with its shared expert."""
        empty = copy.deepcopy(self.model)
        block = empty.model.layers[BLOCK]
        for name in (self.names.experts.name, self.names.experts.shared):
            if name is not None:
                module = block.get_submodule(f"{self.names.prefix}{name}")
                module.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        return self.divergence(self.passed(empty, JUDGED)[1] - self.judged_after)


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def orders(folder: Path) -> list[Any]:
    """What the product finds for every block."""
    stream = stream_over(folder, TOKENS, 2 * LENGTH)
    lens = Lens(lambda rows: stream_over(folder, rows, 2 * LENGTH), TOKENS)
    found = []
    for block in range(stream.checkpoint.n_blocks):
        stream.load(block, block + 1)
        found.append(lens.order(block, stream.decoder.blocks[block]))
        stream.unload(block)
    return found


@pytest.mark.parametrize(("model_type", "settings"), CASES)
@torch.no_grad()
def test_experts_go_one_by_one_where_least_is_lost_after_a_refit(model_type, settings, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", model_type, **settings)
    found, slow = orders(folder)[BLOCK], Slow(Checkpoint.open(folder))
    count = slow.experts(slow.model).num_experts
    gone: set[int] = set()
    for kept in range(count - 1, slow.k - 1, -1):
        costs = {expert: slow.loss(gone | {expert}) for expert in range(count) if expert not in gone}
        cheapest = min(costs, key=lambda expert: costs[expert][1])
        if model_type == "ernie4_5_moe":  # trials are approximate: without an expert, its others may be chosen
            cheapest = int(found.experts[kept])
        assert int(found.experts[kept]) == cheapest
        gone.add(cheapest)
        assert (float(found.errors[kept]), float(found.losses[kept])) == pytest.approx(costs[cheapest], rel=2e-3)
    assert sorted(found.experts.tolist()) == list(range(count))
    assert found.losses[: slow.k].tolist() == pytest.approx([slow.emptied()] * slow.k, rel=1e-3)
    (*_, dense), _, _, _ = slow.passed(slow.model, JUDGED)
    by = dense.square().mean(-1, keepdim=True).add(1e-6).sqrt() if slow.names.post_norm else 1
    assert float(found.errors[0]) == pytest.approx(float((dense / by).square().sum(-1).mean()), rel=1e-3)
    assert (float(found.errors[count]), float(found.losses[count])) == (0, 0)


def test_of_many_experts_several_go_at_once_and_those_with_many_tokens_are_not_tried():
    costs = torch.tensor([(7.0 * expert) % 40 + 1 for expert in range(40)], dtype=torch.float64)
    tokens = costs.clone()
    tokens[0] = 1e6
    counts = []

    def judge(alive: torch.Tensor, trials: Any) -> Any:
        assert torch.equal(trials[0], alive)
        counts.append(len(trials) - 1)
        losses = torch.stack([costs[~trial].sum() for trial in trials])
        return losses * 2, losses

    def used(alive: torch.Tensor) -> torch.Tensor:
        return tokens.masked_fill(~alive, torch.inf)

    order = expert_order(40, 4, used, judge, device=torch.device("cpu"))
    by_cost = costs[1:].argsort().add(1).tolist()
    # As long as more than eight remain. Then all are tried, also the cheap one with many tokens.
    assert order.experts.tolist()[::-1][:33] == [*by_cost[:32], 0]
    assert counts == [10, *[8] * 15, 7, 6, 5, 0]
    assert order.losses[35] == costs[by_cost[:5]].sum()
    assert order.losses[40] == 0
    assert torch.equal(order.errors, 2 * order.losses)
    assert bool((order.losses[4:40] > order.losses[5:41]).all())  # also between steps


@torch.no_grad()
def test_a_router_with_groups_keeps_all_experts(tmp_path):
    found = orders(tiny_checkpoint(tmp_path / "model", "deepseek_v3"))
    assert [each is None for each in found] == [True, True, False, False]
    assert found[2].experts.tolist() == list(range(8))
    assert found[2].losses[0] > 0
    assert (found[2].losses[8], found[2].errors[8]) == (0, 0)


@torch.no_grad()
def test_a_loss_that_is_not_finite_is_an_error(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "model", "mixtral")
    monkeypatch.setattr(Lens, "losses", lambda self, errors: torch.full((len(errors),), torch.nan).double())
    with pytest.raises(NumericsError, match=r"block 0 of .*the loss without some experts isn't finite"):
        orders(folder)
