"""Times of modules from times of whole models, which are timed as graphs where there are any."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.levels import module_levels
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.recipe import BudgetSettings
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.budget.kinds import Latency, Speedup
from darwinlm.steps.latency import graphs
from darwinlm.steps.latency.graphs import WARM_UP, GraphedDecoding, cache_name
from darwinlm.steps.latency.latency_table import Ratios, lines_of, time_of
from darwinlm.steps.latency.measure import check_fastest
from darwinlm.steps.latency.timing import ModelTimer, Timing


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"speedup": 3}, None),
        ({"speedup": 6}, "6x is out of reach: .* only 4.00x as fast"),
        ({"latency": "600ms"}, None),
        ({"latency": "400ms"}, "400 ms is out of reach: .* only as fast as 500 ms"),
        ({"keep": 0.5}, None),
    ],
)
def test_a_bound_that_no_model_reaches_is_refused_before_the_table(bound, message):
    with nullcontext() if message is None else pytest.raises(BudgetError, match=message):
        check_fastest(BudgetSettings(**bound), Timing(0.25, 2.0))


def test_modules_take_their_share_of_the_models_time():
    mlp, mixture = partial(LayerSizes, "mlp"), partial(LayerSizes, "mlp", experts=2)
    at = {mlp(10): 0.6, mlp(20): 0.9, mlp(30): 0.8, mixture(20): 1.0}
    lines = lines_of(Ratios(at, 0.5, {1: 4, 2: 4}), dense=8.0)
    assert dict(lines[1]) == pytest.approx({10: 0.2, 20: 0.8, 30: 0.8}), "a wider module never takes less"
    assert dict(lines[2]) == pytest.approx({20: 1.0})
    assert time_of({"mlp": lines}, mlp()) == 0
    assert time_of({"mlp": lines}, mlp(15)) == pytest.approx(0.5)
    assert time_of({"mlp": lines}, mlp(25)) == pytest.approx(0.8)


TOKENS = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The steps that would be recorded as CUDA graphs; a replay runs them."""
    made: list[Callable[[], object]] = []

    def recorded(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
        made.append(step)
        return step

    monkeypatch.setattr(graphs, "recorded", recorded)
    return made


def growing(model, steps: int) -> list[torch.Tensor]:
    """Logits of the same steps with a cache that grows."""
    cache = model(input_ids=TOKENS, use_cache=True).past_key_values
    named = {cache_name(model): cache}
    return [model(input_ids=TOKENS[:, :1], use_cache=True, **named).logits for _ in range(steps)]


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "gemma4_text", "qwen3_5_text", "lfm2", "granitemoehybrid", "deepseek_v2"]
)
@torch.inference_mode()
def test_a_cache_of_fixed_size_gives_the_same_logits(model_type, tiny_folder, recordings):
    model = Checkpoint.open(tiny_folder(model_type)).load(torch.float32)
    decoding = GraphedDecoding(model, TOKENS, 4)
    for logits in growing(model, WARM_UP + 3)[WARM_UP:]:
        torch.testing.assert_close(decoding.step(), logits, rtol=1e-4, atol=1e-4)
    decoding.rewind()
    for _ in range(4):
        assert decoding.step().isfinite().all()


def timer_of(folder, **request: int):
    checkpoint = Checkpoint.open(folder)
    shapes = {shape.place: shape for shape in module_shapes(checkpoint)}
    work = BudgetSettings(**{"prefill_tokens": 4, "decode_tokens": 6, **request})
    timer = ModelTimer(checkpoint, shapes, work, dtype=torch.float32, device=torch.device("cpu"), runs=1)
    levels = {place: module_levels(checkpoint.family, shape, UnitsSettings()).levels for place, shape in shapes.items()}
    dense = {place: own[-1].sizes for place, own in levels.items()}
    cut = {place: own[len(own) // 2].sizes for place, own in levels.items() if place != (0, "attention")}
    return timer, dense, cut


@pytest.mark.parametrize("model_type", ["llama", "gemma4_text"])
def test_models_with_fewer_tokens_are_timed(model_type, tiny_folder):
    """Also where each block has an embedding of its own, and the padding's number is among those that go."""
    timer, dense, cut = timer_of(tiny_folder(model_type), prefill_tokens=2)
    timer._tokens %= 64
    model = timer.build(cut, 64)
    assert {len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight)} == {64}
    assert timer.compare(dense, dense, 64).ratio > 0


def test_the_head_takes_time_in_proportion_to_its_tokens():
    cost = CostModel("nanoseconds", ((0, 30), (0, 50)), fixed=20, head=10)
    small = cost.with_tokens(0.4, longer=1.25)
    assert (small.fixed, small.head, small.dense, small.original) == (14, 4, 94, 100)
    assert Speedup(value=2).limit(small) == 40, "text that is a quarter longer has as much less time for each token"
    assert Latency(value="0.06 us").limit(small) == 48
    assert cost.digest != small.digest


def test_models_are_timed_as_graphs_where_there_are_any(recordings, tiny_llama):
    """The dense one's is recorded once, those of others go with them; an attention may be gone."""
    timer, dense, cut = timer_of(tiny_llama)
    timer.compare(dense, cut, timer.rows)
    assert not recordings, "on a CPU nothing is recorded"
    timer.graphs = True
    for _ in range(2):
        ratio, seconds = timer.compare(dense, cut, timer.rows)
        assert ratio > 0 < seconds
    assert len(recordings) == 3
    assert timer._reference.decoding is not None
    assert timer.graphs


def test_both_are_timed_as_they_are_where_one_can_not_be_recorded(recordings, tiny_llama, monkeypatch):
    timer, dense, cut = timer_of(tiny_llama)
    timer.graphs = True
    whole = graphs.GraphedDecoding.__init__

    def failing(self, model, *rest):
        if recordings:  # the dense one's is there
            raise RuntimeError("operation not permitted when stream is capturing")
        whole(self, model, *rest)

    monkeypatch.setattr(graphs.GraphedDecoding, "__init__", failing)
    ratio, _ = timer.compare(dense, cut, timer.rows)
    assert ratio > 0
    assert not timer.graphs
    assert timer._reference.decoding is None
