"""Training-aware selection, compared with plain PyTorch."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny.stages import run_stages
from tests.tiny.whole import Whole, searched, within_budget
from torch.nn import functional

from darwinlm.steps.search.candidate_training import CandidateTrainer
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.student import Student
from darwinlm.steps.stitch.stitch import stitch

FAST = 3e-3
TEXT = "search.rounds=[{tokens: 256, survivors: 1, training_tokens: 1024}]"


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """Two sequences in a step."""
    monkeypatch.setattr("darwinlm.steps.search.candidate_training.STEP_TOKENS", 64)


@pytest.fixture(scope="module")
def folder(tiny_llama, make_run, tmp_path_factory):
    """A run up to its database."""
    folder = tmp_path_factory.mktemp("selection") / "out"
    run_stages(make_run(tiny_llama, folder, TEXT), "database")
    return folder


@pytest.fixture(scope="module")
def bench(folder, tiny_llama, make_run):
    """The run's results, the placed modules and the fitness."""
    run = make_run(tiny_llama, folder, TEXT)
    whole = Whole(run, run_stages(run, "database"))
    placed = whole.placed()
    return whole, placed, Fitness(placed, whole.text["fitness"].tokens, batch_tokens=128)


def trainer_of(bench, rate=FAST):
    whole, placed, fitness = bench
    trainer = CandidateTrainer(placed, fitness, whole.text["training"].tokens, whole.run.folder)
    assert trainer.rate == 1e-4
    trainer.rate = rate
    return trainer


def test_training_brings_small_candidates_nearer_to_the_dense_model(bench):
    whole, placed, fitness = bench
    candidates = whole.random_allocations(3, seed=4)
    trainer = trainer_of(bench)
    before = fitness.kls(candidates, 256)
    after = trainer.judge(candidates, 512, 256)
    assert all(b < 0.97 * a for a, b in zip(before, after, strict=True)), (before, after)
    again = Fitness(placed, whole.text["fitness"].tokens, batch_tokens=128)
    assert again.kls(candidates, 256) == before, "the placed's own modules have learnt nothing"


def test_one_step_is_plain_distillation(bench):
    """Compared with the stitched model, PyTorch's KL and PyTorch's AdamW."""
    whole = bench[0]
    allocation = whole.random_allocations(1, seed=3)[0]
    trainer = trainer_of(bench, 1e-3)
    trainer.judge([allocation], 64, 64)
    tokens = whole.text["training"].tokens[:2]
    small, dense = stitch(whole.reader, allocation), whole.checkpoint.load(torch.float32)
    names = [n for n, _ in small.named_parameters() if "self_attn" in n or ".mlp." in n]
    parameters = [p.requires_grad_() for n, p in small.named_parameters() if n in names]
    log_q = functional.log_softmax(small(input_ids=tokens).logits, -1)
    with torch.no_grad():
        p = functional.softmax(dense(input_ids=tokens).logits, -1)
    loss = (p * (p.log() - log_q)).sum(-1).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.optim.AdamW(parameters, lr=1e-3 / 4, betas=(0.9, 0.95), weight_decay=0).step()
    expected = dict(small.named_parameters())
    modules = trainer._students[allocation].modules
    for module, own in zip(whole.plan.space.modules, modules, strict=True):
        for name, parameter in own.named_parameters():
            place = f"model.layers.{module.block}.{'self_attn' if module.kind == 'attention' else 'mlp'}.{name}"
            torch.testing.assert_close(parameter, expected[place], rtol=1e-3, atol=2e-5)


def test_a_candidate_whose_gradients_overflow_is_dropped(bench, monkeypatch):
    candidates = bench[0].random_allocations(2, seed=4)
    trainer, step = trainer_of(bench), Student.step

    def overflowing(student: Student) -> None:
        if trainer._students:  # the first one waits there
            student.working[0].grad[0] = torch.inf
        step(student)

    monkeypatch.setattr(Student, "step", overflowing)
    losses = trainer.judge(candidates, 64, 64)
    assert math.isfinite(losses[0])
    assert losses[1] == math.inf


@pytest.mark.parametrize("method", ["gradient", "paper"])
def test_training_inside_each_generation(folder, tmp_path, tiny_llama, make_run, method, monkeypatch):
    """As in the preset `paper`, losses after training decide, and the parent is trained too."""
    monkeypatch.setattr("darwinlm.steps.search.candidate_training.SMALL_RATE", 5e-4)
    rounds = [{"tokens": 64 * n, "survivors": 3 - n, "training_tokens": 64 * n} for n in (1, 2)]
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    settings = (f"search.rounds={rounds}", "search.generations=2", f"search.method={method}")
    found = searched(make_run(tiny_llama, out, *settings))
    history = found.search.record["history"]
    assert len(history) == 3
    assert history[1]["kl"] < history[0]["kl"], "trained losses are smaller than the start's, which had no training"
    assert within_budget(found.plan, found.search.allocation)
    assert found.text["training"].document_hashes
    hashes = [set(part.document_hashes) for part in found.text.values()]
    assert len(set.union(*hashes)) == sum(map(len, hashes)), "training text is nobody else's"
