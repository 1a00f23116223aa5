"""The parts of `gpu.py` that run stages at the shapes of a 7B model."""

from __future__ import annotations

import contextlib
import gc
import random
import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.units.levels import variants
from darwinlm.model.units.space import SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.stream import BlockStream
from darwinlm.recipe import load_recipe
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import MANIFEST, StageFolder, write_tensors
from darwinlm.runtime.compute_settings import GPU_TOKENS
from darwinlm.runtime.memory import all_bytes, set_limit
from darwinlm.steps.database.block_files import Curve, block_file, module_tensors
from darwinlm.steps.database.factors import pack_lower
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.recover import recovery_settings as settings_module
from darwinlm.steps.recover.checkpoints import Checkpoints
from darwinlm.steps.recover.recovery_figures import TrainingRecord
from darwinlm.steps.recover.schedule import plan_steps
from darwinlm.steps.recover.sharding import load_teacher, sharding_mesh
from darwinlm.steps.recover.train import Training, TrainingLoop
from darwinlm.steps.search.module_cache import PlacedModules
from lab.benchmarks.gpu_units import Setup
from lab.benchmarks.random_llama import write_llama

LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}
UNITS = UnitsSettings(attention="kv_group", mlp_multiple=256)
PASSES = "passes through blocks"
"""Line with the rate of forward passes."""

STEPS = 3
"""Steps of a recovery."""

KEPT = 0.3764
"""Kept share of the block parameters: 2.7B of Llama-2-7B."""


def model_of(setup: Setup, layers: int) -> Checkpoint:
    """Random Llama with `layers` blocks of the 7B model's widths, or a tiny one."""
    folder = setup.work / f"llama-{layers}"
    if not (folder / "model.safetensors.index.json").exists():  # written last
        sizes = SMALL if setup.tiny else LARGE
        dtype = torch.float32 if setup.tiny else torch.bfloat16
        write_llama(folder, dtype=dtype, device=setup.kind, num_hidden_layers=layers, **sizes)
    return Checkpoint.open(folder)


def units_of(setup: Setup) -> UnitsSettings:
    """Units of removal."""
    return UNITS.model_copy(update={"mlp_multiple": 16}) if setup.tiny else UNITS


