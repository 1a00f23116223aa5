"""Memory, operations and time of every stage, counted from sizes; each line beside what it counts.

Times are operations over the device's throughput and bytes over its bandwidth. Everything is counted for one process;
the stages that several processes share (database, search, recovery) take their part each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from darwinlm.planning.devices import Device
from darwinlm.planning.model import Sizes

REUSED = 0.55
"""Share of the blocks that a candidate runs on average: its first changed block lies anywhere, its loss comes last."""

KL_BYTES = 40
"""Bytes moved for one logit of a candidate: written, read as float32, exponentiated, multiplied with the dense side."""

ORDER = 8.0
"""Operations of a removal order in units of d³: an inverse (2), and updates of two shrinking matrices (2 · 3)."""

STEP = 3e-4
"""Seconds that one removal takes besides its operations: about twenty small calls."""

ACTIVATIONS = 12
"""Widths of the residual stream that a block's pass holds at once, beside its MLP's channels."""


@dataclass(frozen=True)
class Item:
    """Something that takes memory.

    Attributes:
        name: what it is.
        bytes: how much.
        setting: field of the recipe that it is proportional to; empty where nothing shrinks it.
        value: of that field now.
        remedy: another setting that would take most of it away, with its value.
    """

    name: str
    bytes: float
    setting: str = ""
    value: int = 0
    remedy: str = ""


@dataclass
class StageNeed:
    """What one stage needs.

    Attributes:
        name: of the stage.
        tokens: that it reads, over and over ones counted each time.
        passes: operations of passes through blocks and head.
        kind: arithmetic type of the passes.
        operations: of other matrix products, by arithmetic type.
        moved: bytes through memory besides those of matrix products.
        steps: that wait for each other and take a while however small they are.
        device: what lies in the device's memory at the peak.
        ram: what lies in the machine's memory besides.
        disk: bytes that it leaves.
    """

    name: str
    tokens: float = 0
    passes: float = 0
    kind: str = "bfloat16"
    operations: dict[str, float] = field(default_factory=dict)
    moved: float = 0
    steps: float = 0
    device: list[Item] = field(default_factory=list)
    ram: list[Item] = field(default_factory=list)
    disk: float = 0

    @property
    def flops(self) -> float:
        """Operations of all types."""
        return self.passes + sum(self.operations.values())

    def seconds(self, on: Device) -> float:
        """Time on a device."""
        passes = self.passes / (on.rates[self.kind] * on.efficiency)
        products = sum(count / (on.rates[kind] * on.product_efficiency) for kind, count in self.operations.items())
        return passes + products + self.moved / on.bandwidth + STEP * self.steps

    def device_bytes(self, on: Device) -> float:
        """Memory of the device at the peak; on a CPU that is all memory."""
        items = [*self.device, *(self.ram if on.is_cpu else [])]
        return sum(item.bytes for item in items)

    def ram_bytes(self, on: Device) -> float:
        """Memory of the machine at the peak."""
        return sum(item.bytes for item in (*self.device, *self.ram)) if on.is_cpu else sum(i.bytes for i in self.ram)


def estimate(sizes: Sizes) -> list[StageNeed]:
    """Needs of the stages that work, in order."""
    makers: list[Callable[[Sizes], StageNeed]] = [_database, _search]
    if sizes.recipe.refit.enabled:
        makers.append(_refit)
    makers.append(_evaluate)
    return [make(sizes) for make in makers]


def _forward_type(sizes: Sizes) -> tuple[str, int]:
    return ("float32", 4) if sizes.recipe.compute.dtype == "float32" else ("bfloat16", 2)


def _pass_items(sizes: Sizes, size: int) -> list[Item]:
    recipe = sizes.recipe
    batch = max(recipe.compute.batch_tokens, recipe.text.sequence_length)
    widest = max(shape.width for shape in sizes.shapes)
    activations = batch * (ACTIVATIONS * sizes.width + 4 * widest) * size
    return [Item("activations of one pass", activations, "compute.batch_tokens", batch)]


def _logit_items(sizes: Sizes) -> list[Item]:
    batch = max(sizes.recipe.compute.batch_tokens, sizes.recipe.text.sequence_length)
    return [Item("logits of one pass", batch * sizes.vocabulary * 4.0, "compute.batch_tokens", batch)]


def _database(sizes: Sizes) -> StageNeed:
    recipe = sizes.recipe
    kind, size = _forward_type(sizes)
    tokens = recipe.text.calibration_tokens
    need = StageNeed(
        "database", tokens=tokens, passes=tokens * sizes.forward, kind=kind, operations={"float32": 0.0, "float64": 0.0}
    )
    largest = 0.0
    for shape in sizes.shapes:
        if len(next(m.levels for m in sizes.space.modules if (m.block, m.kind) == (shape.block, shape.kind))) == 1:
            continue
        d, r = float(shape.width), float(sizes.width)
        experts, count = max(shape.experts, 1), sizes.factor_count(shape)
        # Second moment; removal orders; Cholesky factor and target of every order, in float64.
        need.operations["float32"] += 2 * tokens * d * d + count * (ORDER * d**3 + 2 * d * d * r)
        need.operations["float64"] += count * (d**3 / 3 + 2 * d * d * r)
        need.steps += count * (d if shape.kind == "mlp" else d / shape.head_dim)
        need.disk += experts * d * (d + 1) / 2 * 4 + count * d * 12
        largest = max(largest, experts * d * d * 4 + d * d * 40)
    need.device = [
        Item("residual stream of the calibration text", tokens * sizes.width * size, "text.calibration_tokens", tokens),
        Item("weights of one block", sizes.block * (size + sizes.element)),
        Item("second moments and factors of one module", largest),
        *_pass_items(sizes, size),
    ]
    need.ram = [Item("embedding", sizes.outside / 2 * size)]
    # The checkpoint is hashed and read once.
    need.moved = 2.0 * sizes.params * sizes.element
    return need


def _search(sizes: Sizes) -> StageNeed:
    recipe = sizes.recipe
    settings = recipe.search
    kind, size = _forward_type(sizes)
    length = recipe.text.sequence_length

    def whole(tokens: int) -> int:
        return -(-tokens // length) * length

    cut = [module for module in sizes.space.modules if len(module.levels) > 1]
    attention = {len(module.levels) for module in cut if module.kind == "attention"}
    uniform = max(attention, default=1) * whole(settings.score_tokens)
    scores = len(cut) * settings.score_levels * whole(settings.score_tokens) if settings.start == "knapsack" else 0
    a_generation, last = 0, settings.offspring
    for number, stage in enumerate(settings.stages):
        parent = 1 if number == 0 and number < len(settings.stages) - 1 else 0
        a_generation += (last + parent) * whole(stage.tokens)
        last = stage.survivors
    evolution = settings.generations * a_generation
    fitness = whole(max(settings.score_tokens, *(stage.tokens for stage in settings.stages)))
    tokens = uniform + scores + evolution
    # A scored candidate is dense but for one module; the others keep the budget's share.
    blocks = scores * REUSED + (evolution * REUSED + uniform) * sizes.kept
    operations = blocks * sizes.forward + tokens * sizes.head + fitness * (sizes.forward + sizes.head)
    changed = len(cut) * settings.score_levels + settings.generations * settings.offspring * 3
    cuts = sum((shape.width * sizes.kept) ** 2 * sizes.width for shape in sizes.shapes) / max(len(sizes.shapes), 1)
    reads = sum(4.0 * shape.width**2 for shape in sizes.shapes) / max(len(sizes.shapes), 1)
    trained, finalists = _trained(sizes)
    # Forward and backward pass of the smaller model, and the dense one's forward pass that it learns from.
    operations += trained * 3 * (sizes.kept * sizes.forward + sizes.head)
    operations += trained * (sizes.forward + sizes.head)
    need = StageNeed("search", tokens + trained, operations, kind, {"float64": changed * cuts})
    need.moved = tokens * sizes.vocabulary * float(KL_BYTES) + changed * reads * 3
    need.device = [
        Item("dense model", sizes.params * size),
        Item("dense distributions", fitness * sizes.vocabulary * 4.0, "text.fitness_tokens", fitness),
        Item(
            "block inputs of the parent",
            fitness * sizes.width * sizes.checkpoint.n_blocks * size,
            "text.fitness_tokens",
            fitness,
        ),
        Item("modules in use and kept for later", min(4 * 2**30, sizes.blocks * size * 4.0)),
        *_pass_items(sizes, size),
        *_logit_items(sizes),
    ]
    if trained:
        small = sizes.kept * sizes.blocks + sizes.outside
        batch = settings.training.batch_tokens
        saved = batch * (ACTIVATIONS * sizes.width + 4 * max(shape.width for shape in sizes.shapes)) * size
        need.device += [
            # Master weights, gradient and two moments of one candidate; states of the others that are still in.
            _candidate(sizes, small),
            Item(
                "activations of its backward pass",
                saved * sizes.checkpoint.n_blocks,
                "search.training.batch_tokens",
                batch,
            ),
        ]
        need.ram.append(Item("trained candidates that go on", 4 * small * finalists))
    need.ram += [Item("factors kept for later", min(2 * 2**30, sum(8.0 * shape.width**2 for shape in sizes.shapes)))]
    return need


def _candidate(sizes: Sizes, small: float) -> Item:
    _, size = _forward_type(sizes)
    if sizes.recipe.search.training.lora_rank:
        return Item("candidate in training", (size + 1) * small)
    return Item("candidate in training", 16 * small, remedy="search.training.lora_rank=16")


def _trained(sizes: Sizes) -> tuple[float, int]:
    """Tokens that candidates are trained on in the whole search, and how many trained ones are held at once."""
    settings = sizes.recipe.search
    tokens, last, held = 0.0, settings.offspring, 0
    for stage in settings.stages:
        tokens += settings.generations * last * stage.training_tokens
        held = max(held, last if stage.training_tokens else 0)
        last = stage.survivors
    last = settings.finalists
    for part in settings.finalist_rounds if settings.finalists else ():
        tokens += last * part.training_tokens
        held = max(held, last)
        last = part.survivors
    return tokens, held


def _refit(sizes: Sizes) -> StageNeed:
    recipe = sizes.recipe
    kind, size = _forward_type(sizes)
    tokens = recipe.refit.tokens
    everything = tokens + recipe.text.validation_tokens
    # The dense stream once; the smaller one once for each of its modules' inputs and once to move on.
    passes = everything * sizes.forward * (1 + sizes.kept * 2)
    need = StageNeed("refit", everything, passes, kind, {"float32": 0.0, "float64": 0.0})
    largest = 0.0
    for shape in sizes.shapes:
        d, r = shape.width * sizes.kept, float(sizes.width)
        need.operations["float32"] += everything * (2 * d * d + 2 * d * r)
        need.operations["float64"] += len(recipe.refit.ridges) * (d**3 / 3 + 4 * d * d * r)
        largest = max(largest, (2 * d * d + d * r) * 4 + d * d * 16)
    need.device = [
        Item(
            "residual streams, dense, smaller and target", 4.0 * everything * sizes.width * size, "refit.tokens", tokens
        ),
        Item("weights of one block, dense and smaller", sizes.block * (1 + sizes.kept) * (size + sizes.element)),
        Item("moments of one module", largest),
        *_pass_items(sizes, size),
    ]
    need.disk = sum(sizes.width * shape.width * sizes.kept * 4 for shape in sizes.shapes)
    return need


def _evaluate(sizes: Sizes) -> StageNeed:
    recipe = sizes.recipe
    kind, size = _forward_type(sizes)
    tokens = recipe.text.evaluation_tokens
    smaller = 3 if recipe.refit.enabled else 2
    models = 1 + smaller * sizes.kept
    need = StageNeed("evaluate", tokens * (1 + smaller), kind=kind)
    need.passes = tokens * (models * sizes.forward + (1 + smaller) * sizes.head)
    runs = recipe.evaluation.speed_runs + 1
    need.passes += runs * recipe.text.sequence_length * (models * sizes.forward + (1 + smaller) * sizes.head)
    # Every decoded token reads all weights.
    decoded = recipe.evaluation.new_tokens * (runs + len(recipe.evaluation.prompts))
    weights = (models * sizes.blocks + (1 + smaller) * sizes.outside) * size
    need.moved = tokens * (1 + smaller) * sizes.vocabulary * float(KL_BYTES) + decoded * weights
    need.device = [
        Item("models side by side", weights),
        *_pass_items(sizes, size),
        *_logit_items(sizes),
        *_logit_items(sizes),
    ]
    need.disk = 2 * (sizes.kept_blocks[1] + sizes.outside) * float(sizes.element)
    return need
