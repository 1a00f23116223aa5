"""Every kind of budget on tiny models, compared with the saved model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.stages import result, run_stages
from tests.tiny.summaries import Page
from transformers import AutoModelForCausalLM

from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runs.sweep import _ordered, member_name, prune_sweep
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.latency.timing import ModelTimer, Timing

TOLERANCE = 0.05


def saved(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)


def used(found):
    return found.plan.cost.of(found.search.allocation)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_parameters_of_the_whole_saved_model(tiny_folder, make_run, tmp_path, model_type):
    """qwen3 ties its embedding, which counts once."""
    model = tiny_folder(model_type)
    dense = AutoModelForCausalLM.from_pretrained(model).num_parameters()
    target = int(0.75 * dense)
    until = "report" if model_type == "llama" else "export"
    found = run_stages(make_run(model, tmp_path / "out", f"budget.params={target}", keep=None), until)
    counted = saved(tmp_path / "out").num_parameters()
    assert target * (1 - TOLERANCE) <= counted <= target
    assert used(found) == counted
    if until != "report":
        return
    assert found.report.budget.used == counted
    assert found.report.budget.kind == "params"
    assert "parameters of the dense model's" in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'")


@pytest.mark.parametrize(
    ("model_type", "unit"),
    [*((name, "lattice") for name in ("llama", "gemma3_text", "gemma4_text", "qwen3_5_text")), ("llama", "query_head")],
)
def test_bytes_of_weights_and_cache(tiny_folder, make_run, tmp_path, model_type, unit):
    """Compared with the file and the cache of the saved model. gemma3 has sliding windows of 8."""
    context = 24
    settings = ("budget.bytes=350kB", f"budget.context={context}", f"units.attention={unit}")
    model = tiny_folder(model_type)
    plan = result(make_run(model, tmp_path / "plan", *settings, keep=None), "plan")
    target = int(0.7 * plan.cost.dense)
    settings = (f"budget.bytes={target}", *settings[1:])
    found = run_stages(make_run(model, tmp_path / "out", *settings, keep=None), "export")
    weights = sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / "model" / "model.safetensors").values())
    tokens = torch.randint(3, 250, (1, context))
    with torch.no_grad():
        cache = saved(tmp_path / "out")(input_ids=tokens, use_cache=True).past_key_values
    kept = sum(
        part.nbytes // part.shape[2] * (8 if getattr(layer, "is_sliding", False) else context)
        for layer in cache.layers
        for part in (getattr(layer, name, None) for name in ("keys", "values"))  # linear attention has neither
        if part is not None
    )
    assert used(found) == weights + kept
    assert target * (1 - TOLERANCE) <= weights + kept <= target


def seconds_of(choice):
    """A machine on which the times of modules add up; the MLP's has a step."""
    total = 1.0
    for sizes in choice.values():
        total += 0.03 * sizes.heads + 0.02 * sizes.groups if sizes.kind == "attention" else 0
        total += 0.004 * sizes.width + 0.1 * (sizes.width > 48) if sizes.kind == "mlp" else 0
    return total


@pytest.fixture
def steady_machine(monkeypatch):
    """Replace the timer, and record the timed models."""
    timed = []

    def compare(self, dense, choice, tokens):
        timed.append(choice)
        del tokens
        return Timing(seconds_of(choice) / seconds_of(dense), seconds_of(dense))

    monkeypatch.setattr(ModelTimer, "compare", compare)
    monkeypatch.setattr("darwinlm.steps.latency.step.POINTS", 20)
    return timed


def test_times_that_add_up_are_predicted(tiny_llama, make_run, tmp_path, steady_machine):
    run = make_run(tiny_llama, tmp_path / "out", "budget.speedup=1.5x", keep=None)
    plan = result(run, "plan")
    table = json.loads((run.context.path("latency") / "table.json").read_text())
    assert table["worst_error"] < 0.01
    assert plan.budget.limit == pytest.approx(1e9 * table["dense"] / 1.5, rel=1e-5)
    assert plan.cost.dense == pytest.approx(1e9 * table["dense"], rel=1e-4)
    assert len(steady_machine) < sum(len(module.levels) for module in plan.space.modules), "not one for each block"
    count = len(steady_machine)
    again = make_run(tiny_llama, tmp_path / "out", "budget.speedup=1.4x", keep=None)
    result(again, "plan")
    assert len(steady_machine) == count, "the table serves every speed"


