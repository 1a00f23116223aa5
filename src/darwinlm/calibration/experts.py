"""Inputs of the output projections of a mixture's experts.

Letters: n tokens, k experts chosen for each, m residual width, d channels of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid
from torch.utils.hooks import RemovableHandle

from darwinlm.calibration.expert_order import ExpertOrder, Total, expert_order
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
    """What a mixture does with the first tokens that reach it: at most `wanted`.

    Attributes:
        hidden: Input of the experts, [n, m].
        logits: Logits of the router, [n, e] float32.
        divisor: What a norm behind the experts divides their output by, [n, 1] float32; None without a norm.
        beside: Output of the shared expert, [n, m], divided likewise; None without one.
    """

    def __init__(self, block: nn.Module, part: Mlp, wanted: int, divisor: Divisor) -> None:
        assert part.experts is not None
        self._wanted, self._divisor = wanted, divisor
        self._seen: dict[str, list[Tensor]] = {}
        self._module = mixture_module(block, part, part.experts.name)
        self._router = mixture_module(block, part, part.experts.logits or part.experts.router)
        self._shared = mixture_module(block, part, part.experts.shared)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Collect while the block runs."""
        with ExitStack() as hooks:
            hooks.enter_context(watch_experts(self._module, self._routed))
            for name, module in (("logits", self._router), ("beside", self._shared)):
                if module is not None:

                    def note(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                        self._add(name, _widest(output) if isinstance(output, tuple) else output)

                    hooks.enter_context(module.register_forward_hook(note))
            yield
        self.hidden, self.divisor = torch.cat(self._seen["hidden"]), self._joined("divisor")
        self.logits, self.beside = torch.cat(self._seen["logits"]).float(), self._joined("beside")
        by = None if self.beside is None else self._divisor(self.beside)
        if self.beside is not None and by is not None:
            self.beside = self.beside.float() / by

    def _routed(self, routing: Routing, output: Tensor) -> None:
        by = self._divisor(output)
        self._add("hidden", routing.hidden)
        if by is not None:
            self._add("divisor", by)

    def _add(self, name: str, values: Tensor) -> None:
        parts = self._seen.setdefault(name, [])
        if room := self._wanted - sum(map(len, parts)):
            parts.append(values.flatten(0, -2)[:room].detach().clone())

    def _joined(self, name: str) -> Tensor | None:
        return torch.cat(self._seen[name]) if name in self._seen else None


def _widest(parts: tuple[Tensor, ...]) -> Tensor:
    """The logits in a router's result. Releases of transformers differ in its order."""
    return max((part for part in parts if part.is_floating_point()), key=lambda part: part.shape[-1])


def expert_output(module: Any, hidden: Tensor, expert: int) -> Tensor:
    """Unweighted output of one expert on all given tokens, [n, m] -> [n, m]."""
    chosen = torch.full((len(hidden), 1), expert, device=hidden.device)
    # Calling the module itself would trigger its hooks.
    output: Tensor = module.forward(hidden, chosen, torch.ones_like(chosen, dtype=hidden.dtype))
    return output


@torch.no_grad()
def order_experts(
    block: nn.Module, part: Mlp, config: Any, sample: RoutedSample, S: Tensor | None, total: Total
) -> ExpertOrder:
    """Removal order of the experts of a mixture.

    The block is loaded, and `sample` is what its mixture did with some tokens. S is [m, m], the second moment of the
    gradients at its output; None for the unweighted order. `total` sums over processes.
    """
    experts, module = part.experts, expert_module(block, part)
    assert experts is not None
    hidden, logits, divisor = sample.hidden, sample.logits, sample.divisor
    factors = experts.weight_scale(config) * torch.ones(logits.shape[1], device=logits.device)
    if experts.factors is not None:
        factors = factors * _tensor(block, part, experts.factors)

    def outputs(expert: int, tokens: Tensor) -> Tensor:
        y = factors[expert] * expert_output(module, hidden[tokens], expert)
        return y if divisor is None else y / divisor[tokens]

    scores = logits.sigmoid() if experts.scores == "sigmoid" else logits.softmax(-1)
    corrected = experts.correction is not None
    return expert_order(
        logsigmoid(logits) if experts.scores == "sigmoid" else logits,
        outputs,
        experts.chosen_of(config),
        S,
        normalised=experts.sums_to_one(config),
        choice=scores + _tensor(block, part, experts.correction or "").flatten() if corrected else logits,
        beside=sample.beside,
        total=total,
    )


def _tensor(block: nn.Module, part: Mlp, name: str) -> Tensor:
    """A tensor of a mixture by its name there."""
    owner, _, leaf = f"{part.prefix}{name}".rpartition(".")
    tensor: Tensor = getattr(block.get_submodule(owner), leaf)
    return tensor


def expert_inputs(module: Any, experts: Experts, routing: Routing, expert: int) -> tuple[Tensor, Tensor]:
    """Tokens [n] of an expert, and the weighted inputs of its output projection, [n, d] float32.

    With the router's weights, the projections of all experts add up to the mixture's output.
    """
    token, place = torch.where(routing.chosen == expert)
    hidden = routing.hidden[token]
    (name,) = experts.segments
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    gate_up = linear(hidden, weight.T if experts.transposed else weight, None if bias is None else bias[expert])
    return token, module._apply_gate(gate_up).float() * routing.weights[token, place].float()[:, None]


def output_sizes(module: Any, experts: Experts) -> tuple[int, int, int]:
    """Number of experts, residual width and channels of each expert."""
    count, rows, columns = getattr(module, experts.output).shape
    return (count, columns, rows) if experts.transposed else (count, rows, columns)
