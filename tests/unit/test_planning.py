"""The plan: counts compared with real models and artifacts, and advice for what doesn't fit."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS, stream_over
from tests.tiny.command import Command
from tests.tiny.models import FAMILIES
from tests.tiny.published import PARAMETERS, published_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from darwinlm.calibration.gradients import output_gradients
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.pruned import pruned_classes, pruned_config
from darwinlm.models.resolve import describe_model
from darwinlm.needs import need as needs_need
from darwinlm.needs.need import Need
from darwinlm.needs.sizes import Sizes
from darwinlm.planning.devices import find_device
from darwinlm.planning.plan import make_plan
from darwinlm.recipe import load_recipe
from darwinlm.report.wording import count
from darwinlm.runtime.errors import FamilyError


class Operations(TorchDispatchMode):
    """Counts as FlopCounterMode does, whose tracking of modules can't follow gradients of inputs alone."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def sizes_of(folder: Path, *assignments: str) -> Sizes:
    return Sizes(Checkpoint.describe(folder), load_recipe(None, (*SETTINGS, *assignments), {"model": str(folder)}))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma"])
def test_forward_is_what_the_flop_counter_counts(model_type: str, tiny_folder) -> None:
    folder = tiny_folder(model_type)
    sizes = sizes_of(folder)
    model = Checkpoint.open(folder).load(torch.float32)
    model.set_attn_implementation("eager")
    tokens = torch.arange(4 * 32).view(4, 32)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False)
    counted = counter.get_total_flops() / tokens.numel()
    # Norms and biases aren't matrix products.
    assert sizes.forward + sizes.head == pytest.approx(counted, rel=0.05)


def projections(sizes: Sizes) -> float:
    """Operations of a token in attention, from the shapes of its projections and of queries, keys and values."""
    attention = [shape for shape in sizes.shapes if shape.kind == "attention"]
    weights = sum(math.prod(size) for shape in attention for size in shape.tensors.values() if len(size) == 2)
    return 2.0 * weights + 4.0 * sizes.recipe.text.sequence_length * sum(shape.width for shape in attention)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("model_type", "matrices"),
    [("mixtral", 3), ("qwen3_moe", 3), ("phi3", 3), ("nemotron", 2), ("arcee", 2), ("glm4", 3)],
)
def test_mixtures_fused_projections_and_mlps_without_a_gate(
    model_type: str, matrices: int, dtype: str, tiny_folder
) -> None:
    """A token meets its own experts only."""
    sizes = sizes_of(tiny_folder(model_type), f"compute.dtype={dtype}")
    expected = projections(sizes)
    for shape in sizes.shapes:
        if shape.kind == "mlp":
            expected += (
                2 * matrices * max(shape.chosen, 1) * shape.width * sizes.width + 2 * shape.experts * sizes.width
            )
    assert sizes.forward == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_blocks_of_every_family_can_be_counted(model_type: str, tiny_folder) -> None:
    sizes = sizes_of(tiny_folder(model_type))
    one = sizes.passes(backward=True)
    assert one.flops > 0
    assert 0 < one.saved / sizes.depth < one.peak
    assert sizes.activations(2) < sizes.activations(0) < one.saved + one.peak


def test_unequal_blocks_cost_by_their_parameters(tiny_folder) -> None:
    """Blocks without attention or MLP, and narrow ones, as pruned checkpoints have them."""
    whole = sizes_of(tiny_folder("llama"))
    rows = {0: {"skip": ["mlp"]}, 1: {"skip": ["attention"]}, 2: {"intermediate_size": 32}}
    config_class, _, _ = pruned_classes(*whole.checkpoint.family.class_names)
    config = pruned_config(config_class, whole.checkpoint.config, rows)
    checkpoint = dataclasses.replace(whole.checkpoint, config=config)
    sizes = Sizes(checkpoint, whole.recipe)
    mlps = [size for shape in sizes.shapes if shape.kind == "mlp" for size in shape.tensors.values() if len(size) == 2]
    assert sizes.forward == pytest.approx(projections(sizes) + 2.0 * sum(map(math.prod, mlps)), rel=0.1)


