"""Pruning database of one module: blocked order and nested factors against removal of one column at a time.

Prints one JSON line per size. The baseline removes channels as Optimal Brain Surgeon does, in float32, on full d x d
and r x d matrices, one column per Python step. At sizes where all columns would take minutes it stops after
``--steps`` columns, unless ``--full`` is given. The total time is then extrapolated (every step costs the same). Every
size runs in a separate process, so that memory peaks don't mix. The last line gives the growth of all figures as powers
of d. Second moments are synthetic: a decaying low-rank part with a log-normal spread of scales and a floor. Weights are
Gaussian. Other load on the machine makes the ratio meaningless, because steps are short and waiting threads lose their
turn. The load average is therefore part of the result.

    python -m lab.benchmarks.database --size 576x1536 --size 1024x4096
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from darwinlm.steps.database.factors import NestedFactors, full_target, kept_weights, unpack_lower, whole_factor_
from darwinlm.steps.database.order import damp_, ordered_moment, removal_order

SIZES = ("576x1536", "1024x4096", "2048x8192")


def synthetic(r: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Second moment [d, d] and weight [r, d], float32, the same for every run."""
    generator = torch.Generator().manual_seed(d)
    rank = d // 4
    F = torch.randn(rank, d, generator=generator) * torch.logspace(0, -2, rank)[:, None]
    H = F.T @ F * (9 / rank)
    H.diagonal().add_(0.01 + 0.05 * torch.rand(d, generator=generator))
    scale = torch.exp(0.5 * torch.randn(d, generator=generator))
    H *= scale
    H *= scale[:, None]
    return H.to(device), torch.randn(r, d, generator=generator).to(device)


def column_by_column(H: Tensor, W: Tensor, steps: int) -> tuple[list[int], list[float], float]:
    """Remove ``steps`` columns; return them, their costs, and seconds per step without the inversion."""
    C = torch.cholesky_inverse(torch.linalg.cholesky(H))
    W = W.clone()
    gone = torch.zeros(len(C), dtype=torch.bool, device=C.device)
    removed, costs = [], []
    start = time.perf_counter()
    for _ in range(steps):
        prices = W.square().sum(0) / C.diagonal()
        prices[gone] = torch.inf
        j = int(prices.argmin())
        removed.append(j)
        costs.append(float(prices[j]))
        row = C[j] / C[j, j]
        W -= W[:, j : j + 1] * row
        C -= C[:, j : j + 1] * row
        W[:, j] = 0
        C[j, :] = C[:, j] = 0
        C[j, j] = 1
        gone[j] = True
    return removed, costs, (time.perf_counter() - start) / steps


def timed(device: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Result and seconds of a call, including the wait for the device."""
    start = time.perf_counter()
    result = function(*arguments)
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def factorise(H: Tensor, W: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Factors as the database computes and stores them."""
    packed, errors, _ = whole_factor_(damp_(ordered_moment(H, columns)), W, columns)
    return packed, errors


def growth(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth exponents in d of times and memory, between the smallest and the largest size."""
    small, large = (end(results, key=lambda result: result["d"]) for end in (min, max))
    growth_line = {"benchmark": "database growth", "from": small["d"], "to": large["d"]}
    for name in ("order_s", "factors_s", "column_by_column_s", "stored_mb"):
        growth_line[f"{name} grows as d to the"] = round(
            math.log(large[name] / small[name]) / math.log(large["d"] / small["d"]), 2
        )
    return growth_line


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(r: int, d: int, device: str, steps: int, full_below: int, repeats: int) -> dict[str, object]:
    torch.linalg.cholesky(torch.eye(8, device=device))  # load the libraries
    H, W = synthetic(r, d, device)
    units = torch.arange(d, device=device)[:, None]
    before = peak_bytes(device)
    order_seconds, factor_seconds = [], []
    for _ in range(repeats):
        order, seconds = timed(device, removal_order, H, W, units)
        order_seconds.append(seconds)
        columns = units[order.units].reshape(-1)
        (packed, errors), seconds = timed(device, factorise, H, W, columns)
        factor_seconds.append(seconds)
    peak = peak_bytes(device)
    L = unpack_lower(packed, d)
    factors = NestedFactors(columns, L, full_target(L, W, columns))
    _, weights_seconds = timed(device, kept_weights, factors, d // 2)

    steps = d if d <= full_below else min(steps, d)
    (removed, costs, per_step), baseline_seconds = timed(device, column_by_column, damp_(H.clone()), W, steps)
    inversion = baseline_seconds - per_step * steps
    baseline = inversion + per_step * d
    ours = min(order_seconds) + min(factor_seconds)
    ours_at_steps = errors.flip(0)[1 : steps + 1].cpu()
    theirs_at_steps = torch.tensor(costs, dtype=torch.float64).cumsum(0)
    stored = packed.nbytes + columns.to(torch.int32).nbytes + errors.nbytes
    return {
        "benchmark": "database",
        "r": r,
        "d": d,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "load": round(os.getloadavg()[0], 1),
        "order_s": round(min(order_seconds), 3),
        "factors_s": round(min(factor_seconds), 3),
        "weights_of_one_level_s": round(weights_seconds, 4),
        "column_by_column_s": round(baseline, 2),
        "column_by_column_steps": steps,
        "ratio": round(baseline / ours, 1),
        "max_relative_error_difference": float((theirs_at_steps / ours_at_steps - 1).abs().max()),
        "same_columns": len(set(removed) & set(order.units[-steps:].tolist())) / steps,
        "same_places": sum(a == b for a, b in zip(removed, order.units.flip(0).tolist(), strict=False)) / steps,
        "peak_mb": round(peak / 2**20),
        "inputs_and_libraries_mb": round(before / 2**20),
        "stored_mb": round(stored / 2**20, 1),
        "bytes_per_level": round(stored / (d + 1)),
        "bytes_of_one_dense_float32_level": r * d * 4,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", metavar="RxD", help=f"outputs x inputs; default: {' '.join(SIZES)}")
    parser.add_argument("--steps", type=int, default=100, help="columns that the baseline removes before extrapolation")
    parser.add_argument("--full", action="store_true", help="run the whole baseline up to 4096 inputs instead of 2048")
    parser.add_argument("--repeats", type=int, default=1, help="repeats of our method; the fastest counts")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    results = []
    for size in options.size or SIZES:
        r, d = (int(part) for part in size.split("x"))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            job = pool.submit(
                measure, r, d, options.device, options.steps, 4096 if options.full else 2048, options.repeats
            )
            results.append(job.result())
            print(json.dumps(results[-1]), flush=True)
    if len({result["d"] for result in results}) > 1:
        print(json.dumps(growth(results)), flush=True)


if __name__ == "__main__":
    main()
