"""What DeepSeek, GLM and gpt-oss have beside experts: shared ones, corrected scores, packed weights, more blocks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import edit_config, edit_weights
from tests.tiny.masked import assert_equal_logits, masked
from tests.tiny.stages import result, run_stages
from transformers import AutoModelForCausalLM, Mxfp4Config

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.runtime.artifact import open_tensors
from darwinlm.runtime.errors import RecipeError
from darwinlm.search.budgets import latent_columns
from darwinlm.surgery.stitch import stitch


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("lite") / "model", "deepseek_v2", n_shared_experts=1)


def test_experts_of_half_the_width_beside_a_shared_one_need_no_code_of_ours(folder, make_run, tmp_path):
    run = make_run(folder, tmp_path / "out")
    texts = result(run, "text")
    reader = result(run, "database").reader
    for width, name, count in ((48, "DeepseekV2ForCausalLM", 2), (40, "DarwinDeepseekV2ForCausalLM", 1)):
        allocation = tuple(
            next(
                i
                for i, level in reversed(list(enumerate(module.levels)))
                if not level.experts or (level.width, level.experts) == (width, 5)
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
        assert module_shapes(again)[-1].width == width


@torch.no_grad()
def test_the_loss_without_a_mixture_includes_its_shared_expert(folder, make_run, tmp_path):
    run = make_run(folder, tmp_path / "out", "database.metric=loss")
    reader, text = result(run, "database").reader, result(run, "text")["calibration"].tokens
    S = load_file(tmp_path / "out" / "stages" / "gradients" / "block_0001.safetensors")["mlp"]
    model, seen = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []
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
    assert {level.experts for module in plan.space.modules for level in module.levels} == {0, 8}
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
    folder = tiny_checkpoint(tmp_path / "model", "gpt_oss", hidden_size=64, intermediate_size=32)
    edit_weights(folder, packed)
    edit_config(folder, dtype="bfloat16", quantization_config={"quant_method": "mxfp4"})
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True))
    ours = Checkpoint.open(folder).read(dtype=torch.bfloat16)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[name].bfloat16(), tensor), name
    run_stages(make_run(folder, tmp_path / "out", "refit.tokens=0"), "export")
    assert Checkpoint.open(tmp_path / "out" / "model").family.model_type == "gpt_oss"
