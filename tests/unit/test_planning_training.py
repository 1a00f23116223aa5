"""The plan of training: operations, saved activations, optimiser states, and advice if it doesn't fit."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import Command, sets
from tests.tiny.published import published_config
from tests.tiny.stages import run_stages
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.needs.need import Need
from darwinlm.needs.sizes import Sizes
from darwinlm.needs.training import trained
from darwinlm.planning.devices import find_device
from darwinlm.planning.plan import Plan, advice, disk_of, estimate, make_plan
from darwinlm.recipe import RecoverySettings, load_recipe
from darwinlm.recovery.losses import weighted
from darwinlm.recovery.model import batch_loss, run_dense
from darwinlm.runtime.amounts import size
from darwinlm.search.evaluate.dense_side import ExpectedRows
from darwinlm.search.evaluate.fitness import Window
from darwinlm.search.predict.gradients import Gradients
from darwinlm.search.problem.space import Allocation

TRAINING = ("recovery.tokens=4096", "recovery.batch_tokens=256", "compute.batch_tokens=128")


def sizes_of(folder: Path, *assignments: str, processes: int = 1) -> Sizes:
    recipe = load_recipe(None, (*SETTINGS, *TRAINING, *assignments), {"model": str(folder)})
    return Sizes(Checkpoint.describe(folder), recipe, processes)


def need_of(plan: Plan, name: str) -> Need:
    return next(need for need in plan.needs if need.name == name)


def item(need: Need, name: str) -> float:
    return (need.held | need.ram)[name]


def published(tmp_path: Path, name: str, *assignments: str, processes: int = 1) -> Sizes:
    folder = published_config(tmp_path, name.removesuffix("-fast"))
    return Sizes(Checkpoint.describe(folder), load_recipe(name, assignments, {"model": str(folder)}), processes)


@pytest.mark.parametrize("distillation", [1, 0])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_of_a_step(tiny_llama: Path, distillation: int, *, checkpointing: bool) -> None:
    """99.9 % is kept, so that both models count as dense."""
    settings = (f"recovery.distillation={distillation}", "budget.keep=99.9%")
    settings += (f"recovery.gradient_checkpointing={checkpointing}", "text.validation_tokens=32")
    sizes = sizes_of(tiny_llama, *settings)
    model, dense = (Checkpoint.open(tiny_llama).load(torch.float32) for _ in range(2))
    for each in (model, dense):
        each.set_attn_implementation("eager")
    model.requires_grad_(True).train()
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    tokens = torch.arange(4 * 32).view(4, 32)
    with FlopCounterMode(display=False) as counter:
        seen = run_dense(dense, tokens) if distillation else None
        batch_loss(
            model, dense if distillation else None, tokens, seen, weighted(RecoverySettings(distillation=distillation))
        ).backward()
    need = need_of(make_plan(sizes, find_device("h100")), "recover")
    assert need.flops / need.tokens == pytest.approx(counter.get_total_flops() / tokens.numel(), rel=0.1)


def test_a_head_that_is_not_trained_saves_one_product_in_three(tiny_llama: Path) -> None:
    model = Checkpoint.open(tiny_llama).load(torch.float32).requires_grad_(True).train()
    tokens = torch.arange(4 * 32).view(4, 32)
    counted, planned = [], []
    for whole in (True, False):
        model.get_output_embeddings().requires_grad_(whole)
        model.get_input_embeddings().requires_grad_(whole)
        with FlopCounterMode(display=False) as counter:
            batch_loss(model, None, tokens, None, weighted(RecoverySettings(distillation=0))).backward()
        counted.append(counter.get_total_flops() / tokens.numel())
        settings = ("recovery.distillation=0", f"recovery.embeddings={whole}")
        need = need_of(make_plan(sizes_of(tiny_llama, *settings, "budget.keep=99.9%"), find_device("h100")), "recover")
        planned.append(need.flops / need.tokens)
    assert planned[0] - planned[1] == pytest.approx(counted[0] - counted[1], rel=0.01)
    assert counted[0] > counted[1]


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [("qwen2", "bfloat16"), ("gemma2", "float32"), ("mixtral", "bfloat16")],
)
def test_what_is_kept_for_the_way_back(model_type: str, dtype: str, tiny_folder: Callable[[str], Path]) -> None:
    """On real numbers, with the kernels that run here."""
    folder = tiny_folder(model_type)
    sizes = sizes_of(folder, "budget.keep=99.9%", f"compute.dtype={dtype}", "text.sequence_length=32")
    model = Checkpoint.open(folder).load(getattr(torch, dtype)).requires_grad_(True).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.numel() >= 4 * tokens.numel():  # not the rotation's tables
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.arange(4 * 32).view(4, 32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=tokens, use_cache=False)
    assert sizes.passes(backward=True).saved == pytest.approx(sum(kept.values()) / tokens.numel(), rel=0.15)


def test_weights_gradients_and_moments_are_the_optimisers(tiny_llama: Path) -> None:
    sizes = sizes_of(tiny_llama, "budget.keep=99.9%", "compute.dtype=float32", "recovery.embeddings=true")
    need = need_of(make_plan(sizes, find_device("h100")), "recover")
    model = Checkpoint.open(tiny_llama).load(torch.float32).requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    states = [tensor for state in optimiser.state.values() for name, tensor in state.items() if name != "step"]
    for name, tensors in (
        ("weights of the smaller model, float32", list(model.parameters())),
        ("gradients", [parameter.grad for parameter in model.parameters()]),
        ("AdamW's two moments", states),
    ):
        assert item(need, name) == pytest.approx(sum(tensor.nbytes for tensor in tensors), rel=0.01), name


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_are_pefts(tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        Checkpoint.open(tiny_llama).load(torch.float32),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained(sizes_of(tiny_llama, "budget.keep=99.9%"), 4) == pytest.approx(counted, rel=0.01)


def test_checkpoints_are_what_training_leaves(tiny_llama: Path, make_run, tmp_path: Path) -> None:
    """Two checkpoints exist during training; they are counted just before they are removed."""
    from darwinlm.stages import recover

    assignments = (*TRAINING, "recovery.save_every=512", "compute.dtype=float32")
    left: list[int] = []
    remove = recover.shutil.rmtree

    def count(folder: Path, *rest: Any, **more: Any) -> None:
        if Path(folder).name == "recover-work":
            left.append(sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")))
        remove(folder, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recover.shutil, "rmtree", count)
        run_stages(make_run(tiny_llama, tmp_path / "out", *assignments), "recover")
    need = need_of(make_plan(sizes_of(tiny_llama, "budget.keep=60%"), find_device("h100")), "recover")
    assert need.scratch * 2 / 3 == pytest.approx(left[-1], rel=0.1)


def test_search_runs_new_text_only(tiny_llama: Path, make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    whole = ExpectedRows.kl

    def counting(self: ExpectedRows, hidden: Tensor, start: int = 0) -> Tensor:
        counted.append(len(hidden))
        return whole(self, hidden, start)

    around = Gradients.around

    def sloping(self: Gradients, allocation: Allocation, window: Window) -> list[list[float]]:
        counted.append((window[1] - window[0]) * self.tokens.shape[1])
        return around(self, allocation, window)

    monkeypatch.setattr(ExpectedRows, "kl", counting)
    monkeypatch.setattr(Gradients, "around", sloping)
    assignments = ("search.generations=10", "search.offspring=8", "units.attention=kv_group")
    run_stages(make_run(tiny_llama, tmp_path / "out", *assignments), "search")
    need = need_of(make_plan(sizes_of(tiny_llama, *assignments, "budget.keep=60%"), find_device("h100")), "search")
    assert need.tokens == pytest.approx(sum(counted), rel=0.3)


def test_targets_without_room_wait_on_the_disk_of_a_laptop(tmp_path: Path) -> None:
    sizes = published(tmp_path, "llama2-7b-2.7b-fast", "text.source=texts")
    laptop = find_device("cpu")
    large, small = (
        next(each for each in estimate(sizes, replace(laptop, memory=memory)) if each.name == "search")
        for memory in (200e9, 16e9)
    )
    targets = 32 * 4.0 * (4096 + 11008) * 4096
    assert large.scratch == 0
    assert 0.9 * targets < small.scratch <= targets
    more = small.work["solves"] - large.work["solves"]
    assert more < 20 * 32 * (4096**2 + 11008**2) * 4096, "once for each module, besides modules that are made again"


@pytest.mark.parametrize(("model_type", "kept"), [("gemma", 48), ("gemma2", 300)])
def test_distributions_are_kept_only_where_logits_are_capped(model_type: str, kept: int, tiny_folder) -> None:
    settings = ("search.generations=1", "search.rounds=[{tokens: 64, survivors: 1}]")
    need = need_of(make_plan(sizes_of(tiny_folder(model_type), *settings), find_device("h100")), "search")
    assert item(need, "dense model's distributions") == kept * 64 * 4


def test_a_bound_in_minutes_ends_the_search(tiny_llama: Path) -> None:
    long = ("search.generations=1000000", "search.minutes=0.01")
    plan = make_plan(sizes_of(tiny_llama, *long), find_device("h100"))
    search = need_of(plan, "search")
    assert search.seconds(plan.rates) == pytest.approx(0.6)
    (problem,) = plan.problems
    assert problem.startswith("search takes ")
    enough = problem.partition("search.minutes=0.01 ends it after ")[2].partition("search.minutes=")[2].split()[0]
    again = make_plan(sizes_of(tiny_llama, long[0], f"search.minutes={enough}"), find_device("h100"))
    assert not again.problems


def test_advice_where_the_budget_is_measured(tiny_llama: Path) -> None:
    """An equal share of the blocks stands for it."""
    sizes = [sizes_of(tiny_llama, f"budget.{budget}") for budget in ("speedup=2x", "keep=50%")]
    assert len({advice(each, "search", find_device("h100")) for each in sizes}) == 1


def test_full_disk_names_the_checkpoints(tmp_path: Path) -> None:
    sizes = published(tmp_path, "llama2-7b-2.7b-fast", "recovery.tokens=1B")
    plan = make_plan(sizes, find_device("h200"), disk=1e9)
    (hopeless,) = plan.problems
    assert disk_of(plan.needs) > need_of(plan, "recover").scratch > 50e9
    assert "no single setting makes it fit; the largest item is 'recover'" in hopeless


def test_ram_is_that_of_all_processes_on_the_machine(tmp_path: Path) -> None:
    """Each process reads both models, so eight processes need eight times the memory of one."""
    settings = ("llama2-7b-2.7b-fast", "recovery.tokens=1B")
    one, eight = (published(tmp_path, *settings, processes=number) for number in (1, 8))
    device = find_device("h200")

    def problems(sizes: Sizes, ram: float) -> list[str]:
        return [problem for problem in make_plan(sizes, device, ram=ram).problems if "of RAM" in problem]

    needs = [need_of(make_plan(sizes, device), "recover").ram_bytes for sizes in (one, eight)]
    assert needs[1] == 8 * needs[0]
    assert not problems(one, 64e9)
    assert any("but the machine has 900 MB to spare" in problem for problem in problems(one, 1e9))
    (problem,) = [each for each in problems(eight, 64e9) if each.startswith("recover")]
    assert "of RAM in 8 processes, but the machine has 57.6 GB to spare" in problem


def test_weights_that_do_not_fit_are_dealt_out(tmp_path: Path) -> None:
    """The plan's advice is planned again, and fits."""

    def problems(*assignments: str, processes: int = 1) -> list[str]:
        sizes = published(tmp_path, "qwen2.5-14b-8.4b-fast", "recovery.tokens=10B", *assignments, processes=processes)
        return [each for each in make_plan(sizes, find_device("h100")).problems if each.startswith("recover")]

    (alone,) = problems()
    remedy = re.search(r"to spare: (.*) on (\d+) devices would fit", alone)
    assert remedy is not None, alone
    assert "recovery.sharding=fsdp" in remedy[1]
    assert not problems(*remedy[1].split(" and "), processes=int(remedy[2]))
    (many,) = problems("recovery.sharding=fsdp", "compute.batch_tokens=65536", processes=8)
    fits = many.partition("compute.batch_tokens=")[2].split()[0]
    assert not problems("recovery.sharding=fsdp", f"compute.batch_tokens={fits}", processes=8)


