"""Models that read texts one by one, measured on the same texts: metrics of their outputs, and scores with labels.

Letters: n sequences, t tokens in each, i texts, c outputs of each.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from darwinlm.model.objective.item_objective import BANK, Bank, ItemObjective
from darwinlm.model.objective.scores import Scores
from darwinlm.model.walk import items
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import NumericsError, install
from darwinlm.steps.evaluate import task_scores
from darwinlm.steps.evaluate.item_metrics import ItemOutputs, item_metrics
from darwinlm.steps.evaluate.model_figures import ReadingFigures, TaskScore
from darwinlm.steps.evaluate.task_scores import Labelled, Ranked
from darwinlm.steps.text.sequences import ItemLabels

if TYPE_CHECKING:
    from darwinlm.model.walk.decoder import Decoder

EXTRA = "reading"
"""Extra with the library of the scores."""


@dataclass(frozen=True)
class ItemQuality:
    """Figures of a model: by the names of metrics, and with labels."""

    values: Mapping[str, float]
    reading: ReadingFigures


@torch.no_grad()
def outputs_for(
    decoder: Decoder, objective: ItemObjective, tokens: Tensor, *, batch_tokens: int, memory: HiddenMemory | None
) -> Tensor:
    """What a model gives for all texts in sequences [n, t], [i, c] float32 on the CPU; processes share them."""
    share = parallel.mine(list(range(len(tokens))))
    size, shared = max(1, batch_tokens // tokens.shape[1]), decoder.owner is not None
    found: dict[int, Tensor] = {}
    batches = [share[start : start + size] for start in range(0, len(share), size)]
    with parallel.agree():
        streams = decoder.through([tokens[batch] for batch in batches], memory=memory) if share or shared else ()
        with decoder.with_head():
            for batch, stream in zip(batches, streams, strict=True):
                own = objective.outputs(decoder.head, stream, tokens[batch]).cpu()
                of_rows = torch.split(own, items.counts(tokens[batch]).tolist())
                found |= dict(zip(batch, of_rows, strict=True))
    for part in parallel.gather(found):
        found |= part
    return torch.cat([found[row] for row in range(len(tokens))])


def measure_items(
    models: Mapping[str, Decoder],
    objective: ItemObjective,
    tokens: Tensor,
    labels: ItemLabels | None,
    *,
    batch_tokens: int,
    memory: HiddenMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, ItemQuality]:
    """Measure several models on the same texts; the first one is the dense one.

    `tokens` are sequences of texts [n, t], with the labels of these. Raises NumericsError if outputs aren't finite.
    """
    outputs: dict[str, Tensor] = {}
    for number, (name, decoder) in enumerate(models.items(), start=1):
        outputs[name] = outputs_for(decoder, objective, tokens, batch_tokens=batch_tokens, memory=memory)
        if not bool(outputs[name].isfinite().all()):
            raise NumericsError(f"the outputs of {name} aren't finite (NaN or infinity): try float32, or another model")
        progress(number, len(models))
    dense, *_ = outputs.values()
    return {name: quality_of(objective, own, dense, labels) for name, own in outputs.items()}


def quality_of(objective: ItemObjective, outputs: Tensor, dense: Tensor, labels: ItemLabels | None) -> ItemQuality:
    """Figures of outputs [i, c], compared with those of the dense model."""
    distances = objective.distance(outputs, dense, Bank(dense[:BANK]))
    given = ItemOutputs(objective, outputs, dense, distances)
    values = {metric.name: metric.of(given) for metric in item_metrics()}
    reading = ReadingFigures(texts=len(outputs))
    if labels is not None and len(labels.label) == len(outputs):
        reading = reading.with_scores(scores_of(objective, outputs, dense, labels))
    return ItemQuality({name: value for name, value in values.items() if value is not None}, reading)


def scores_of(
    objective: ItemObjective, outputs: Tensor, dense: Tensor, labels: ItemLabels
) -> tuple[tuple[TaskScore, ...], str]:
    """Scores with labels, and a remark if there are none."""
    if importlib.util.find_spec("sklearn") is None:
        known = bool(labels.label.isfinite().any()) or bool((labels.role == 1).any())
        return (), f"scores with labels aren't measured without scikit-learn: {install(EXTRA)}" if known else ""
    if isinstance(objective, Scores):
        if objective.labels in ("numbers", "several"):
            known = bool(labels.label.isfinite().any())
            return (
                (),
                f"labels aren't compared with {objective.words()}, of which each text has several" if known else "",
            )
        return _of_scores(objective, outputs, dense, labels), ""
    return _of_embeddings(outputs, dense, labels), ""


def _of_scores(objective: Scores, outputs: Tensor, dense: Tensor, labels: ItemLabels) -> tuple[TaskScore, ...]:
    known = labels.label.isfinite()
    if not bool(known.any()):
        return ()
    own, reference = (
        Labelled(labels.label[known].numpy(), _relevance(objective, given[known]), _chosen(objective, given[known]))
        for given in (outputs, dense)
    )
    scores: list[TaskScore] = []
    classified = objective.labels == "one"
    if classified:
        scores.append(task_scores.mean_score("accuracy", task_scores.correct(own), task_scores.correct(reference)))
        count = len(objective.answers) or outputs.shape[-1]
        scores.append(task_scores.set_score("F1", task_scores.f1(count), own, reference))
    binary = set(np.unique(own.labels)) <= {0.0, 1.0}
    if len(own.scores):
        if binary:
            scores.append(task_scores.set_score("AUC", task_scores.auc, own, reference))
        else:
            scores.append(task_scores.set_score("Spearman", task_scores.spearman, own, reference))
        scores += _ranking(labels.group[known].numpy(), own.labels, own.scores, reference.scores)
    return tuple(scores)


def _relevance(objective: Scores, outputs: Tensor) -> task_scores.Numbers:
    if not objective.ranks(outputs.shape[-1]):
        return np.empty(0)
    relevance: task_scores.Numbers = objective.relevance(outputs).double().numpy()
    return relevance


def _chosen(objective: Scores, outputs: Tensor) -> task_scores.Numbers:
    if objective.labels != "one":
        return np.empty(0)
    chosen: task_scores.Numbers = outputs.argmax(-1).double().numpy()
    return 1 - chosen if objective.answers else chosen  # the first answer means yes


def _ranking(
    groups: np.ndarray, labels: task_scores.Numbers, own: task_scores.Numbers, dense: task_scores.Numbers
) -> list[TaskScore]:
    """NDCG and MRR over queries with several texts, of which some are relevant and some not."""
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(place)
    chosen = [places for places in members.values() if len(places) > 1 and np.ptp(labels[places]) > 0]
    if not chosen:
        return []
    ranked = [
        Ranked([labels[places] for places in chosen], [scores[places] for places in chosen]) for scores in (own, dense)
    ]
    return _rank_scores(*ranked)


def _rank_scores(own: Ranked, dense: Ranked) -> list[TaskScore]:
    return [
        task_scores.mean_score("nDCG@10", task_scores.ndcg(own), task_scores.ndcg(dense)),
        task_scores.mean_score("MRR@10", task_scores.reciprocal_rank(own), task_scores.reciprocal_rank(dense)),
    ]


def _of_embeddings(outputs: Tensor, dense: Tensor, labels: ItemLabels) -> tuple[TaskScore, ...]:
    """Pairs: every query searches all texts. Those with graded labels are compared by rank correlation instead."""
    queries, texts = ((labels.role == role).nonzero().flatten() for role in (1, 0))
    if not len(queries) or not len(texts):
        return ()
    similar = [_cosines(given[queries], given[texts]) for given in (outputs, dense)]
    pairs = labels.group[queries][:, None] == labels.group[texts][None]
    label = labels.label[texts]
    graded = set(label[label.isfinite()].tolist())
    if len(graded) > 2:
        rows, columns = (pairs & label.isfinite()[None]).nonzero(as_tuple=True)
        own, reference = (
            Labelled(label[columns].numpy(), cosines[rows, columns].numpy(), np.empty(0)) for cosines in similar
        )
        return (task_scores.set_score("Spearman", task_scores.spearman, own, reference),)
    relevant = (pairs & ~(label == 0)[None]).double().numpy()
    found = [row for row in range(len(queries)) if relevant[row].any()]
    if not found or len(texts) < 2:
        return ()
    ranked = [Ranked([relevant[row] for row in found], [cosines[row].numpy() for row in found]) for cosines in similar]
    return tuple(_rank_scores(*ranked))


def _cosines(queries: Tensor, texts: Tensor) -> Tensor:
    one, other = (functional.normalize(vectors.double(), dim=-1) for vectors in (queries, texts))
    return one @ other.T
