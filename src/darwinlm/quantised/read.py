"""Quantised weights in a checkpoint: which tensors belong to which weight, and the weight that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from torch import Tensor

from darwinlm.quantised import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4
from darwinlm.quantised.format import Format, Shape
from darwinlm.runtime.errors import CheckpointError, first_line
from darwinlm.runtime.limits import shorten

METHODS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Format, ...]]] = MappingProxyType(
    {
        "fp8": fp8.formats,
        "compressed-tensors": compressed_tensors.formats,
        "gptq": gptq.formats,
        "awq": awq.formats,
        "bitsandbytes": bitsandbytes.formats,
        "mxfp4": mxfp4.formats,
    }
)
"""Formats by `quant_method`."""

Result = TypeVar("Result")
UNUSED = ("input_scale", "input_zero_point", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale")
"""Last words of names of tensors for quantised activations and KV caches."""

DAMAGED = (ValueError, KeyError, TypeError, IndexError, RuntimeError)
"""Errors of formulas on tensors that don't fit."""


@dataclass(frozen=True)
class Packed:
    """A quantised weight: its format, and the names of its stored tensors by ending."""

    format: Format
    names: Mapping[str, str]

    def shape(self, shapes: Mapping[str, tuple[str, Shape]], read: Callable[[str], Tensor]) -> Shape:
        """Its shape, from types and shapes by stored name, and small tensors. Raises CheckpointError."""
        for ending, name in self.names.items():
            if shapes[name][0] not in self.format.types[ending].split():
                raise CheckpointError(f"the tensor {shorten(name)} holds {shapes[name][0]} numbers")
        by_ending = {ending: shapes[name][1] for ending, name in self.names.items()}
        return self._of(self.format.shape, by_ending, lambda ending: read(self.names[ending]))

    def weight(self, stored: Callable[[str], Tensor]) -> Tensor:
        """The weight in float32. Raises CheckpointError if its tensors don't fit each other."""
        return self._of(self.format.weight, {ending: stored(name) for ending, name in self.names.items()})

    def _of(self, formula: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return formula(*arguments)
        except DAMAGED as error:
            name = next(iter(self.names.values()))
            raise CheckpointError(f"the weight of {shorten(name)} is damaged: {first_line(error)}") from error


def formats_of(plain: Mapping[str, Any], path: Path | str) -> tuple[Format, ...]:
    """Formats of the quantised weights that a config.json describes; none of a plain model.

    Raises CheckpointError if they can't be read.
    """
    config = plain.get("quantization_config")
    if config is None:
        return ()
    method = config.get("quant_method") if isinstance(config, Mapping) else config
    if isinstance(config, Mapping) and isinstance(method, str) and method in METHODS:
        try:
            return METHODS[method](config)
        except (ValueError, TypeError, AttributeError) as error:
            method = f"{method} with {first_line(error)}"
    raise CheckpointError(
        f"{path}: the model is quantised in a way that can't be read (quantization_config says {shorten(method)}): use "
        f"the model that it was made from, or one in {', '.join(METHODS)}"
    )


def packed_weights(names: Iterable[str], formats: Sequence[Format], where: Path | str) -> dict[str, Packed]:
    """The quantised weights among stored tensors, by the name of the weight.

    Raises CheckpointError if a tensor of one is missing.
    """
    stored = set(names)
    found: dict[str, Packed] = {}
    for each in formats:
        mark = next(iter(each.needed))
        for name in [name for name in stored if name.endswith(mark)]:
            begin = name.removesuffix(mark)
            parts = {ending: begin + ending for ending in each.types if begin + ending in stored}
            if begin + each.name in found:
                continue
            if lacking := each.needed.keys() - parts.keys():
                raise CheckpointError(
                    f"{where} holds {shorten(name)} without {begin + min(lacking)}: fetch the model again"
                )
            found[begin + each.name] = Packed(each, parts)
    if formats and not found:
        marks = " or ".join(next(iter(each.needed)) for each in formats)
        raise CheckpointError(
            f"{where}: config.json says that weights are quantised, but none has {marks}: fetch the model again"
        )
    return found