def test_blocks_that_cannot_be_counted_are_named(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def data(*_: object, **__: object) -> None:
        raise RuntimeError("aten._local_scalar_dense needs data\nmore")

    monkeypatch.setattr(LlamaMLP, "forward", data)
    with pytest.raises(FamilyError, match=r"can't plan .* cost \(aten\._local_scalar_dense needs data\): check"):
        _ = sizes_of(tiny_llama).forward


def test_parameters_are_those_of_the_finished_model(finished_llama: Path, tiny_llama: Path) -> None:
    summary = json.loads((finished_llama / "summary.json").read_text(encoding="utf-8"))
    sizes = sizes_of(tiny_llama, "budget.keep=60%")
    plan = make_plan(sizes, find_device("h100")).as_json()
    assert plan["dense_params"] == summary["models"]["dense"]["params"]
    assert plan["block_params"]["upper"] == summary["budget"]["upper"]
    assert plan["params"]["lower"] <= summary["models"]["refit"]["params"] <= plan["params"]["upper"]


def test_disk_is_what_the_stages_leave(finished_llama: Path, tiny_llama: Path) -> None:
    plan = make_plan(sizes_of(tiny_llama, "budget.keep=60%"), find_device("h100"))
    left = sum(path.stat().st_size for path in (finished_llama / "stages" / "database").glob("*.safetensors"))
    planned = {need.name: need.disk for need in plan.needs}
    headers = 4 * 2048
    assert planned["database"] == pytest.approx(left, abs=headers, rel=0.25)


def test_needs_grow_with_what_they_depend_on(tiny_llama: Path) -> None:
    def need(*assignments: str) -> dict[str, dict[str, float]]:
        plan = make_plan(sizes_of(tiny_llama, *assignments), find_device("a100")).as_json()
        return {stage["stage"]: stage for stage in plan["stages"]}

    base, text = need(), need("text.calibration_tokens=4096")
    assert text["database"]["flops"] > 1.5 * base["database"]["flops"]
    assert text["database"]["device_bytes"] > base["database"]["device_bytes"]
    assert text["search"] == base["search"]
    longer = need("search.generations=30")
    assert longer["search"]["seconds"] > 2 * base["search"]["seconds"]
    assert longer["database"] == base["database"]
    assert "refit" not in need("refit.tokens=0")
    assert "saliency" not in need("database.saliency=output")


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_gradients_take_what_the_flop_counter_counts(model_type: str, tiny_folder) -> None:
    folder = tiny_folder(model_type)
    sizes = sizes_of(folder, "text.sequence_length=32", "text.calibration_tokens=1024")
    need = next(need for need in make_plan(sizes, find_device("h100")).needs if need.name == "saliency")
    assert (need.name, need.tokens) == ("saliency", 128)
    tokens = torch.randint(3, 250, (4, 32), generator=torch.Generator().manual_seed(0))
    stream = stream_over(folder, tokens, 64)
    stream.decoder.model.set_attn_implementation("eager")
    with Operations() as counter:
        moments = [part for _, part in output_gradients(stream, tokens)]
    assert sum(len(part) for part in moments) == len(sizes.shapes)
    assert need.flops == pytest.approx(counter.total, rel=0.1)


LARGER = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32000}
LARGER |= {"num_attention_heads": 32, "num_key_value_heads": 4}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
SMOLLM2 |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}


def first_need(folder: Path, config: dict[str, int], *settings: str, device: str = "cpu") -> Need:
    """What the first stage after the text needs for a Llama of a configuration."""
    LlamaConfig(**config, dtype="bfloat16").save_pretrained(folder)
    recipe = load_recipe(None, (*settings, "refit.tokens=0"), {"model": str(folder)})
    needs = make_plan(Sizes(Checkpoint.describe(folder), recipe), find_device(device)).needs
    return next(need for need in needs if need.name in ("saliency", "database"))


def test_memory_of_the_database_is_what_a_larger_model_took(tmp_path: Path) -> None:
    """See docs/notebook/database.md: with fewer tokens than channels, the order took two float64 matrices."""
    settings = ("compute.batch_tokens=512", "compute.dtype=bfloat16", "units.attention=kv_group")
    settings += ("database.saliency=output",)
    few, enough, gpu = (
        first_need(tmp_path, LARGER, *settings, f"text.calibration_tokens={tokens}", device=device).device_bytes
        for tokens, device in ((1024, "cpu"), (8192, "cpu"), (8192, "h100"))
    )
    assert few == pytest.approx(1.055e9, rel=0.1)
    stream = (8192 - 1024) * 2048 * 2
    assert few - enough + stream == pytest.approx(8 * 5632**2, rel=0.05)
    assert gpu > 16 * 5632**2