def random_database(setup: Setup, checkpoint: Checkpoint) -> Path:
    """A database of random factors in the format of the stage, for any run with these units."""
    folder, units = setup.work / f"{checkpoint.folder.name}-database", units_of(setup)
    if (folder / MANIFEST).exists():
        return folder
    stage = StageFolder(folder, {"stage": "database"})
    stage.begin()
    shapes = module_shapes(checkpoint)
    for block in range(checkpoint.n_blocks):
        tensors: dict[str, torch.Tensor] = {}
        for shape in (shape for shape in shapes if shape.block == block):
            d = shape.sizes.width
            factor = torch.randn(d, d, device=setup.kind).mul_(0.3 / d**0.5)
            factor.diagonal().fill_(1.0)
            unit = shape.sizes.head_dim if shape.kind == "attention" else 1
            columns = (torch.randperm(d // unit)[:, None] * unit + torch.arange(unit)).view(-1)
            errors = torch.linspace(1, 0, d + 1, dtype=torch.float64)
            curve = Curve(columns, errors, errors.square() / checkpoint.n_blocks)
            tensors |= module_tensors(shape.kind, {variants(shape, units)[-1]: curve}, pack_lower(factor).cpu())
        write_tensors(folder / block_file(block), tensors)
    stage.finish()
    return folder


def stream(setup: Setup) -> None:
    """Run the residual stream through four blocks, on the device and in main memory."""
    checkpoint = model_of(setup, 4)
    length, n_tokens = (32, 512) if setup.tiny else (2048, 1 << 18)
    tokens = torch.randint(checkpoint.config.vocab_size, (n_tokens // length, length))
    dtype = torch.float32 if setup.tiny else torch.bfloat16
    rates: dict[str, float] = {}
    for place in ("device", "host"):
        memory = HiddenMemory(setup.work, place)
        options: dict[str, Any] = {"dtype": dtype, "device": setup.kind, "batch_tokens": 4 * length, "memory": memory}
        states = BlockStream(checkpoint, tokens, **options)
        begun, seconds = 0.0, 0.0
        for block in states.walk():
            setup.wait()
            begun = time.perf_counter()
            states.run(block)
            setup.wait()
            seconds += time.perf_counter() - begun
        rates[place] = n_tokens * checkpoint.n_blocks / seconds
        setup.told("stream", f"{place}: tokens through a block", rates[place], "a second")
    block = sum(parameter.numel() for parameter in checkpoint.skeleton().get_submodule("model.layers.0").parameters())
    operations = 2 * block + 4 * length * checkpoint.config.hidden_size
    setup.told("stream", PASSES, rates["device"] * operations / 1e12, "TFLOP/s")
    setup.fast("stream", "main memory against device", rates["host"] / rates["device"], "", 0.8)
    setup.peak("stream")


def placed_model(setup: Setup) -> tuple[PlacedModules, tuple[int, ...]]:
    """A random model with a random database, and an allocation at the budget's share."""
    checkpoint = model_of(setup, setup.blocks)
    reader = DatabaseReader(random_database(setup, checkpoint), checkpoint, units_of(setup), device=setup.kind)
    model = checkpoint.load(torch.float32 if setup.tiny else torch.bfloat16, setup.kind)
    space = SearchSpace(reader.modules)
    parent = tuple(round(KEPT * level) for level in space.dense)
    return PlacedModules(Decoder(model, checkpoint.family), reader, space), parent


def candidates(setup: Setup) -> None:
    """Measure the rate of evaluating children of one parent on a 7B model, and repeated reads of factors."""
    from darwinlm.steps.search.fitness import Fitness
    from darwinlm.steps.search.slopes import Gradients

    placed, parent = placed_model(setup)
    reader, space = placed.database, placed.space
    assert isinstance(reader, DatabaseReader)
    vocabulary = reader.checkpoint.config.vocab_size
    length = 32 if setup.tiny else 2048
    tokens = torch.randint(vocabulary, (4, length))
    fitness = Fitness(placed, tokens, batch_tokens=2 * length)
    rng = random.Random(0)

    def moved(count: int) -> tuple[int, ...]:
        child = list(parent)
        for index in rng.sample(range(len(child)), count):
            child[index] = max(0, min(space.dense[index], child[index] + rng.choice((-1, 1))))
        return tuple(child)

    def timed(children: list[tuple[int, ...]]) -> tuple[float, int]:
        before, begun = reader.reads, time.perf_counter()
        fitness.kl_on(children, (0, 1))
        setup.wait()
        return time.perf_counter() - begun, reader.reads - before

    seconds, reads = timed([parent])
    setup.told("candidates", "the first parent took", seconds, "s")
    setup.told("candidates", "factors read for it", float(reads))
    for name, count, floor in (("two modules", 2, 200.0), ("all modules", len(parent), 30.0)):
        children = [moved(count) for _ in range(12 if count == 2 else 4)]
        seconds, reads = timed(children)
        setup.fast("candidates", f"children that move {name}", 60 * len(children) / seconds, "a minute", floor)
        setup.told("candidates", f"factors read for each of them, {name}", reads / len(children))
    gradients = Gradients(fitness, reader)
    before, begun = reader.reads, time.perf_counter()
    gradients.around(parent, (0, 1))
    setup.wait()
    setup.told("candidates", "slopes of all levels", time.perf_counter() - begun, "s")
    setup.told("candidates", "factors read for slopes", float(reader.reads - before))
    setup.peak("candidates")  # caches take what is free, so the plan's figure is no bound


def training(setup: Setup) -> None:
    """Train one generation of four candidates, on 4k tokens each."""
    from darwinlm.steps.search.candidate_training import CandidateTrainer
    from darwinlm.steps.search.fitness import Fitness

    length, n_tokens = (32, 128) if setup.tiny else (2048, 4096)
    checkpoint = model_of(setup, setup.blocks)
    planned = setup.plan(
        "training",
        checkpoint,
        "search",
        f"text.sequence_length={length}",
        "search.offspring=4",
        f"search.rounds=[{{tokens: {length}, survivors: 1, training_tokens: {n_tokens}}}]",
    )
    if not setup.tiny:
        set_limit(setup.kind, min(int(planned), all_bytes(setup.kind)))  # else caches take what is free
    placed, parent = placed_model(setup)
    text = torch.randint(checkpoint.config.vocab_size, (-(-n_tokens // length), length))
    fitness = Fitness(placed, text[:1], batch_tokens=length)
    trainer = CandidateTrainer(placed, fitness, text, setup.work)
    children = [tuple(level + (place == index) for place, level in enumerate(parent)) for index in range(4)]
    pool = [parent, *children]
    for number in (1, 2):
        begun = time.perf_counter()
        losses = trainer.judge(pool, n_tokens // 2, length)
        setup.wait()
        rate = len(pool) * (n_tokens // 2) / (time.perf_counter() - begun)
        setup.told("training", f"tokens in training, round {number}", rate, "a second")
        best = sorted(zip(losses[1:], pool[1:], strict=True))[:2]
        pool = [parent, *(child for _, child in best)]
        trainer.keep(pool)
    setup.told("training", "mean KL after it", sum(losses) / len(losses), "nats a token")
    setup.peak("training", planned)


def smaller_model(setup: Setup, layers: int) -> Checkpoint:
    """Stitched model that keeps the budget's share of every module."""
    from darwinlm.formats.transformers.saved import save_model
    from darwinlm.steps.stitch.stitch import stitch

    checkpoint = model_of(setup, layers)
    folder = setup.work / f"{checkpoint.folder.name}-smaller"
    if not folder.exists():
        reader = DatabaseReader(random_database(setup, checkpoint), checkpoint, units_of(setup), device=setup.kind)
        allocation = tuple(round(KEPT * (len(module.levels) - 1)) for module in reader.modules)
        partial = folder.with_name(f"{folder.name}-partial")
        save_model(stitch(reader, allocation), partial)
        partial.rename(folder)
    return Checkpoint.open(folder)


def recovered(
    setup: Setup, layers: int, out: str, *more: str, checkpoints: bool = True
) -> tuple[TrainingRecord, float]:
    """Train the smaller model on random tokens.

    Args:
        setup: The benchmark's settings.
        layers: Number of blocks.
        out: Name of the folder for checkpoints, which a resumed training finds.
        more: Assignments for the recipe.
        checkpoints: Whether to write checkpoints; three of a 2.7B model take 97 GB.

    Returns the record, and tokens per second without the first step, evaluations and checkpoints.
    """
    dense, small = model_of(setup, layers), smaller_model(setup, layers)
    length, step = _sizes(setup)
    recipe = load_recipe(None, (*recovery_settings(setup), *more), {"model": str(dense.folder)})
    settings = recipe.recovery
    dtype = torch.float32 if setup.tiny else torch.bfloat16
    mesh = sharding_mesh(settings.sharding, setup.kind)
    teacher = load_teacher(dense, dtype, setup.kind, mesh) if settings.distillation else None
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(dense.config.vocab_size, (STEPS * step // length + 8, length), generator=generator)
    text: Any = [{"input_ids": row} for row in tokens[8:]]
    ends: list[float] = []
    kept = contextlib.ExitStack()
    if not checkpoints:
        for name in ("save", "check_room"):
            kept.enter_context(mock.patch.object(Checkpoints, name))
    with kept:
        _, record = Training(
            partial(small.load, torch.float32),
            teacher,
            text,
            tokens[:8],
            plan_steps(settings, length, recipe.compute.batch_tokens or GPU_TOKENS, parallel.size()),
            settings,
            setup.work / out,
            {"benchmark": "recovery"},
            device=setup.kind,
            dtype=dtype,
            mesh=mesh,
            progress=lambda *_: ends.append(time.perf_counter()),
        ).train()
    del teacher
    gc.collect()
    return record, (len(ends) - 1) * step / max(ends[-1] - ends[0], 1e-9)


def _sizes(setup: Setup) -> tuple[int, int]:
    """Tokens in a sequence, and in a step."""
    return (32, 64) if setup.tiny else (4096, 32768)


def recovery_settings(setup: Setup) -> tuple[str, ...]:
    """`STEPS` steps."""
    length, step = _sizes(setup)
    return (
        f"text.sequence_length={length}",
        f"compute.batch_tokens={length}",
        f"recovery.tokens={STEPS * step}",
        f"recovery.batch_tokens={step}",
        f"recovery.gradient_checkpointing={str(not setup.tiny).lower()}",
    )


def recovery(setup: Setup) -> None:
    """Three steps of recovery, distilled from the dense model."""
    layers = setup.blocks
    size = sum(parameter.numel() for parameter in smaller_model(setup, layers).skeleton().parameters())
    _, rate = recovered(setup, layers, "recovered", checkpoints=False)
    setup.fast("recovery", "tokens trained", rate, "a second", 5500.0)
    setup.told("recovery", "operations of the smaller model", 6 * size * rate / 1e12, "TFLOP/s")
    setup.peak("recovery", setup.plan("recovery", model_of(setup, layers), "recover", *recovery_settings(setup)))


def resume(setup: Setup) -> None:
    """Recovery that is killed after a checkpoint and resumed, against one that isn't."""
    layers = 2
    often = mock.patch.object(settings_module, "SAVED_EVERY", _sizes(setup)[1])
    for name in ("uninterrupted", "interrupted"):
        shutil.rmtree(setup.work / name, ignore_errors=True)
    with often:
        whole = recovered(setup, layers, "uninterrupted")[0]["log"][-1]
    shutil.rmtree(setup.work / "uninterrupted")
    update = TrainingLoop.update

    def killed(self: TrainingLoop, step: int) -> None:
        if step == 2:
            raise _KilledError
        update(self, step)

    with often, mock.patch.object(TrainingLoop, "update", killed), contextlib.suppress(_KilledError):
        recovered(setup, layers, "interrupted")
    gc.collect()
    begun = []

    def watched(self: TrainingLoop, step: int) -> None:
        begun.append(step)
        update(self, step)

    with often, mock.patch.object(TrainingLoop, "update", watched):
        again = recovered(setup, layers, "interrupted")[0]["log"][-1]
    shutil.rmtree(setup.work / "interrupted")
    setup.most("resume", "first step after the kill", float(begun[0]), "", 2.0)
    differs = abs(again["eval_perplexity"] / whole["eval_perplexity"] - 1)
    setup.most("resume", "perplexity differs from the uninterrupted one's by", differs, "relative", 1e-3)


class _KilledError(Exception):
    """In place of a kill."""


def decoding(setup: Setup) -> None:
    """Measure tokens per second of both models in eager decoding, and as a graph with a cache of fixed size."""
    from darwinlm.steps.evaluate.metrics import PromptRate
    from darwinlm.steps.evaluate.speed import measure_speed
    from darwinlm.steps.latency.graphs import GraphedDecoding

    layers = setup.blocks
    prompt, new = ([5] * 16, 4) if setup.tiny else ([5] * 512, 64)
    words = "a CUDA graph" if setup.kind.type == "cuda" else "a cache of fixed size"
    rates: dict[str, list[float]] = {"eagerly": [], f"with {words}": []}
    for name, checkpoint in (("dense", model_of(setup, layers)), ("smaller", smaller_model(setup, layers))):
        model = checkpoint.load(checkpoint.dtype, setup.kind)
        eager = measure_speed({name: model}, torch.tensor([prompt]))[name]
        setup.told("decoding", f"{name}: prompt", PromptRate().of(eager), "tokens/s")
        with torch.inference_mode():
            tokens = torch.tensor([prompt], device=setup.kind)
            steps = GraphedDecoding(model, tokens, new)
            setup.wait()
            begun = time.perf_counter()
            for _ in range(new):
                steps.step()
            setup.wait()
        for (way, of_way), rate in zip(
            rates.items(), (statistics.median(eager.decodes), new / (time.perf_counter() - begun)), strict=True
        ):
            of_way.append(rate)
            setup.told("decoding", f"{name}: decoding {way}", rate, "tokens/s")
        del model, steps
    for way, (dense, small) in rates.items():
        setup.told("decoding", f"smaller against dense {way}", small / dense)
