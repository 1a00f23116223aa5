"""The last choice: the best allocations of the evolution are trained, and the one that recovers best is taken.

The record keeps every finalist's loss before training and after each round, so that ranks can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from darwinlm import parallel
from darwinlm.artifact import damaged, read_json, write_json
from darwinlm.errors import NumericsError
from darwinlm.recipe import SearchSettings
from darwinlm.search.evolve.evolution import Trainer
from darwinlm.search.predict.gradient_agreement import GradientAgreement
from darwinlm.search.problem.space import Allocation


@dataclass
class Finalist:
    """One candidate of the last choice.

    Attributes:
        allocation: its levels.
        kl_before: loss without training.
        kl_after: loss after each round that it took part in.
        agreement: of its gradients with the dense model's, where that was asked for.
    """

    allocation: Allocation
    kl_before: float
    kl_after: list[float] = field(default_factory=list)
    agreement: float | None = None


def choose(
    best: Sequence[tuple[float, Allocation]],
    settings: SearchSettings,
    trainer: Trainer | None,
    proxy: GradientAgreement | None,
    record: Path,
) -> tuple[Allocation, dict[str, Any]]:
    """Train the finalists in rounds, or rank them by gradient agreement where there are no rounds.

    Args:
        best: distinct allocations and their losses, best first.
        settings: the recipe's section.
        trainer: trains them.
        proxy: ranks them without training.
        record: losses after each round, from which an interrupted choice goes on.

    Returns:
        The choice, and the record for the report.

    Raises:
        NumericsError: training left no finite loss.
        ArtifactError: the record of an interrupted run is damaged.
    """
    finalists = [Finalist(allocation, loss) for loss, allocation in best[: settings.finalists]]
    _resume(finalists, record)
    if proxy is not None and any(each.agreement is None for each in finalists):
        for each, agreement in zip(finalists, proxy.of([each.allocation for each in finalists]), strict=True):
            each.agreement = agreement
        _save(finalists, record)
    if trainer is not None and len(finalists) > 1:
        _train(finalists, settings, trainer, record)
    order = sorted(finalists, key=_merit)
    chosen = order[0] if settings.finalist_rounds or proxy is None else min(finalists, key=_disagreement)
    return chosen.allocation, {
        "chosen": finalists.index(chosen),
        "candidates": [
            {
                **asdict(each),
                "rank_before": rank + 1,
                "rank_after": order.index(each) + 1 if each.kl_after else None,
                "rank_proxy": _rank_of(each, finalists),
            }
            for rank, each in enumerate(finalists)
        ],
    }


def _train(finalists: list[Finalist], settings: SearchSettings, trainer: Trainer, record: Path) -> None:
    trainer.keep(())
    pool = finalists
    untrained: list[int] = []
    for number, part in enumerate(settings.finalist_rounds):
        untrained.append(part.training_tokens)
        if any(len(each.kl_after) <= number for each in pool):
            allocations = [each.allocation for each in pool]
            for tokens in untrained:
                trainer.train(allocations, tokens)
            untrained = []
            losses = trainer.kls(allocations, settings.stages[-1].tokens)
            for each, loss in zip(pool, losses, strict=True):
                each.kl_after = [*each.kl_after[:number], loss]
            if not any(math.isfinite(loss) for loss in losses):
                raise NumericsError(
                    "no finalist's values are finite after training: lower search.training.learning_rate or try "
                    "compute.dtype=float32"
                )
            _save(finalists, record)
        pool = sorted(pool, key=_merit)[: part.survivors]
        trainer.keep([each.allocation for each in pool])
    trainer.keep(())


def _merit(each: Finalist) -> tuple[int, float, float]:
    """Those that came further first, then by loss."""
    return -len(each.kl_after), each.kl_after[-1] if each.kl_after else 0.0, each.kl_before


def _disagreement(each: Finalist) -> tuple[float, float]:
    assert each.agreement is not None
    return -each.agreement, each.kl_before


def _rank_of(each: Finalist, finalists: list[Finalist]) -> int | None:
    if each.agreement is None:
        return None
    return sorted(finalists, key=_disagreement).index(each) + 1


def _save(finalists: list[Finalist], record: Path) -> None:
    rows = [asdict(each) for each in finalists]
    for row in rows:  # JSON knows no infinity
        row["kl_after"] = [loss if math.isfinite(loss) else None for loss in row["kl_after"]]
    if parallel.is_main():
        write_json(record, rows)
    parallel.barrier()


def _resume(finalists: list[Finalist], record: Path) -> None:
    rows = parallel.broadcast(read_json(record) if parallel.is_main() and record.exists() else None)
    if rows is None:
        return
    try:
        known = {tuple(row["allocation"]): row for row in rows}
        for each in finalists:
            row = known[each.allocation]
            each.kl_after = [math.inf if loss is None else float(loss) for loss in row["kl_after"]]
            each.agreement = row["agreement"]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(record, f"it doesn't hold these finalists: {error}") from error
