"""REAM against a slow implementation around the family's own model, and merges that must change nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.tiny.checkpoint import stream_over, tiny_checkpoint
from tests.tiny.models import tiny_model
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, silu

from darwinlm.database.modules import ModuleReader
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.expert_tensors import as_stored, by_rows
from darwinlm.families.family import family_of
from darwinlm.recipe import UnitsSettings
from darwinlm.streaming.experts import expert_module, expert_output
from darwinlm.surgery.stitch import stitch
from lab.comparison.ream import grouped, mean_outputs, merge_experts, merged_experts

TOKENS = torch.randint(3, 250, (6, 24), generator=torch.Generator().manual_seed(0))
UNITS = UnitsSettings(mlp_multiple=8)


class Slow:
    """Merges a Mixtral in memory, one block after another, with loops over tokens, experts and channels."""

    def __init__(self, checkpoint: Checkpoint, count: int) -> None:
        self.model, self.count = checkpoint.load(torch.float32), count
        self.groups = {block: self.merge(layer.mlp) for block, layer in enumerate(self.model.model.layers)}

    def merge(self, mlp: Any) -> list[list[int]]:
        """Merge one block on the stream of the merged blocks before it; returns its groups."""
        seen: list[Tensor] = []
        hook = mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
        self.model(TOKENS, use_cache=False)
        hook.remove()
        (hidden,) = seen
        self.experts, router = mlp.experts, mlp.gate.weight
        shares = (hidden @ router.T).softmax(-1)
        outputs = [torch.stack([self.output(expert, x) for x in hidden]) for expert in range(len(router))]
        chosen = shares.topk(2).indices
        score = torch.zeros(len(router))
        for expert, output in enumerate(outputs):
            mine = [row for row, among in enumerate(chosen.tolist()) if expert in among]
            weights = [shares[row, expert] / shares[row, chosen[row]].sum() for row in mine]
            score[expert] = sum(w * output[row].norm() for w, row in zip(weights, mine, strict=True)) / len(mine)
        groups = grouped(score, self.alike(hidden @ router.T, shares, outputs), self.count)
        merged = {group[0]: self.mean(group, score, hidden) for group in groups}
        stay = sorted(merged)
        for name in ("gate_up_proj", "down_proj"):
            setattr(mlp.experts, name, nn.Parameter(torch.stack([merged[expert][name] for expert in stay])))
        mlp.gate.weight = nn.Parameter(router[stay])
        mlp.experts.num_experts = mlp.gate.num_experts = len(stay)
        return groups

    def output(self, expert: int, x: Tensor) -> Tensor:
        return self.experts.down_proj[expert] @ self.channels(expert, x)

    def channels(self, expert: int, x: Tensor) -> Tensor:
        gate, up = (self.experts.gate_up_proj[expert] @ x).chunk(2)
        return silu(gate) * up

    def alike(self, logits: Tensor, shares: Tensor, outputs: list[Tensor]) -> Tensor:
        means = [(shares[:, [expert]] * output).mean(0) for expert, output in enumerate(outputs)]
        rows = [logits[:, expert] / logits[:, expert].norm() for expert in range(len(means))]
        apart = torch.stack([torch.stack([(one - other).norm() for other in rows]) for one in rows])
        cosines = torch.stack([torch.stack([cosine_similarity(a, b, dim=0) for b in means]) for a in means])
        return ((cosines + 1) / 2 + 1 - apart / apart.max()) / 2

    def mean(self, group: list[int], score: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for expert in group:
            places = self.places(group[0], expert, hidden)
            both = torch.cat([places, places + len(places)])
            share = score[expert] / score[group].sum()
            parts = {
                "gate_up_proj": self.experts.gate_up_proj[expert][both],
                "down_proj": self.experts.down_proj[expert][:, places],
            }
            for name, part in parts.items():
                total[name] = total.get(name, 0) + share * part
        return total

    def places(self, first: int, other: int, hidden: Tensor) -> Tensor:
        cost: Any = 0
        for kind in (self.activations, self.weights):
            a, b = (kind(expert, hidden) for expert in (first, other))
            cost = cost + (a[:, None] - b[None]).norm(dim=-1)
        return torch.tensor(linear_sum_assignment(cost.numpy())[1])

    def activations(self, expert: int, hidden: Tensor) -> Tensor:
        rows = torch.stack([self.channels(expert, x) for x in hidden]).T
        return rows / rows.norm(dim=1, keepdim=True)

    def weights(self, expert: int, _: Tensor) -> Tensor:
        gate, up = self.experts.gate_up_proj[expert].chunk(2)
        rows = torch.cat([gate, up, self.experts.down_proj[expert].T], 1)
        return rows / rows.norm(dim=1, keepdim=True)


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 3])
def test_a_merged_mixture_is_that_of_the_slow_implementation(tmp_path, count):
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "mixtral", "mixtral", sliding_window=None))
    slow = Slow(checkpoint, count)
    stream = stream_over(checkpoint, TOKENS, 64)
    reader = merge_experts(stream, TOKENS, UNITS, _with_experts(checkpoint, count))
    assert reader.groups == slow.groups
    small = stitch(reader, _with_experts(checkpoint, count))
    assert small.config.num_local_experts == count
    ours, theirs = (model(TOKENS, use_cache=False).logits for model in (small, slow.model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def _with_experts(checkpoint: Checkpoint, count: int) -> tuple[int, ...]:
    chosen = []
    for module in ModuleReader(checkpoint, UNITS).modules:
        full = module.levels[-1]
        experts = min(count, full.experts)
        chosen.append(next(i for i, at in enumerate(module.levels) if (at.experts, at.width) == (experts, full.width)))
    return tuple(chosen)


@torch.no_grad()
@pytest.mark.parametrize(
    "model_type", ["mixtral", "gpt_oss", "deepseek_v2", "granitemoehybrid_experts", "gemma4_text_experts"]
)
def test_an_expert_merged_with_itself_in_another_order_stays(model_type):
    model = tiny_model(model_type)
    part = family_of(model.config).mlp
    names, block = part.experts, model.model.layers[-1]
    mixture: Any = expert_module(block, part)
    hidden = torch.randn(50, model.config.hidden_size)
    inside = {f"{part.prefix}{names.name}.{leaf}": tensor for leaf, tensor in mixture.named_parameters()}
    width = by_rows(part, f"{names.name}.{names.output}", getattr(mixture, names.output)).shape[2]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    for name, tensor in inside.items():
        rows, leaf = by_rows(part, name.removeprefix(part.prefix), tensor).clone(), name.rpartition(".")[2]
        if leaf == names.output:
            rows[1] = rows[0][:, order]
        else:
            rows[1] = torch.cat([half[order] for half in rows[0].chunk(2)]) if names.rows_of(leaf) else rows[0]
        tensor.copy_(as_stored(part, name.removeprefix(part.prefix), rows))
    before = expert_output(mixture, hidden, 0)
    torch.testing.assert_close(expert_output(mixture, hidden, 1), before)
    merged = merged_experts(mixture, part, dict(inside), hidden, [[0, 1], [2]], torch.tensor([2.0, 1.0, 1.0]))
    assert merged.keys() == inside.keys()
    for name, tensor in inside.items():
        torch.testing.assert_close(merged[name], tensor)
        tensor.copy_(merged[name])
    torch.testing.assert_close(expert_output(mixture, hidden, 0), before)


def test_an_expert_that_no_token_reaches_still_counts():
    model = tiny_model("mixtral")
    part, block = family_of(model.config).mlp, model.model.layers[0]
    inside = {f"mlp.experts.{leaf}": tensor.detach() for leaf, tensor in block.mlp.experts.named_parameters()}
    hidden = torch.randn(30, model.config.hidden_size)
    groups, scores = [[0, 1], [2]], torch.tensor([3.0, 0.0, 1.0, 0.0])
    with torch.no_grad():
        merged = merged_experts(block.mlp.experts, part, inside, hidden, groups, scores)
        expected = merged_experts(block.mlp.experts, part, inside, hidden, groups, torch.tensor([3.0, 1.0, 1.0, 1.0]))
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name])


@torch.no_grad()
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_outputs_count_by_the_score_of_their_expert_among_all(scores):
    model = tiny_model("mixtral")
    names = family_of(model.config).mlp.experts.model_copy(update={"scores": scores})
    mixture, hidden, logits = model.model.layers[0].mlp.experts, torch.randn(5, 48), torch.randn(5, 4)
    shares = logits.sigmoid() if scores == "sigmoid" else logits.exp() / logits.exp().sum(1, keepdim=True)
    found = mean_outputs(mixture, names, SimpleNamespace(hidden=hidden, logits=logits))
    for expert in range(4):
        gate, up = (mixture.gate_up_proj[expert] @ hidden.T).chunk(2)
        outputs = (mixture.down_proj[expert] @ (silu(gate) * up)).T
        torch.testing.assert_close(found[expert], (shares[:, [expert]] * outputs).mean(0))


def test_the_best_experts_take_the_most_similar_ones_first():
    scores = torch.tensor([1.0, 5.0, 4.0, 0.5, 0.1, 3.0])
    alike = torch.eye(6)
    alike[1] = torch.tensor([0.1, 1.0, 0.9, 0.3, 0.2, 0.8])
    assert grouped(scores, alike, 4) == [[1, 3], [2, 4], [5], [0]]
    assert grouped(scores, alike, 3) == [[1, 3], [2, 0], [5, 4]]


@pytest.mark.parametrize(("count", "size"), [(96, 16), (64, 32)])
def test_groups_are_as_large_as_in_the_paper(count, size):
    scores, alike = torch.rand(128), torch.rand(128, 128)
    groups = grouped(scores, alike, count)
    assert [len(group) for group in groups] == [size, size, 3, *[1] * (count - 3)]
    assert sorted(expert for group in groups for expert in group) == list(range(128))
