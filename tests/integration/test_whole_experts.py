"""Whole experts, and what mixtures have beside experts: shared ones, packed weights, a router of groups, a latent."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import edit_config, edit_weights
from tests.tiny.masked import assert_equal_logits, logits, masked
from tests.tiny.reader import FirstUnits
from tests.tiny.stages import result, run_stages
from transformers import AutoModelForCausalLM, Mxfp4Config

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.model.units.space import SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.artifact import open_tensors
from darwinlm.runtime.errors import ExportError, RecipeError
from darwinlm.steps.budget.counted import latent_columns
from darwinlm.steps.stitch.stitch import stitch

WHOLE = "units.experts=whole"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("whole") / "mixtral", "mixtral", sliding_window=None)


@pytest.fixture(scope="module")
def built(folder, make_run, tmp_path_factory):
    run = make_run(folder, tmp_path_factory.mktemp("built") / "out", "database.metric=loss")
    texts = result(run, "text")
    return run, texts, result(run, "database").reader


def at(reader, **wanted):
    """The allocation in which every mixture is at a level of these sizes, and all else is whole."""
    chosen = []
    for module in reader.modules:
        levels = [i for i, level in enumerate(module.levels) if level.sizes == replace(level.sizes, **wanted)]
        chosen.append(levels[-1] if module.kind == "mlp" else len(module.levels) - 1)
    return tuple(chosen)


def test_a_mixture_that_gives_its_router_logits_is_pruned_and_still_gives_them(tmp_path, make_run):
    folder = tiny_checkpoint(tmp_path / "mixtral", "mixtral", sliding_window=None, output_router_logits=True)
    made = run_stages(make_run(folder, tmp_path / "out", WHOLE, "refit.tokens=0"), "export")
    assert made.export.folder.is_dir()
    reader = FirstUnits(Checkpoint.open(folder), UnitsSettings(mlp_multiple=8))
    assert stitch(reader, at(reader, experts=3, width=96)).config.output_router_logits


def test_levels_are_numbers_of_experts_times_widths(built):
    _, _, reader = built
    for module in reader.modules:
        shape = reader.shapes[module.block, module.kind]
        if not shape.sizes.experts:
            continue
        found = {(level.sizes.experts, level.sizes.width) for level in module.levels}
        widths = range(8, shape.sizes.width + 1, 8)
        assert found == {(0, 0)} | {(count, width) for count in range(2, 5) for width in widths}
        for level in module.levels[1:-1]:
            assert reader.error(module.block, "mlp", level) > 0
            assert reader.loss(module.block, "mlp", level) > 0
            assert reader.kept(module.block, "mlp", level).weight.shape == (level.sizes.experts, 48, level.sizes.width)


def test_experts_go_by_the_loss_without_each_of_them_alone_and_their_losses_add_up(built):
    _, _, reader = built
    with open_tensors(reader.folder / "block_0000.safetensors") as stored:
        alone = stored.get_tensor("mlp.1.losses")[:, 0]
    levels = {level.sizes.experts: level for level in reader.modules[1].levels if level.sizes.width in (0, 96)}
    ranked = sorted(range(4), key=lambda expert: -float(alone[expert]))
    for count in (2, 3):
        assert reader.best_experts(0, levels[count]).tolist() == sorted(ranked[:count])
        gone = sum(float(alone[expert]) for expert in ranked[count:])
        assert reader.loss(0, "mlp", levels[count]) == pytest.approx(gone)
    assert reader.loss(0, "mlp", levels[0]) == pytest.approx(float(alone.sum()))
    assert 0 < reader.error(0, "mlp", levels[3]) < reader.error(0, "mlp", levels[2]) < 1


@torch.no_grad()
def test_equal_numbers_are_the_plain_class_with_fewer_experts(built, folder, tmp_path):
    _, texts, reader = built
    allocation = at(reader, experts=3, width=reader.shapes[0, "mlp"].sizes.width)
    small = stitch(reader, allocation)
    assert type(small).__name__ == "MixtralForCausalLM"
    assert small.config.num_local_experts == 3
    tokens = texts["evaluation"].tokens[:2]
    assert_equal_logits(small, masked(reader, allocation), tokens)
    small.save_pretrained(tmp_path / "small")
    assert "auto_map" not in json.loads((tmp_path / "small" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(again, tokens), logits(small, tokens))
    assert block_parameters(again, "model.layers") == SearchSpace(reader.modules).params(allocation)


def test_unequal_numbers_need_the_modelling_file_and_are_refused_where_they_cannot_run(built, folder, tmp_path):
    _, _, reader = built
    allocation = list(at(reader, experts=3, width=96))
    allocation[-1] = at(reader, experts=2, width=96)[-1]
    small = stitch(reader, tuple(allocation))
    assert small.config.model_type == "darwinlm_mixtral"
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ExportError, match="its mixtures of experts differ"):
        export_model(tmp_path / "small", tmp_path / "out.gguf")


def test_a_run_over_whole_experts_keeps_its_budget_and_its_widths(folder, make_run, tmp_path):
    summary = run_stages(make_run(folder, tmp_path / "out", WHOLE, keep="70%"), "report").report
    rows = summary.allocation
    assert {row.dense_experts for row in rows} == {4}
    assert all(row.width in (0, row.dense_width) for row in rows)
    assert any(0 < row.experts < 4 for row in rows)
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    experts = config["num_local_experts"]
    assert experts == 4 if config["model_type"].startswith("darwinlm_") else experts < 4


def test_fewer_experts_than_a_token_is_sent_to_are_refused(folder, make_run, tmp_path):
    with pytest.raises(RecipeError, match=r"units.levels keeps 0.25 of the 4 experts.*sent to 2 of them.*at least 0.5"):
        run_stages(make_run(folder, tmp_path / "out", "units.levels=[25%, 75%]"), "plan")
    odd = tiny_checkpoint(tmp_path / "odd", "mixtral", num_experts_per_tok=5)
    with pytest.raises(RecipeError, match="has 4 experts, but its configuration sends each token to 5"):
        run_stages(make_run(odd, tmp_path / "out", WHOLE), "plan")


@pytest.fixture(scope="module")
def lite(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("lite") / "model", "deepseek_v2", n_shared_experts=1)


def test_experts_of_half_the_width_beside_a_shared_one_need_no_code_of_ours(lite, make_run, tmp_path):
    run = make_run(lite, tmp_path / "out")
    texts = result(run, "text")
    reader = result(run, "database").reader
    for width, name, count in ((48, "DeepseekV2ForCausalLM", 2), (40, "DarwinDeepseekV2ForCausalLM", 1)):
        allocation = tuple(
            next(
                i
                for i, level in reversed(list(enumerate(module.levels)))
                if not level.sizes.experts or (level.sizes.width, level.sizes.experts) == (width, 5)
            )
            for module in reader.modules
        )
        small = stitch(reader, allocation)
        assert type(small).__name__ == name
        assert small.config.n_shared_experts == count
        assert small.model.layers[1].mlp.shared_experts.down_proj.in_features == 96
        assert_equal_logits(small, masked(reader, allocation), texts["evaluation"].tokens[:2])
        small.save_pretrained(tmp_path / name)
        again = Checkpoint.open(tmp_path / name)
        assert module_shapes(again)[-1].sizes.width == width


@torch.no_grad()
def test_the_loss_without_a_mixture_includes_its_shared_expert(lite, make_run, tmp_path):
    run = make_run(lite, tmp_path / "out", "database.metric=loss")
    reader, text = result(run, "database").reader, result(run, "text")["calibration"].tokens
    S = load_file(tmp_path / "out" / "stages" / "gradients" / "block_0001.safetensors")["mlp"]
    model, seen = AutoModelForCausalLM.from_pretrained(lite, dtype=torch.float32), []
    model.model.layers[1].mlp.shared_experts.register_forward_hook(lambda _, __, y: seen.append(y.flatten(0, 1)))
    model(text)
    y = torch.cat(seen)
    with open_tensors(reader.folder / "block_0001.safetensors") as stored:
        of_experts = float(stored.get_tensor("mlp.1.losses")[:, 0].sum())
    module = next(module for module in reader.modules if (module.block, module.kind) == (1, "mlp"))
    expected = of_experts + float(((y @ S) * y).sum()) / len(y) / 2
    assert reader.loss(1, "mlp", module.levels[0]) == pytest.approx(expected, rel=1e-4)


def test_experts_behind_groups_can_only_be_narrowed(tiny_folder, make_run, tmp_path):
    grouped = tiny_folder("deepseek_v3")
    plan = result(make_run(grouped, tmp_path / "out"), "plan")
    assert {level.sizes.experts for module in plan.space.modules for level in module.levels} == {0, 8}
    with pytest.raises(RecipeError, match=r"router of block 2 mlp chooses among groups.*set units\.experts=width"):
        result(make_run(grouped, tmp_path / "other", "units.experts=whole"), "plan")


def test_the_cache_holds_a_latent(tiny_folder, make_run, tmp_path):
    plan = result(make_run(tiny_folder("glm4_moe_lite"), tmp_path / "out", "budget.bytes=2.5MB", keep=None), "plan")
    weights = sum(module.levels[-1].params for module in plan.space.modules)
    context, batch = 4096, 1
    cached = 4 * latent_columns(Checkpoint.open(tiny_folder("glm4_moe_lite")).config) * context * batch
    assert plan.cost.dense - plan.cost.fixed == 4 * weights + 4 * cached


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts' weights in blocks of 32 four-bit floats with a scale each, as OpenAI publishes them."""
    generator = torch.Generator().manual_seed(0)
    for name in list(tensors):
        tensor = tensors.pop(name)
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = tensor.shape
            blocks = (experts, rows, columns // 32)
            tensors[f"{name}_blocks"] = torch.randint(256, (*blocks, 16), generator=generator, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.full(blocks, 122, dtype=torch.uint8)
        else:
            tensors[name] = tensor.bfloat16()


def test_packed_experts_are_what_transformers_reads(make_run, tmp_path):
    model = tiny_checkpoint(tmp_path / "model", "gpt_oss", hidden_size=64, intermediate_size=32)
    edit_weights(model, packed)
    edit_config(model, dtype="bfloat16", quantization_config={"quant_method": "mxfp4"})
    theirs = AutoModelForCausalLM.from_pretrained(model, quantization_config=Mxfp4Config(dequantize=True))
    ours = Checkpoint.open(model).read(dtype=torch.bfloat16)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[name].bfloat16(), tensor), name
    run_stages(make_run(model, tmp_path / "out", "refit.tokens=0"), "export")
    assert Checkpoint.open(tmp_path / "out" / "model").family.model_type == "gpt_oss"