def test_memory_of_weighted_orders_is_what_blocks_of_large_models_took(tmp_path: Path) -> None:
    """See docs/notebook/speed.md, "All blocks of 7B, and a block of a 70B"."""
    seven = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
    seventy = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 1}
    for config, peak in ((seven, 3.481e9), (seventy | {"num_key_value_heads": 8}, 18.735e9)):
        settings = ("compute.batch_tokens=1024", "compute.dtype=bfloat16", "text.calibration_tokens=2048")
        LlamaConfig(**config, dtype="bfloat16").save_pretrained(tmp_path)
        recipe = load_recipe(None, (*settings, "refit.tokens=0"), {"model": str(tmp_path)})
        needs = make_plan(Sizes(Checkpoint.describe(tmp_path), recipe), find_device("cpu")).needs
        found = next(need for need in needs if need.name == "database").device_bytes
        assert found == pytest.approx(peak, rel=0.05)


def test_memory_of_the_gradients_is_what_a_larger_model_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """See docs/notebook/database.md: 1,492 MB, of them 772 MB of residual streams."""
    settings = ("compute.batch_tokens=512", "compute.dtype=bfloat16", "text.calibration_tokens=65536")
    in_memory = first_need(tmp_path, LARGER, *settings)
    assert in_memory.device_bytes == pytest.approx(1.492e9, rel=0.1)
    monkeypatch.setattr(needs_need, "STREAMS", 100_000_000)
    in_file = first_need(tmp_path, LARGER, *settings)
    assert in_file.scratch == 8192 * 2048 * 2 * 23
    assert in_memory.device_bytes - in_file.device_bytes == in_file.scratch


@pytest.mark.parametrize(("tokens", "peak"), [(4096, 1.307e9), (8192, 1.732e9)])
def test_memory_of_the_gradients_is_what_a_small_model_took(tmp_path: Path, tokens: int, peak: float) -> None:
    """SmolLM2-135M's shape in float32, see docs/notebook/speed.md: freed activations count where blocks are small."""
    settings = ("compute.batch_tokens=4096", "compute.dtype=float32", f"text.calibration_tokens={8 * tokens}")
    cpu, gpu = (first_need(tmp_path, SMOLLM2, *settings, device=name).device_bytes for name in ("cpu", "h100"))
    assert cpu == pytest.approx(peak, rel=0.2)
    assert gpu < cpu


@pytest.mark.parametrize(("card", "fits"), [("rtx4060", False), ("rtx4090", True)])
def test_text_that_a_model_writes_needs_all_of_it(card: str, fits: bool, tmp_path: Path) -> None:
    folder = published_config(tmp_path, "llama2-7b-2.7b")
    recipe = load_recipe("llama2-7b-2.7b-fast", ("text.source=self",), {"model": str(folder)})
    plan = make_plan(Sizes(Checkpoint.describe(folder), recipe), find_device(card))
    held = next(need for need in plan.needs if need.name == "corpus").held
    assert held["dense model"] == 2 * 6_738_415_616
    assert held["keys and values"] >= 2 * 32 * 4096 * 2 * recipe.text.sequence_length
    problems = [problem for problem in plan.problems if problem.startswith("corpus needs")]
    assert [each.rpartition(": ")[2] for each in problems] == (
        [] if fits else ["it runs the whole model, so give text of your own (text.source)"]
    )


def test_published_models_are_planned_without_weights(command: Command, tmp_path: Path) -> None:
    for name, params in PARAMETERS.items():
        folder = published_config(tmp_path / name, name)
        out = tmp_path / f"{name}.json"
        ended = command("plan", folder, "--recipe", f"{name}-fast", "--device", "h200", "--out", out).succeeded()
        found = json.loads(out.read_text(encoding="utf-8"))
        assert found["dense_params"] == params
        assert [stage["stage"] for stage in found["stages"]] == [
            *("text", "saliency", "database", "search", "stitch", "refit", "export", "chats", "evaluate")
        ]
        assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
        assert f"{count(params)} parameters" in ended.out


