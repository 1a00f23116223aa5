"""The whole pipeline on tiny random models, against least squares and passes of whole models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.tiny.masked import logits
from tests.tiny.stages import run_stages
from tests.tiny.whole import Whole

from darwinlm.model.walk.moments import SecondMoment
from darwinlm.model.walk.outputs import output_projection
from darwinlm.model.walk.stream import stream_of
from darwinlm.runtime.run import Run
from darwinlm.steps.database.block_moments import stream_moments
from darwinlm.steps.database.order import damp_
from darwinlm.steps.search.fitness import Fitness

CASES = [("llama", "kv_group"), ("qwen2", "query_head")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def whole(
    request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], make_run: Callable[..., Run], tmp_path_factory
) -> Whole:
    model_type, units = request.param
    folder = tmp_path_factory.mktemp("whole") / "out"
    run = make_run(tiny_folder(model_type), folder, f"units.attention={units}")
    return Whole(run, run_stages(run, "report"))


def test_the_database_is_direct_least_squares(whole):
    """Weights and errors of a few levels of every module, solved anew on the same second moments."""
    reader = whole.reader
    modules = {(module.block, module.kind): module for module in reader.modules}
    for seen in stream_moments(stream_of(whole.run.context, whole.checkpoint, whole.text["calibration"].tokens)):
        for kind in whole.checkpoint.family.kinds:
            H = damp_(seen.moments[kind].double())
            W = reader.dense_weight(seen.block, kind).double()
            energy = float(((W @ H) * W).sum())
            levels = modules[seen.block, kind].levels
            for level in levels[1 : -1 : max(1, len(levels) // 4)]:
                kept = reader.kept(seen.block, kind, level)
                k = kept.columns
                assert len(k) == len(k.unique()) == level.sizes.width
                best = torch.linalg.lstsq(H[k][:, k], (W @ H)[:, k].T).solution.T
                torch.testing.assert_close(kept.weight.double(), best, rtol=1e-3, atol=1e-4)
                V = torch.zeros_like(W)
                V[:, k] = best
                error = float((((W - V) @ H) * (W - V)).sum()) / energy
                assert reader.error(seen.block, kind, level) == pytest.approx(error, rel=1e-3, abs=1e-6)
            assert reader.error(seen.block, kind, levels[0]) == pytest.approx(1)
            assert reader.error(seen.block, kind, levels[-1]) == 0


def test_the_block_stream_sees_what_hooks_on_the_whole_model_see(whole):
    tokens = whole.text["calibration"].tokens
    model = whole.checkpoint.load(torch.float32)
    family = whole.checkpoint.family
    moments: dict[tuple[int, str], SecondMoment] = {}
    for block, layer in enumerate(model.get_submodule(family.layers)):
        for kind in family.kinds:
            output = output_projection(layer, family, kind)
            assert output is not None
            moment = moments[block, kind] = SecondMoment(output.in_features)
            output.register_forward_pre_hook(lambda _, inputs, to=moment: to.add(inputs[0]))
    for rows in torch.split(tokens, 5):  # another batch size than the stream's
        logits(model, rows)
    for seen in stream_moments(stream_of(whole.run.context, whole.checkpoint, whole.text["calibration"].tokens)):
        for kind, found in seen.moments.items():
            expected = moments[seen.block, kind]
            assert expected.count == tokens.numel()
            torch.testing.assert_close(found, expected.take(), rtol=1e-4, atol=1e-5)


def test_fitness_on_more_text_is_that_of_all_of_it(whole):
    """Text that was seen isn't read again, and candidates are compared alone as with others."""
    tokens, placed = whole.text["fitness"].tokens, whole.placed()
    n_tokens = tokens.numel()
    alone, together = (Fitness(placed, tokens, batch_tokens=96) for _ in range(2))
    candidates = whole.random_allocations(3, seed=5)
    for n in (33, 64, n_tokens):
        found = together.kls(candidates, n)
        assert [alone.kl(each, n) for each in candidates] == found
    assert Fitness(placed, tokens, batch_tokens=96).kls(candidates, n_tokens) == pytest.approx(found, rel=1e-5)
