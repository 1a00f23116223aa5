"""The table of a run: the work of each stage that takes long or much memory, and what is in memory at its peak.

Work is in operations of passes; that of a backward pass is twice a forward one's. r is the residual width, k the kept
share of the blocks, d the columns of a module's output projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from darwinlm.formats.gguf.read import conversion_bytes
from darwinlm.model.units.levels import variants
from darwinlm.model.walk.chunks import HEAD_TOKENS
from darwinlm.model.walk.decoder import head_tokens
from darwinlm.model.walk.hidden import STREAMS
from darwinlm.runtime import parallel
from darwinlm.runtime.memory import CACHES, FRAGMENTS, OTHERS
from darwinlm.steps.chats.answers import CHATS_AT_ONCE, LENGTH
from darwinlm.steps.database.removal_metrics import find_metric
from darwinlm.steps.evaluate.looking_back import number_of_lists
from darwinlm.steps.recover.losses import needs_dense
from darwinlm.steps.recover.trained_model import logit_tokens
from darwinlm.steps.refit.refit import STRENGTHS
from darwinlm.steps.run_sizes import Sizes
from darwinlm.steps.text.shares import amount_for_pruning, amount_for_recovery, gradient_tokens

Items = dict[str, float]
"""Bytes by name."""
Stage = tuple[str, float, Items]
"""A stage's name, work and memory."""

FORWARD, BACKWARD, SAVED = 2.4, 6.7, 5.1
"""Numbers that a block holds for each of `Sizes.channels` at the peak of a pass, at that of a pass with gradients, and
from such a pass to its backward pass. Counted for Llama, Qwen2 and Qwen3 (2026-11-30): 2.4, 6.0 to 7.4, 4.4 to 5.8."""
LIBRARIES = 0.45e9
"""Memory of Python, PyTorch and transformers without a model, measured on 2026-11-24."""
EXACT, ALONE, TOGETHER, ROWS = {2: 5.6, 4: 1.4}, 30.0, 3.0, 64
"""Time of an operation of orders, factors and solves, by the size of a number in passes, of a token that is generated
alone, and of one of `ROWS` that are generated together, in those of passes. Measured on a CPU (2026-11-30)."""
EXACT_ON_GPU = 3.0
"""Time of such an operation on a GPU, an estimate."""
CHILDREN, CONFIRMED = 3, 1.0
"""Children that a generation solves for, all of which the first one evaluates on the whole text, and that later ones
do, measured on 2026-11-30."""
LOGIT = 30
"""Bytes of a logit in training, with copies and gradients."""
COPIED, CONTINUED, TIMED = 608, 128, 200
"""Tokens of a list and a passage of each length, and of timed ones and continuations of a model; timed passes for each
kind of module."""


@dataclass(frozen=True)
class Row:
    """One stage; memory is that of one process on the device, by name, and `caches` what it takes besides at most."""

    stage: str
    operations: float
    memory: Items
    caches: float = 0.0

    @property
    def bytes(self) -> float:
        """Peak memory."""
        return sum(self.memory.values())


def largest(*alternatives: Items) -> Items:
    """The items that need the most memory together, of those that are never in memory at once."""
    return max(alternatives, key=lambda items: sum(items.values()))


def rows_of(sizes: Sizes, *, on_cpu: bool, memory: float) -> list[Row]:
    """The rows of a run, in order, on a device with so many bytes for a process; a CPU's hold the libraries too."""
    base = {"libraries": LIBRARIES} if on_cpu else {}
    stages = _Stages(sizes, on_cpu, memory)
    rows = [Row(stage, work, base | held) for stage, work, held in stages]
    return [replace(row, caches=stages.caches(row.bytes)) if row.stage == "search" else row for row in rows]


