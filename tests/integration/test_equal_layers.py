"""Models with equal layers and fewer blocks: the family's own class runs them, in a process without darwinlm."""

import io
import json

import pytest
import torch
from rich.console import Console
from tests.model.families.test_without_package import run_elsewhere
from tests.tiny.cutting import GONE, Kept, cut, logits, near, tokens
from tests.tiny.models import FAMILIES, tiny_model
from tests.tiny.stages import run_stages

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import families
from darwinlm.model.surgery.depth import KEPT, can_lose_blocks, in_family_class
from darwinlm.model.units.cost import parameter_costs
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.space import SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import BudgetError, RecipeError
from darwinlm.steps.budget.first import check_first, first_layers
from darwinlm.steps.stitch.stitch import stitch

PLAIN = """
from transformers import AutoModelForCausalLM

ids = torch.tensor(json.loads(sys.argv[1]))
found = {}
for name in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    with torch.no_grad():
        found[name] = {"class": type(model).__module__, "logits": model(ids).logits.tolist()}
    found[name]["layers"] = len(model.model.layers)
print(json.dumps(found))
"""
LINKED = {"gemma4_text"}
"""Families whose blocks read more than the residual stream."""
NEVER = {name for name, family in families().items() if family.attention.cut == "never"}
"""Families whose attentions stay, and so do their blocks."""


def equal_plan(model_type: str) -> list[Kept]:
    """The same sizes in all blocks, without one of them."""
    family = families()[model_type]
    heads = None if family.attention.cut != "heads" or family.mixer else (1, 2)
    kept = Kept(heads, 1.0 if family.mlp.experts else 1 / 3)
    return [kept, GONE, kept, kept]


def test_every_family_without_a_block_is_its_own_class_elsewhere(tmp_path):
    pruned, names = {}, []
    for name in FAMILIES:
        tiny_model(name).save_pretrained(tmp_path / "dense")
        if name in NEVER or not can_lose_blocks(Checkpoint.open(tmp_path / "dense")):
            continue
        names.append(name)
        pruned[name] = cut(name, equal_plan(name))
        pruned[name].save_pretrained(tmp_path / "unequal")
        small = in_family_class(pruned[name], Checkpoint.open(tmp_path / "unequal"))
        assert torch.equal(logits(small, tokens()), logits(pruned[name], tokens())), name
        small.save_pretrained(tmp_path / name)
        config = read_json(tmp_path / name / "config.json")
        assert config["model_type"] == FAMILIES[name].get("model_type", name)
        assert "auto_map" not in config
        assert config[KEPT] == [0, 2, 3]
    assert set(FAMILIES) - set(names) == NEVER | LINKED
    found = run_elsewhere(PLAIN, [json.dumps(tokens().tolist()), *names], tmp_path)
    for name in names:
        assert found[name]["class"].startswith("transformers.models."), name
        assert found[name]["layers"] == 3
        near(torch.tensor(found[name]["logits"]), logits(pruned[name], tokens()), pruned[name])


def test_every_family_runs_its_first_layers_or_says_that_it_does_not(tmp_path):
    """In the family's own class. Where something of every block stays, or blocks read others' keys, none can go."""
    refused = set()
    for name in FAMILIES:
        tiny_model(name).save_pretrained(tmp_path / "dense")
        dense = Checkpoint.open(tmp_path / "dense")
        reader = ModuleReader(dense, UnitsSettings())
        space = SearchSpace(reader.modules)
        try:
            check_first(dense, space)
        except RecipeError as error:
            assert f"the last layers of this {dense.family.model_type} model can't be left out" in str(error)  # noqa: PT017
            refused.add(name)
            continue
        cost = parameter_costs(space)
        kept = first_layers(space, cost, int(0.8 * cost.dense))
        assert {module.block for module, level in zip(space.modules, kept, strict=True) if level} < {0, 1, 2, 3}, name
        cut_model = stitch(reader, kept)
        cut_model.save_pretrained(tmp_path / "cut")
        small = in_family_class(cut_model, Checkpoint.open(tmp_path / "cut"))
        assert type(small).__module__.startswith("transformers.models."), name
        assert torch.equal(logits(small, tokens()), logits(cut_model, tokens())), name
    mixing = {name for name in FAMILIES if name in families() and families()[name].mixer}
    assert refused == NEVER | LINKED | mixing


