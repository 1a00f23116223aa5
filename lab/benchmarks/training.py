"""Tokens per second of recovery's steps, in pairs: every variant takes turns with the loop as it is.

On a CPU, seconds are those of one thread's processor time, which other programs change less.

Variants: activations of blocks recomputed (`checkpointing`), each block compiled (`compiled`, with a static shape), a
residual stream in bfloat16 instead of float32 (`bfloat16 stream`), and AdamW with 8-bit moments of torchao or of
bitsandbytes. A step is the dense model's pass, the smaller model's forward and backward passes, and AdamW's update.

    python -m lab.benchmarks.training DENSE runs/half/model --rounds 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.models.resolve import resolve_model
from darwinlm.recipe import RecoverySettings
from darwinlm.recovery.model import Losses, prepared, run_dense
from darwinlm.recovery.train import BETAS, MAX_GRAD_NORM


@dataclass
class Training:
    """What a variant changes."""

    model: Any
    optimizer: Any
    weights: list[torch.nn.Parameter]


@contextmanager
def low_stream(training: Training) -> Iterator[None]:
    model = training.model
    handle = model.get_input_embeddings().register_forward_hook(lambda *arguments: arguments[2].bfloat16())
    yield
    handle.remove()


@contextmanager
def compiled(training: Training) -> Iterator[None]:
    model = training.model
    torch._dynamo.config.cache_size_limit = 4 * len(model.model.layers)  # layers of one class differ in shape
    for layer in model.model.layers:
        layer.compile()
    yield
    for layer in model.model.layers:
        layer._compiled_call_impl = None


@contextmanager
def checkpointing(training: Training) -> Iterator[None]:
    model = training.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    yield
    model.gradient_checkpointing_disable()


def moments_in_8_bits(package: str) -> Callable[[Training], AbstractContextManager[None]]:
    made: list[Any] = []

    @contextmanager
    def variant(training: Training) -> Iterator[None]:
        if not made:
            optimizer = import_module(package).AdamW8bit
            made.append(optimizer(training.weights, 1e-6, betas=BETAS, weight_decay=0.0))
        usual, training.optimizer = training.optimizer, made[0]
        yield
        training.optimizer = usual

    return variant


VARIANTS = {
    "checkpointing": checkpointing,
    "bfloat16 stream": low_stream,
    "compiled": compiled,
    "8-bit AdamW, torchao": moments_in_8_bits("torchao.optim"),
    "8-bit AdamW, bitsandbytes": moments_in_8_bits("bitsandbytes.optim"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("small", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a step, in sequences of 512")
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device, dtype, settings = torch.device(options.device), getattr(torch, options.dtype), RecoverySettings(tokens=1)
    with tempfile.TemporaryDirectory() as work:
        teacher = resolve_model(options.dense, Path(work)).load(dtype, device)
    model = prepared(Checkpoint.open(options.small).load(torch.float32), settings)
    losses = Losses(model, teacher, settings, dtype, sharded=False).to(device).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    training = Training(model, torch.optim.AdamW(weights, 1e-6, BETAS, weight_decay=0.0, fused=True), weights)
    tokens = torch.randint(1000, int(model.config.vocab_size), (options.tokens // 512, 512), device=device)

    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def step() -> tuple[float, float]:
        begun = clock()
        loss = losses(tokens, run_dense(teacher, tokens))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        return clock() - begun, value

    step()
    for name in options.variant or VARIANTS:
        pairs, first = [], 0.0
        for round_ in range(options.rounds):
            before = step()[0]
            with VARIANTS[name](training):
                if not round_:
                    first = step()[0]  # with what is compiled once
                after, loss = step()
            pairs.append((before, after))
        row = {
            "variant": name,
            "tokens_per_second": [round(options.tokens / median(each), 1) for each in zip(*pairs, strict=True)],
            "faster": round(median(before / after for before, after in pairs), 3),
            "range": [round(act(before / after for before, after in pairs), 3) for act in (min, max)],
            "first_seconds": round(first, 1),
            "loss": round(loss, 4),
            "device": str(device),
            "dtype": options.dtype,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
