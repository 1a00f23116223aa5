"""Kinds of budget: what each one bounds, how its value is written, and its limit.

To add one, register a `Bound`, here or in a script. The recipe's field `budget.NAME`, the argument of `darwinlm.prune`
and the option of the command follow from it; add its name to `BudgetArguments` for type checkers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, TypedDict

from pydantic import Field, field_validator

from darwinlm.runtime.quantities import ByteCount, Count, Duration, Factor, Share
from darwinlm.runtime.registry import Extension, Extensions
from darwinlm.runtime.shell import word

if TYPE_CHECKING:
    from darwinlm.model.units.cost import CostModel
    from darwinlm.steps.budget.counted import Counted


class BudgetArguments(TypedDict, total=False):
    """The bound of a budget as an argument of Python, for type checkers; the classes below describe each kind."""

    keep: float | str | None
    params: int | str | None
    bytes: int | str | None
    file: int | str | None
    speedup: float | str | None
    latency: str | None


class Bound(Extension):
    """A kind of budget with its value.

    A subclass narrows the type of `value`, which says how it is written. Further fields are settings of its own:
    `budget: {NAME: {value: 50%, other: 3}}`.

    Attributes:
        metavar: What its option takes, for the help: SHARE.
        help: Help of its option.
        timed: Whether costs are times, measured in the run, and not counted.
        falling: Whether a larger value means a smaller model.
    """

    metavar: ClassVar[str]
    help: ClassVar[str]
    timed: ClassVar[bool] = False
    falling: ClassVar[bool] = False

    value: float

    @abstractmethod
    def costs(self, model: Counted) -> CostModel | None:
        """Cost of every level of every module; None if it is measured (`steps/latency`). Raises BudgetError."""

    def limit(self, cost: CostModel) -> int:
        """Maximum cost of the whole model."""
        return int(self.value)

    def words(self, cost: CostModel) -> str:
        """The request, for the beginning of messages."""
        return f"{cost.words(self.limit(cost))} requested"

    def label(self) -> str:
        """The value in the name of a folder."""
        return f"{self.value:.10g}"

    def check(self, cost: CostModel, model: Counted) -> None:
        """Raise BudgetError if there is a better way than pruning to reach the bound."""


BUDGETS = Extensions(Bound, "budget", "budget")
"""Kinds of budget by their names; a recipe names exactly one."""


@BUDGETS.register("keep")
class Keep(Bound):
    """Largest share of the block parameters to keep: 0.5 or 50%. The default if no other bound is given."""

    metavar = "SHARE"
    help = "Share of the block parameters to keep: 75% or 0.75. The default is 50% if no budget is given."

    value: Share

    @field_validator("value")
    @classmethod
    def _is_a_share(cls, keep: float) -> float:
        if not 0.01 <= keep <= 1:
            raise ValueError("must be from 1 to 100 %" + (f"; did you mean {keep:g}%?" if 2 <= keep <= 100 else ""))
        return keep

    def costs(self, model: Counted) -> CostModel:
        """Block parameters."""
        from darwinlm.model.units.cost import parameter_costs

        return parameter_costs(model.space)

    def limit(self, cost: CostModel) -> int:
        """See `Bound.limit`."""
        return int(self.value * cost.dense)

    def words(self, cost: CostModel) -> str:
        """See `Bound.words`."""
        return f"keeping {self.value:.4%} means {self.limit(cost):,} of {cost.dense:,} {cost.unit}"

    def label(self) -> str:
        """See `Bound.label`."""
        return f"{100 * self.value:.10g}"


@BUDGETS.register("params")
class Params(Bound):
    """Parameters of the whole saved model; a tied embedding counts once: 2.7B, 350M."""

    metavar = "COUNT"
    help = "Parameters of the whole smaller model: 2.7B or 350M."

    value: Annotated[Count, Field(gt=0)]

    def costs(self, model: Counted) -> CostModel:
        """Parameters of the whole model."""
        from darwinlm.model.units.cost import parameter_costs

        return parameter_costs(model.space, fixed=model.outside)

    def label(self) -> str:
        """See `Bound.label`."""
        return _in_units(self.value, ((10**9, "B"), (10**6, "M"), (10**3, "k")))


class _Size(Bound):
    """A bound on a number of bytes."""

    metavar = "SIZE"

    value: Annotated[ByteCount, Field(gt=0)]

    def label(self) -> str:
        """See `Bound.label`."""
        return _in_units(self.value, _BYTES)


@BUDGETS.register("bytes")
class Bytes(_Size):
    """Weights, and the KV cache of `context` tokens, both in the saved type: 4GiB, 900MB."""

    help = "Bytes of the smaller model's weights and KV cache: 4GiB or 900MB."

    def costs(self, model: Counted) -> CostModel:
        """Bytes."""
        from darwinlm.steps.budget.counted import byte_costs

        return byte_costs(model)


@BUDGETS.register("file")
class File(_Size):
    """The GGUF file, tokenizer included, to 1 %: 95MB.

    Its type is `units.quantisation`; without one q3_k_m, if no larger type makes the whole model that small.
    """

    help = "Size of the smaller model's GGUF file: 70MB. Its type is that of --for, or q3_k_m."

    def costs(self, model: Counted) -> CostModel:
        """Bytes of the file."""
        from darwinlm.steps.budget.counted import file_costs

        return file_costs(model)

    def check(self, cost: CostModel, model: Counted) -> None:
        """Where quantising alone makes the file small enough, the error has the command."""
        from darwinlm.formats.gguf.gguf_format import GGUF
        from darwinlm.runtime.errors import BudgetError

        if self.value < cost.dense or (fits := GGUF.largest(model.checkpoint, self.value)) is None:
            return
        name, size = fits
        raise BudgetError(
            f"budget.file: {cost.words(self.value)} needs no pruning: the whole model has {cost.words(size)} as "
            f"{name}. Write that file: darwinlm export {word(model.model)} --quant {name} "
            "--out model.gguf"
        )


class _Timed(Bound):
    """A bound on measured time."""

    timed = True

    def costs(self, model: Counted) -> None:
        """Measured."""

    @staticmethod
    def _of_longer_text(amount: float, cost: CostModel) -> int:
        """What is left of an amount for as many tokens as before, if text has more of them in a smaller vocabulary."""
        return int(amount / cost.longer)


@BUDGETS.register("speedup")
class Speedup(_Timed):
    """Speed relative to the dense model on this machine, for `prefill_tokens` and `decode_tokens`: 2x."""

    metavar = "FACTOR"
    help = "Speed on this machine, relative to the original model: 2x."
    falling = True

    value: Annotated[Factor, Field(ge=1)]

    def limit(self, cost: CostModel) -> int:
        """See `Bound.limit`."""
        return self._of_longer_text(cost.original / self.value, cost)

    def words(self, cost: CostModel) -> str:
        """See `Bound.words`."""
        return f"{self.value:g}x means {cost.words(self.limit(cost))} of {cost.words(cost.original)}"

    def label(self) -> str:
        """See `Bound.label`."""
        return f"{self.value:.10g}x"


@BUDGETS.register("latency")
class Latency(_Timed):
    """Time for `prefill_tokens` and `decode_tokens` on this machine: 30ms, 1.5s."""

    metavar = "DURATION"
    help = "Time that one request takes on this machine: 30ms or 1.5s."

    value: Annotated[Duration, Field(gt=0)]

    def limit(self, cost: CostModel) -> int:
        """Nanoseconds."""
        return self._of_longer_text(round(1e9 * self.value), cost)

    def label(self) -> str:
        """See `Bound.label`."""
        return f"{1000 * self.value:.10g}ms"


_BYTES = tuple((1024**power, f"{letter}iB") for power, letter in ((3, "G"), (2, "M"), (1, "K")))


def _in_units(value: float, units: tuple[tuple[int, str], ...]) -> str:
    size, unit = next(((size, unit) for size, unit in units if value >= size), (1, ""))
    return f"{value / size:.10g}{unit}"