def test_a_setting_of_all_layers_may_be_one_number(tmp_path):
    """Hunyuan's experts for each token are a list, or a number."""
    tiny_model("hunyuan_v1_moe", moe_topk=2).save_pretrained(tmp_path / "dense")
    assert can_lose_blocks(Checkpoint.open(tmp_path / "dense"))


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_a_run_with_equal_layers(model_type, tiny_folder, make_run, tmp_path):
    """A block of the Llama goes, and in the mixture, where none can, the sizes of all layers shrink."""
    run = make_run(tiny_folder(model_type), tmp_path / "out", "search.layers=equal", "search.generations=9")
    results = run_stages(run, "report")
    saved = read_json(tmp_path / "out" / "model" / "config.json")
    assert saved["model_type"] == model_type
    assert not list((tmp_path / "out" / "model").glob("*.py"))
    assert not results.report.export.custom_code
    kept = saved.get(KEPT, [0, 1, 2, 3])
    assert (len(kept) < 4) == (model_type == "llama")
    gone = [block.block for block in results.report.allocation if not block.heads and not block.width]
    assert gone == [block for block in range(4) if block not in kept]
    assert len({(block.channels, block.experts) for block in results.report.allocation if block.experts}) <= 1
    assert results.report.budget.used <= results.report.budget.upper
    record = results.search.record
    assert record["kl"] <= record["start_kl"]
    assert results.report.models["refit"].kl <= results.report.models["stitched"].kl


@pytest.mark.parametrize(
    ("model_type", "settings", "said", "equal"),
    [
        ("gemma", ("units.quantisation=gguf",), "all layers get the same sizes", True),
        ("gemma", (), "prune with --for gguf", False),
        ("gemma", ("search.layers=unequal", "units.quantisation=gguf"), None, False),
        ("llama", ("units.quantisation=gguf",), None, False),
        ("mixtral", ("units.quantisation=gguf",), "mixtral models only with equal layers: with", True),
        ("minimax_m2", ("units.quantisation=q8_0",), "with --for q8_0 all layers get the same sizes", True),
        ("mixtral", (), "prune with --for gguf", False),
    ],
)
def test_layers_follow_what_llama_cpp_needs(model_type, settings, said, equal, tiny_folder, make_run, tmp_path):
    console = Console(file=io.StringIO(), width=200, record=True)
    settings = ("units.mlp_multiple=32", *settings)
    run = make_run(tiny_folder(model_type), tmp_path / "out", *settings, reporter=Reporter(console))
    assert (run_stages(run, "plan").plan.equal is not None) == equal
    text = console.export_text()
    assert (said is None and "llama.cpp" not in text) or (said is not None and said in text)


@pytest.mark.parametrize(("model_type", "most"), [("llama", 3), ("gemma3_text", 0), ("smollm3", 0)])
def test_blocks_stay_where_engines_go_by_their_numbers(model_type, most, tiny_folder, make_run, tmp_path):
    run = make_run(tiny_folder(model_type), tmp_path / "out", "search.layers=equal", "units.mlp_multiple=32")
    assert run_stages(run, "plan").plan.equal.most_removed == most


@pytest.mark.parametrize(
    ("model_type", "settings", "keep", "error", "said"),
    [
        ("llama", ("search.method=paper",), "60%", RecipeError, "search: method=paper .* layers=equal"),
        ("llama", ("units.attention=query_head",), "60%", RecipeError, "use units.attention=lattice"),
        (
            "llama",
            ("units.levels=[50%]",),
            "10%",
            BudgetError,
            "--layers equal: the smallest model .* raise the budget",
        ),
        ("gemma4_text", (), "60%", BudgetError, "--layers equal"),
    ],
)
def test_what_equal_layers_cannot_be(model_type, settings, keep, error, said, tiny_folder, make_run, tmp_path):
    with pytest.raises(error, match=said):
        run_stages(
            make_run(tiny_folder(model_type), tmp_path / "out", "search.layers=equal", *settings, keep=keep), "plan"
        )
    assert not (tmp_path / "out" / "stages" / "database").exists()


def test_a_model_with_unequal_layers_is_refused(finished_llama, make_run, tmp_path):
    with pytest.raises(RecipeError, match="already differ; prune its original"):
        run_stages(make_run(finished_llama / "model", tmp_path / "out", "search.layers=equal"), "plan")