def test_processes_share_everything_but_the_disk(tmp_path: Path) -> None:
    def plan(processes: int) -> Plan:
        sizes = published(tmp_path, "llama2-7b-2.7b-fast", "recovery.tokens=1B", processes=processes)
        return make_plan(sizes, find_device("h100"))

    one, eight = plan(1), plan(8)
    for alone, shared in zip(one.needs, eight.needs, strict=True):
        for kind in ("disk", "hashing", "tokenising"):
            assert shared.work[kind] == alone.work[kind], alone.name
        # Every process solves for the weights of the refit, and waits for the first one to time the models.
        share = {"evaluate": 0.9, "refit": 0.6}.get(alone.name, 0.15)
        assert shared.seconds(eight.rates) <= share * alone.seconds(one.rates), alone.name


def test_files_are_read_and_written_once_a_stage(tmp_path: Path) -> None:
    sizes = published(tmp_path, "llama2-7b-2.7b-fast", "recovery.tokens=1B", "recovery.save_every=100M")
    needs = {need.name: need for need in make_plan(sizes, find_device("h100")).needs}
    dense, small = 2 * sizes.params, 2 * sizes.small
    database = needs["database"].disk
    read = {name: need.work["disk"] - int(need.disk) for name, need in needs.items()}
    assert read["database"] == pytest.approx(dense)
    assert needs["database"].work["hashing"] == dense
    assert read["search"] == pytest.approx(dense + database)
    assert read["stitch"] == pytest.approx(dense + database)
    assert read["refit"] == pytest.approx(dense + small)
    assert read["evaluate"] == pytest.approx(dense + 4 * small + database)
    # Text of 2 bytes a token; float32 weights.
    assert read["recover"] == pytest.approx(2e9 + small + dense)
    assert needs["recover"].disk == 2 * small