@pytest.mark.parametrize(("model_type", "speedup"), [("llama", 1.5), ("gemma4_text", 1.3)])
def test_a_speedup_is_met(tiny_folder, make_run, tmp_path, steady_machine, model_type, speedup):
    """In hybrids, and with modules that are never cut, only the others are timed apart."""
    run = make_run(tiny_folder(model_type), tmp_path / "out", f"budget.speedup={speedup}x", keep=None)
    found = run_stages(run, "search")
    plan = found.plan
    space = plan.space
    reached = seconds_of(space.sizes(space.dense)) / seconds_of(space.sizes(found.search.allocation))
    assert reached == pytest.approx(speedup, rel=0.06)
    assert plan.cost.unit == "nanoseconds"


@pytest.mark.parametrize("model_type", ["llama", "qwen3_5_text", "glm4_moe"])
def test_real_clocks_run_too(tiny_folder, make_run, tmp_path, monkeypatch, model_type):
    """Times of so small a model are noise, so only the table's form is checked."""
    monkeypatch.setattr("darwinlm.steps.latency.step.POINTS", 2)
    monkeypatch.setattr("darwinlm.steps.latency.step.RUNS", 1)
    settings = ("budget.latency=1000s", "budget.prefill_tokens=8")
    run = make_run(tiny_folder(model_type), tmp_path / "out", *settings, "budget.decode_tokens=4", keep=None)
    with pytest.raises(BudgetError, match=r"budget\.latency: 1000 s requested, more than the whole model"):
        result(run, "plan")
    table = json.loads((run.context.path("latency") / "table.json").read_text())
    assert set(table["seconds"]) == ({"mlp"} if model_type == "glm4_moe" else {"attention", "mlp"})
    assert table["dense"] > 0
    assert len(table["checks"]) == 3


def linked(folder):
    """Pages of models to which the page of a sweep leads."""
    return [link for link in Page((folder / "index.html").read_text()).links if "report" in link]


def test_a_family_shares_its_database(tiny_llama, make_run, tmp_path):
    run = make_run(tiny_llama, tmp_path / "unused")
    recipes = [load_recipe(run.recipe, (), {"budget.keep": keep}) for keep in ("40%", "80%", "60%")]
    sweep = prune_sweep(recipes, tmp_path / "out", reporter=run.context.reporter)
    assert list(sweep) == ["keep-80", "keep-60", "keep-40"]
    assert (tmp_path / "out" / "stages" / "database").is_dir()
    for name, summary in sweep.items():
        folder = tmp_path / "out" / name
        for shared in ("gradients", "database"):
            assert not (folder / "stages" / shared).exists()
        assert saved(folder).num_parameters() == summary.saved.params
        assert json.loads((folder / "summary.json").read_text())["steps"]["search"]["kl"] >= 0
    sizes = [summary.saved.params for summary in sweep.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert linked(tmp_path / "out") == [f"{name}/report.html" for name in sweep]
    assert all((tmp_path / "out" / link).is_file() for link in linked(tmp_path / "out"))
    again = prune_sweep(recipes, tmp_path / "out", reporter=run.context.reporter)
    assert {name: each.models for name, each in again.items()} == {name: each.models for name, each in sweep.items()}
    assert all(stage.reused for each in again.values() for stage in each.stages)
    (tmp_path / "out" / "keep-60" / "summary.json").write_text("{")
    prune_sweep(recipes[:1], tmp_path / "out", reporter=run.context.reporter)
    assert linked(tmp_path / "out") == ["keep-80/report.html", "keep-40/report.html"], "with the earlier ones"
    prune_sweep([load_recipe(recipes[1], ["search.seed=5"])], tmp_path / "out", overwrite=True)
    assert linked(tmp_path / "out") == ["keep-80/report.html"], "with those of the same recipe"


@pytest.mark.parametrize(
    ("kind", "given", "ordered"),
    [
        ("keep", ("33.3%", "75%"), ["keep-75", "keep-33.3"]),
        ("params", ("1.5M", "2.7B"), ["params-2.7B", "params-1.5M"]),
        ("file", ("1MiB", "95MB"), ["file-90.59906006MiB", "file-1MiB"]),
        ("bytes", ("100", "4GiB"), ["bytes-4GiB", "bytes-100"]),
        ("speedup", ("3x", "2x"), ["speedup-2x", "speedup-3x"]),
        ("latency", ("30ms", "40ms"), ["latency-40ms", "latency-30ms"]),
    ],
)
def test_the_largest_member_is_pruned_first(kind, given, ordered):
    recipes = [load_recipe(Recipe(), (), {f"budget.{kind}": bound}) for bound in given]
    assert [member_name(recipe.budget) for recipe in _ordered(recipes)] == ordered
