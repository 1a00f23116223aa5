"""Inputs of the output projections of a mixture's experts.

Letters: n tokens, k experts chosen for each, m residual width, d channels of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from darwinlm.families.parts import Experts, Mlp

Divisor = Callable[[Tensor], Tensor | None]
"""What a norm divides each token's output [..., r] by, [..., 1] float32; None without a norm."""


def mixture_module(block: nn.Module, part: Mlp, name: str | None) -> Any | None:
    """A module of a block's mixture by its name there; None if the MLP is absent or not a mixture."""
    try:
        return None if name is None else block.get_submodule(f"{part.prefix}{name}")
    except AttributeError:
        return None


def expert_module(block: nn.Module, part: Mlp) -> Any | None:
    """The module that holds the experts of a block; None if its MLP is absent or not a mixture."""
    return None if part.experts is None else mixture_module(block, part, part.experts.name)


@dataclass(frozen=True)
class Routing:
    """Input of a mixture [n, m], the chosen experts of each token [n, k], and the factors on their outputs [n, k]."""

    hidden: Tensor
    chosen: Tensor
    weights: Tensor


def watch_experts(module: Any, note: Callable[[Routing, Tensor], None]) -> RemovableHandle:
    """Report the routing and the result [n, m] of every call of the experts until the handle is removed.

    The module is called with hidden states [n, m], chosen experts [n, k] and their weights [n, k].
    """

    def called(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        others = (named[name] for name in ("hidden_states", "top_k_index", "top_k_weights") if name in named)
        note(Routing(*arguments, *others), output)

    return module.register_forward_hook(called, with_kwargs=True)  # type: ignore[no-any-return]


class RoutedSample:
    """What a mixture does with all tokens that reach it while it is watched.

    Attributes:
        hidden: Input of the experts, [n, m].
        logits: Logits of the router, [n, e] float32.
        output: Output of the experts, [n, m].
        divisor: What a norm behind the experts divides their output by, [n, 1] float32; None without a norm.
    """

    def __init__(self, block: nn.Module, part: Mlp, divisor: Divisor) -> None:
        assert part.experts is not None
        self._divisor = divisor
        self._module = mixture_module(block, part, part.experts.name)
        self._router: Any = mixture_module(block, part, part.experts.logits or part.experts.router)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Collect while the block runs."""
        hidden, outputs, logits = list[Tensor](), list[Tensor](), list[Tensor]()

        def routed(routing: Routing, output: Tensor) -> None:
            hidden.append(routing.hidden)
            outputs.append(output)

        def chosen(_: nn.Module, __: Any, output: Any) -> None:
            logits.append((_widest(output) if isinstance(output, tuple) else output).flatten(0, -2))

        with watch_experts(self._module, routed), self._router.register_forward_hook(chosen):
            yield
        self.hidden, self.output, self.logits = torch.cat(hidden), torch.cat(outputs), torch.cat(logits).float()
        self.divisor = self._divisor(self.output)


def _widest(parts: tuple[Tensor, ...]) -> Tensor:
    """The logits in a router's result. Releases of transformers differ in its order."""
    return max((part for part in parts if part.is_floating_point()), key=lambda part: part.shape[-1])


def expert_inputs(module: Any, experts: Experts, routing: Routing, expert: int) -> tuple[Tensor, Tensor]:
    """Tokens [n] of an expert, and the weighted inputs of its output projection, [n, d] float32.

    With the router's weights, the projections of all experts add up to the mixture's output.
    """
    token, place = torch.where(routing.chosen == expert)
    channels = expert_channels(module, experts, routing.hidden[token], expert)
    return token, channels.float() * routing.weights[token, place].float()[:, None]


def expert_channels(module: Any, experts: Experts, hidden: Tensor, expert: int) -> Tensor:
    """Channels of an expert, the unweighted inputs of its output projection, [n, m] -> [n, d]."""
    (name,) = experts.segments
    channels: Tensor = module._apply_gate(_projected(module, experts, name, hidden, expert))
    return channels


def projected_channels(module: Any, experts: Experts, channels: Tensor, expert: int) -> Tensor:
    """Unweighted output of an expert from its channels, [n, d] -> [n, m]."""
    return _projected(module, experts, experts.output, channels, expert)


def _projected(module: Any, experts: Experts, name: str, x: Tensor, expert: int) -> Tensor:
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    return linear(x, weight.T if experts.transposed else weight, None if bias is None else bias[expert])


def output_sizes(module: Any, experts: Experts) -> tuple[int, int, int]:
    """Number of experts, residual width and channels of each expert."""
    count, rows, columns = getattr(module, experts.output).shape
    return (count, columns, rows) if experts.transposed else (count, rows, columns)