class _Stages:
    def __init__(self, sizes: Sizes, on_cpu: bool, memory: float) -> None:
        self.sizes, self.recipe, self.on_cpu, self.memory = sizes, sizes.recipe, on_cpu, memory
        self.passing, self.backward = (
            {"activations": sizes.pass_tokens * sizes.channels * sizes.size * each} for each in (FORWARD, BACKWARD)
        )
        self.head, self.block = float(sizes.vocabulary * sizes.width * sizes.size), float(sizes.block * sizes.size)
        self.widest = max(float(shape.width) for shape in sizes.shapes)
        self.slow = EXACT[sizes.size] if on_cpu else EXACT_ON_GPU
        self.exact = self.slow if on_cpu else 1.0  # of second moments, of which half is computed
        n = head_tokens(sizes.vocabulary * sizes.size, on_cpu=on_cpu)
        self.compared = n * sizes.vocabulary * (4.0 + 2 * sizes.size)  # logits of two models, and probabilities
        self.smaller = 2 + bool(self.recipe.refit.tokens or self.recipe.recovery.tokens)

    def __iter__(self) -> Iterator[Stage]:
        sizes, recipe, r = self.sizes, self.recipe, self.sizes.width
        if self.on_cpu and sizes.checkpoint.source.endswith(".gguf"):
            yield "model", 0, {"weights in float32": conversion_bytes(Path(sizes.checkpoint.source))}
        if own := amount_for_pruning(recipe):
            yield self._own_text("own_text", own)
        if recipe.budget.timed:
            yield self._latency()
        if find_metric(recipe.database.metric).gradients:
            yield self._gradients()
        yield self._database()
        yield self._search()
        squares = sum(max(shape.experts, 1) * float(shape.width) ** 2 for shape in sizes.shapes)
        factors = {"factors of one module": 4 * self.widest * (self.widest + 2 * r), "blocks": self.block}
        yield "stitch", self.slow * squares * r * (2 + sizes.kept**2), factors
        if recipe.refit.tokens:
            yield self._refit()
        if own := amount_for_recovery(recipe):
            yield self._own_text("own_text_recovery", own)
        if recipe.recovery.tokens:
            yield self._recover()
        if tokens := recipe.text.answer_tokens:  # of the dense model, read by it and two smaller ones
            work = sizes.operations(2 * tokens, 1 + 2 * sizes.kept, heads=3)
            work += sizes.operations(TOGETHER * tokens, heads=1)
            fits = self.on_cpu or sizes.params * sizes.size <= self.memory / 2  # else none are written
            writing = self._whole_model(CHATS_AT_ONCE, LENGTH) if fits else {}
            yield "chats", work, largest(writing, self._reading(2 * tokens, 3))
        yield self._evaluate()

    def caches(self, needs: float) -> float:
        """Bytes of a search's caches at most: what could be in them, or their shares of the memory that is left."""
        sizes, bounded = self.sizes, self.recipe.compute.memory is not None
        room = (self.memory if self.on_cpu else (1 - FRAGMENTS) * self.memory) - needs
        if self.on_cpu and not bounded:
            room = min(room, (1 - OTHERS) * (self.memory - LIBRARIES))
        factors = sum(4.0 * max(shape.experts, 1) * shape.width * (shape.width + sizes.width) for shape in sizes.cut)
        levels = sum(level.params for module in sizes.space.modules for level in module.levels[:-1])
        most = {"blocks": sizes.params * sizes.size, "factors": factors, "modules": levels * sizes.size}
        return sum(min(held, CACHES[name] * max(room, 0.0)) for name, held in most.items())

    def _own_text(self, stage: str, tokens: int) -> Stage:
        work = TOGETHER * self.sizes.operations(tokens, heads=1)
        return stage, work, self._whole_model(ROWS, self.recipe.text.sequence_length)

    def _streams(self, tokens: float, count: float = 1) -> Items:
        held = tokens * count * self.sizes.width * self.sizes.size / self.sizes.processes
        return {"streams": held} if held <= STREAMS else {}  # else in a file

    def _whole_model(self, rows: int, length: int) -> Items:
        """A model that writes so many texts at once; on a CPU, its weights lie in files."""
        sizes = self.sizes
        heads = sum(shape.groups * shape.head_dim for shape in sizes.shapes if shape.kind == "attention")
        row, model = 2.0 * heads * length * sizes.size, float(sizes.params * sizes.size)
        model = 0.0 if self.on_cpu else model
        held = {"keys and values": max(min(rows * row, (self.memory - model) / 4), row)}
        held["probabilities"] = rows * sizes.vocabulary * (12.0 + sizes.size)
        return held if self.on_cpu else held | {"whole models": model}

    def _reading(self, tokens: float, count: int) -> Items:
        """So many models on the same text, block by block, then logits of a few tokens of two of them."""
        sizes = self.sizes
        reading = self.passing | {"blocks": 2 * self.block, "heads": 2 * self.head, "logits": self.compared}
        reading |= self._streams(tokens, count)
        return reading | {"rows of the embedding": count * min(tokens, sizes.vocabulary) * sizes.width * sizes.size}

    def _latency(self) -> Stage:
        """Alternating passes of two whole models, of which the second has half of the blocks on average."""
        sizes, budget, kinds = self.sizes, self.recipe.budget, len({shape.kind for shape in self.sizes.cut})
        timed = TIMED * kinds
        work = timed * (
            sizes.operations(budget.prefill_tokens, 0.75) + sizes.operations(min(budget.decode_tokens, 8) * ALONE, 0.75)
        )
        return "latency", work, self.passing | {"whole models": 2.0 * sizes.params * sizes.size}

    def _gradients(self) -> Stage:
        sizes, length = self.sizes, self.recipe.text.sequence_length
        tokens = -(-gradient_tokens(self.recipe.text.calibration_tokens) // length) * length
        held = largest({"heads": self.head}, self.backward | {"blocks": 2 * self.block})
        if self.on_cpu:  # memory that forward passes freed stays with the process, in fragments between the streams
            held["fragments"] = self.passing["activations"]
        held["rows of the embedding"] = float(min(tokens, sizes.vocabulary) * sizes.width * sizes.size)
        return "gradients", sizes.operations(tokens, blocks=3, heads=2), held | self._streams(tokens, sizes.depth + 1)

    def _database(self) -> Stage:
        """Second moments of inputs, and for every variant of every module a removal order, a factor and a target."""
        sizes, r = self.sizes, float(self.sizes.width)
        tokens = self.recipe.text.calibration_tokens
        work, moments, module = sizes.operations(tokens), dict[int, float](), 0.0
        for shape in sizes.cut:
            d, experts, orders = float(shape.width), max(shape.experts, 1), max(shape.experts, 1)
            if shape.kind != "mlp" and (count := len(variants(shape, self.recipe.units))) > 1:
                orders = count + 1  # heads are ranked first
            work += self.exact * tokens * d * d + self.slow * orders * (10 / 3 * d**3 + 4 * d * d * r)
            moments[shape.block] = moments.get(shape.block, 0.0) + 4 * experts * d * d
            few = tokens <= d  # the order needs another matrix, and weights in float64
            weights = sizes.size + 16 if few and find_metric(self.recipe.database.metric).gradients else 8
            matrices = 8 * (2 - self.on_cpu + few) + 4 * shape.experts
            module = max(module, matrices * d * d + weights * r * d + 12 * r * r)
        of_a_block = {"second moments": max(moments.values(), default=0.0)}
        factorising = {"factors of one module": module} | ({} if self.on_cpu else of_a_block)
        held = largest(self.passing | {"blocks": self.block} | of_a_block, factorising)
        return "database", work, self._streams(tokens) | held

    def _search(self) -> Stage:
        sizes, settings, k = self.sizes, self.recipe.search, self.sizes.kept
        guided, times, offspring = settings.method == "gradient", settings.generations, settings.offspring
        fitness, window = settings.fitness_needed, settings.rounds[0].tokens
        count = min(CHILDREN, offspring) if guided else float(offspring)
        read, learnt, before = 4.0 * window + (2.0 + guided * CHILDREN) * fitness, 0.0, 0  # the start comes first
        for each in settings.rounds:  # losses of earlier rounds are kept, unless candidates are trained
            read += times * count * (each.tokens - (0 if each.training_tokens else before))
            learnt += times * (count + 1) * each.training_tokens
            count, before = min(each.survivors, CONFIRMED) if guided else each.survivors, each.tokens
        work = sizes.operations(read, k, heads=1) + sizes.operations(fitness, heads=1)
        work += sizes.operations(learnt, k, blocks=4, heads=3)
        for d in (float(shape.width) for shape in sizes.cut):  # two levels of each module, and the slopes of all
            work += self.slow * times * 2 * d * d * k**2 * sizes.width
            work += self.slow * guided * times * (2 * window * d * sizes.width + min(window, sizes.width) * d * d)
        work += sizes.operations(guided * times * window, k, blocks=3, heads=3)
        streams = min((offspring + 2) * float(fitness * sizes.width * sizes.size), STREAMS)
        held = (self.backward if guided else self.passing) | {"heads": self.head, "candidates' streams": streams}
        held["logits"] = max(16.0 * HEAD_TOKENS * sizes.vocabulary, self.compared)
        held |= {"factors of one module": 4 * self.widest * (self.widest + 4 * sizes.width), "blocks": 3 * self.block}
        if settings.training_needed:
            own = (12 + 2 * sizes.size) * sizes.kept * sizes.blocks
            held |= self.backward | {"whole models": float(sizes.params * sizes.size), "candidates": own}
        return "search", work, held

    def _refit(self) -> Stage:
        """Both models; fits; comparisons on validation text."""
        sizes, k, r, held_out = self.sizes, self.sizes.kept, self.sizes.width, self.recipe.text.validation_tokens
        tokens, d = self.recipe.refit.tokens + held_out, self.widest  # a module may stay whole
        work = sizes.operations(tokens, 1 + k) + sizes.operations(len(STRENGTHS) * held_out, k, heads=2)
        for width in (shape.width * k for shape in sizes.shapes):
            work += self.exact * tokens * width * (width + 2 * r) + self.slow * 2 * (width**3 / 3 + 4 * width**2 * r)
        fitting = self.passing | {"blocks": (2 + 2 * k) * self.block, "moments of one module": d * (20 * d + 32 * r)}
        held = largest(fitting, {"heads": 2 * self.head, "logits": self.compared})
        return "refit", work, self._streams(tokens, 4) | held

    def _recover(self) -> Stage:
        """Training of the smaller model, the dense one beside it, and evaluations."""
        sizes, k, settings = self.sizes, self.sizes.kept, self.recipe.recovery
        on_a_node = parallel.local_size() if parallel.size() > 1 else sizes.processes
        shards = {"none": 1, "fsdp": sizes.processes, "hsdp": on_a_node}[settings.sharding]
        small = k * sizes.blocks + sizes.outside
        head, again = settings.trains_embeddings, settings.gradient_checkpointing
        weights = small if head else k * sizes.blocks
        held_out = self.recipe.text.validation_tokens * (2 + settings.tokens // settings.save_every)
        work = sizes.operations(settings.tokens, k, blocks=3 + again, heads=2 + head)
        work += sizes.operations(held_out, k, heads=1)
        micro = float(min(sizes.pass_tokens, settings.step_tokens))
        inside = k * SAVED * sizes.channels * sizes.size * (1 if again else sizes.depth)
        held = {
            "weights, gradients and moments": (4 * small + 12 * weights) / shards,
            "activations": micro * (inside + again * sizes.depth * 4.0 * sizes.width + sizes.channels * sizes.size),
            "logits": min(logit_tokens(sizes.vocabulary), micro) * sizes.vocabulary * LOGIT,
        }
        if sizes.size == 2:
            held["weights in bfloat16"] = 2 * (k * (sizes.blocks if shards == 1 else sizes.block) + sizes.outside)
        if needs_dense(settings):
            work += sizes.operations(settings.tokens, heads=2) + sizes.operations(held_out, heads=1)
            held["dense model"] = (sizes.blocks / shards + sizes.outside) * sizes.size
        return "recover", work, held

    def _evaluate(self) -> Stage:
        """All models on evaluation text and repeated passages; then speeds and continuations of two whole ones."""
        sizes, k, tokens = self.sizes, self.sizes.kept, self.recipe.text.evaluation_tokens
        read = tokens + COPIED * number_of_lists(tokens) + 2 * self.recipe.text.sequence_length * sizes.processes
        work = sizes.operations(read, 1 + self.smaller * k, heads=1 + self.smaller)
        work += sizes.operations(ALONE * CONTINUED, 1 + k, heads=2)
        timing = self.passing | {"logits": float(self.recipe.text.sequence_length * sizes.vocabulary * sizes.size)}
        small = sizes.kept_blocks[1] + sizes.outside
        if not self.on_cpu and (models := float((sizes.params + small) * sizes.size)) <= self.memory / 2:
            timing["whole models"] = models
        return "evaluate", work, largest(self._reading(read, 1 + self.smaller), timing)
