"""What single families need in GGUF files, by the names in their descriptions: `latent.split_heads`.

A family's part `gguf` names these functions (fields of `model/families/architecture.py`). `checkpoint` and sizes of the
blocks in the file are reached through a `Reshaper` and a `Layout`.

| field | arguments | result |
| --- | --- | --- |
| `tensors` | a tensor of a block in float32, configuration | the tensor rearranged, or several by their names |
| `arranged`, `folded` | a tensor as it is written, `Reshaper`, `Layout` | the tensor with other values |
| `keys` | `Reshaper`, `Layout` | the value; None isn't written |
| `rope` | `Rope` as the configuration has it, configuration | the `Rope` that the file describes |
| `context` | `Rope`, context of the file in tokens | a shorter context and the reason, for the user; None keeps it |
| `read` | configuration as transformers reads it from a file, `GgufHeader` | None: the configuration is changed |

A function of `tensors` or `arranged` has an inverse in the same file, whose name begins with `undo_`:

| field | arguments | result |
| --- | --- | --- |
| `tensors` | what the function returned, `FromFile` | the tensor of the model |
| `arranged` | a tensor of the file, `Reshaper`, `Layout` | the tensor with the model's values |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from darwinlm.runtime.json_values import JsonObject

Quirk: TypeAlias = Callable[..., Any]
"""A function of the table above; its field tells the arguments and the result."""


@dataclass(frozen=True)
class FromFile:
    """What the inverse of a function of `tensors` may look at.

    Attributes:
        name: Name of the tensor inside its block.
        shape: Its shape in the model.
        block: Number of the block in the file.
        config: Configuration of the model.
        keys: The keys of the file.
    """

    name: str
    shape: tuple[int, ...]
    block: int
    config: PreTrainedConfig
    keys: JsonObject


def quirk(name: str) -> Quirk:
    """The function of this package that a description names."""
    module, _, function_name = name.partition(".")
    function: Quirk = getattr(import_module(f"{__name__}.{module}"), function_name)
    return function


def undoing(name: str) -> Quirk:
    """The inverse of the function that a description names."""
    module, _, function_name = name.partition(".")
    return quirk(f"{module}.undo_{function_name}")


def quirks(names: str | None) -> Iterator[Quirk]:
    """The functions of a field with spaces between several names, in order; none if the field is empty."""
    return map(quirk, (names or "").split())