def test_what_does_not_fit_names_the_setting_that_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published_config(tmp_path, "llama3.1-8b-4.6b")
    recipe = load_recipe("llama3.1-8b-4.6b", (), {"model": str(folder)})
    device = find_device("a100")
    monkeypatch.setattr(needs_need, "STREAMS", 10**12)  # not in a file
    (problem, *_) = make_plan(Sizes(Checkpoint.describe(folder), recipe), device).problems
    assert problem.startswith("database needs ")
    assert "text.calibration_tokens=" in problem
    fits = problem.partition("text.calibration_tokens=")[2].split()[0]
    smaller = load_recipe(recipe, [f"text.calibration_tokens={fits}"], {})
    again = make_plan(Sizes(Checkpoint.describe(folder), smaller), device)
    assert not any(line.startswith("database") for line in again.problems)
    monkeypatch.undo()
    in_file = load_recipe("llama3.1-8b-4.6b", (), {"model": str(folder)})
    names = {need.name: need for need in make_plan(Sizes(Checkpoint.describe(folder), in_file), device).needs}
    assert "saliency" not in names, "the paper's order needs no gradients"
    need = names["database"]
    assert need.device_bytes < 0.9 * device.memory
    assert need.scratch == in_file.text.calibration_tokens * 4096 * 2
    tiny = dataclasses.replace(device, memory=1e9)
    (hopeless, *_) = make_plan(Sizes(Checkpoint.describe(folder), recipe), tiny).problems
    assert "no single setting makes it fit; the largest item is" in hopeless


def test_gguf_header_is_enough(gguf_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes)
    found = describe_model(str(tmp_path / "m.gguf"))
    assert (found.family.model_type, found.n_blocks) == ("llama", 3)


def test_damaged_gguf_is_refused(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"nothing")
    command("plan", path, "--device", "h100").refused(f"can't read the GGUF file {path}: GGUF magic invalid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no model is given"),
        (("{model}", "--device", "h100", "--keep", "50%", "--params", "1M"), "budget"),
        (("nowhere/at/all",), "there is no model at 'nowhere/at/all'"),
        (("owner/name",), "can't find the model 'owner/name'"),
        (("{model}", "--device", "abacus"), "'abacus' isn't known"),
        (("llama2-7b-2.7b",), "llama2-7b-2.7b is a bundled recipe, not a model: use --recipe llama2-7b-2.7b"),
        (("{model}", "--recipe", "llama"), "there is no recipe at llama"),
        (("{model}", "--device", "h100", "--ram", "lots"), "--ram lots: must be a number with a unit"),
        (("{model}", "--device", "h100", "--disk", "5 parsecs"), "--disk 5 parsecs: has an unknown unit"),
        (("{model}", "--device", "h100", "--set", "units.mlp_multiple=8", "--params", "1"), "less than the smallest"),
    ],
)
def test_wrong_request(options: tuple[str, ...], message: str, command: Command, tiny_llama: Path) -> None:
    command("plan", *(option.format(model=tiny_llama) for option in options)).refused(message)


@pytest.mark.parametrize(
    ("budget", "share"), [("params=70k", None), ("bytes=150kB", None), ("keep=50%", 0.5), ("speedup=4x", 0.25)]
)
def test_budgets_of_other_kinds(budget: str, share: float | None, tiny_llama: Path) -> None:
    sizes = sizes_of(tiny_llama, f"budget.{budget}", "units.mlp_multiple=8", "budget.context=0")
    plan = make_plan(sizes, find_device("h100")).as_json()
    assert any("is measured in the run" in note for note in plan["notes"]) == budget.startswith("speedup")
    assert ("latency" in [stage["stage"] for stage in plan["stages"]]) == budget.startswith("speedup")
    if share:
        assert sizes.kept == pytest.approx(share, abs=1e-3)
    elif budget.startswith("params"):
        assert plan["params"]["upper"] == 70_000
    else:
        assert plan["params"]["upper"] * 4 == pytest.approx(150_000, rel=0.01)


@pytest.mark.parametrize(
    ("model_type", "said"), [("gemma", "only with equal layers"), ("qwen3_next", None), ("llama", None)]
)
def test_the_plan_reads_the_configuration_alone_and_names_equal_layers(model_type, said, tiny_folder, tmp_path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder(model_type) / "config.json").read_bytes())
    sizes = sizes_of(tmp_path, "units.mlp_multiple=32", "units.quantisation=q8_0", "budget.keep=60%")
    notes = [note for note in make_plan(sizes, find_device("h100")).notes if "llama.cpp" in note]
    assert [said in note for note in notes] == ([] if said is None else [True])
