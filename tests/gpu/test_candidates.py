"""Candidates in training on the pretend device: one at a time, the CPU's losses, wherever the others' states are."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.model.walk.decoder import Decoder
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import plan_card
from darwinlm.recipe import load_recipe
from darwinlm.runtime.memory import CACHES, CPU, memory_of
from darwinlm.runtime.run import Run
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.search import candidate_training as training
from darwinlm.steps.search import student
from darwinlm.steps.search.candidate_training import CandidateTrainer
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from tests.gpu.device import Gpu, pretend_gpu
from tests.gpu.rules import NAME
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import result, run_stages

WIDE = {"intermediate_size": 256, "num_hidden_layers": 2}
SETTINGS = ("units.mlp_multiple=32", "search.rounds=[{tokens: 64, survivors: 1, training_tokens: 512}]")
ROUNDS = ((32, 2), (32, 1), (64, 0))
"""Training tokens and survivors of each round."""


@dataclass(frozen=True)
class Bench:
    """A run up to its database, and candidates of one size."""

    run: Run
    tokens: dict[str, torch.Tensor]
    space: SearchSpace

    def candidates(self, count: int) -> list[Allocation]:
        """As in a generation: one level up and one down."""
        parent = [len(module.levels) // 2 for module in self.space.modules]
        mlps = [i for i, module in enumerate(self.space.modules) if module.kind == "mlp"]
        pairs = [(up, down) for up in mlps for down in mlps if up != down]
        made = [tuple(parent)]
        for step in range(-4, 5):
            for up, down in pairs if step else ():
                child = list(parent)
                child[up] += step
                child[down] -= step
                made.append(tuple(child))
        assert len(made) >= count
        return made[:count]

    def trainer(self, device: str) -> CandidateTrainer:
        run = self.run
        reader = run_stages(run, "database").database.reader
        reader = type(reader)(reader.folder, reader.checkpoint, reader.units, device=torch.device(device))
        decoder = Decoder(result(run, "dense").load(torch.bfloat16, device), result(run, "dense").family)
        placed = PlacedModules(decoder, reader, self.space)
        fitness = Fitness(placed, self.tokens["fitness"], batch_tokens=64)
        trainer = CandidateTrainer(placed, fitness, self.tokens["training"], run.folder)
        trainer.rate = 1e-3
        return trainer


@pytest.fixture(scope="module", autouse=True)
def short_steps() -> Iterator[None]:
    """A sequence in a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "STEP_TOKENS", 32)
        yield


@pytest.fixture(scope="module")
def bench(make_run, tmp_path_factory) -> Bench:
    folder: Path = tmp_path_factory.mktemp("candidates")
    model = tiny_checkpoint(folder / "model", "llama", **WIDE)
    run = make_run(model, folder / "out", *SETTINGS)
    found = run_stages(run, "database")
    tokens = {purpose: text.tokens for purpose, text in found.text.items()}
    return Bench(run, tokens, found.plan.space)


def student_of(trainer: CandidateTrainer, candidate: Allocation) -> student.Student:
    """A candidate in training, on the trainer's device."""
    modules = (trainer.placed.module(index, level) for index, level in enumerate(candidate))
    return student.Student(modules, trainer.rate)


def generation(trainer: CandidateTrainer, pool: list[Allocation], rounds: int = len(ROUNDS)) -> list[list[float]]:
    """Losses of each round of a generation."""
    trainer.keep(())
    found = []
    for tokens, survivors in ROUNDS[:rounds]:
        losses = trainer.judge(pool, tokens, 64)
        found.append(losses)
        best = sorted(zip(losses[1:], pool[1:], strict=True))[:survivors]
        pool = [pool[0], *(candidate for _, candidate in best)]
        trainer.keep(pool)
    return found


def on_device(bench: Bench, states: float | None = None) -> tuple[list[list[float]], int]:
    """Losses of a generation of four candidates, and how often a state went to main memory.

    Args:
        bench: makes them.
        states: how many of them main memory has room for; None measures it.
    """
    pool, parked = bench.candidates(4), 0
    move = student.Student.move

    def counted(self: student.Student, device: torch.device) -> None:
        nonlocal parked
        parked += device.type == "cpu"
        move(self, device)

    with pretend_gpu() as gpu, pytest.MonkeyPatch.context() as patch:
        patch.setattr(student.Student, "move", counted)
        trainer = bench.trainer(NAME)
        if states is not None:
            each = student_of(trainer, pool[0]).nbytes

            def room(part: str, reserved: int = 0) -> int:
                return int((states - len(trainer._students)) * each) if part == "candidates" else whole(part, reserved)

            whole = memory_of(CPU).room
            patch.setattr(memory_of(CPU), "room", room)
        losses = generation(trainer, pool)
        assert not gpu.tally.mixes
    return losses, parked


@pytest.fixture(scope="module")
def found(bench) -> tuple[list[list[float]], int]:
    """All states that may be wanted again wait in main memory."""
    return on_device(bench)


def test_losses_are_the_cpus(bench, found):
    """Attention is computed otherwise there, and rounded to bfloat16."""
    for ours, theirs in zip(found[0], generation(bench.trainer("cpu"), bench.candidates(4)), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3)
    assert found[1] >= 5


@pytest.mark.parametrize(("states", "parked"), [(0.5, 0), (1.5, 3)])
def test_states_without_room_are_learnt_again_bit_for_bit(states, parked, bench, found):
    assert on_device(bench, states) == (found[0], parked)


def peak(gpu: Gpu, bench: Bench, count: int) -> int:
    """Bytes on the device at the peak of a generation of so many candidates, beyond the dense model's."""
    trainer = bench.trainer(NAME)
    gc.collect()
    before = gpu.allocated
    gpu.restart()
    generation(trainer, bench.candidates(count), 1)
    return gpu.peak - before


def test_sixteen_candidates_take_the_room_of_one(gpu, bench, monkeypatch):
    monkeypatch.setitem(CACHES, "modules", 0.0)
    one, many = peak(gpu, bench, 2), peak(gpu, bench, 16)
    trainer = bench.trainer(NAME)
    own = student_of(trainer, bench.candidates(1)[0])
    state = sum(16 * weight.numel() for weight in own.working)  # bfloat16 weights and gradients, float32 for AdamW
    assert one > state, "one candidate with its state, and what its passes take"
    assert many < one + 0.1 * state


def test_the_peak_is_within_the_plan(gpu, bench, monkeypatch):
    monkeypatch.setitem(CACHES, "modules", 0.0)
    sizes = RunSizes(result(bench.run, "dense"), load_recipe(bench.run.recipe, ["compute.dtype=bfloat16"], {}))
    planned = next(row for row in plan_card(STEPS, sizes, "h100").rows if row.step == "search").cost.bytes
    bench_trainer = bench.trainer(NAME)
    gpu.restart()
    generation(bench_trainer, bench.candidates(3), 1)
    assert gpu.peak <= planned