@pytest.mark.parametrize(
    ("name", "device", "fits"),
    [
        ("llama2-7b-2.7b", "h100", True),
        ("qwen2.5-14b-8.4b", "h100", False),
        ("qwen2.5-14b-8.4b", "h200", True),
    ],
)
def test_one_candidate_learns_at_a_time(name: str, device: str, fits: bool, tmp_path: Path) -> None:
    """The paper's search as in docs/gpu.md, with advice if it doesn't fit."""
    plan = make_plan(published(tmp_path, name), find_device(device))
    problems = [each for each in plan.problems if each.startswith("search")]
    assert bool(problems) != fits
    if not fits:
        assert "search.training.lora_rank=16 would fit" in problems[0]
        again = make_plan(published(tmp_path, name, "search.training.lora_rank=16"), find_device(device))
        assert not [each for each in again.problems if each.startswith("search")]


def test_on_a_cpu_candidates_learn_side_by_side(tiny_llama: Path) -> None:
    settings = ("search.rounds=[{tokens: 64, survivors: 2, training_tokens: 64}, {tokens: 64, survivors: 1}]",)
    need = next(need for need in estimate(sizes_of(tiny_llama, *settings), find_device("cpu")) if need.name == "search")
    assert "5 candidates in training" in need.held
    assert not need.note


def test_states_that_wait_are_named_and_not_needed(tmp_path: Path) -> None:
    sizes = published(tmp_path, "llama2-7b-2.7b")
    need = need_of(make_plan(sizes, find_device("h100"), ram=32e9), "search")
    state = 12 * sizes.kept * sizes.blocks
    assert f"states of up to 9 candidates wait in free RAM, {size(state)} each" in need.note
    assert need.ram_bytes < state
    # Nine, five and three candidates leave and come back in each of 200 generations.
    assert need.work["transfers"] == pytest.approx(200 * 2 * (9 + 5 + 3) * state)


def test_command_takes_processes_memory_and_disk(command: Command, tiny_llama: Path) -> None:
    machine = ("--device", "h100", "--processes", 2, "--ram", "1GB", "--disk", "1kB")
    ended = command("plan", tiny_llama, *machine, *sets((*SETTINGS, *TRAINING))).succeeded()
    for words in ("2 x h100: 85.9 GB", "recover", "doesn't fit: the run takes"):
        assert words in ended.out
