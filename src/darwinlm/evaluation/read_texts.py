"""Models that give scores or embeddings, measured on texts or pairs, beside the model that they were pruned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from darwinlm.evaluation.evaluation_text import EvaluationText
from darwinlm.evaluation.seen_text import HELD_OUT, Overlap, RunText, without_run
from darwinlm.formats.transformers.saved import RECORD
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.walk import items
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.tables import Table
from darwinlm.steps.evaluate.item_metrics import item_metrics
from darwinlm.steps.evaluate.item_quality import ItemQuality, measure_items
from darwinlm.steps.evaluate.model_figures import READING_MEANS, task_cell
from darwinlm.steps.text.distinct import Distinct
from darwinlm.steps.text.item_sequences import prepare_items
from darwinlm.steps.text.reading import encoder_of, with_answers, with_known_labels
from darwinlm.steps.text.samples import read_samples
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.formats.opened import Opened
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.objective.item_objective import ItemObjective
    from darwinlm.model.walk.decoder import Decoder
    from darwinlm.steps.text.sequences import TokenSequences


@dataclass(frozen=True)
class ReadText:
    """Figures of one source of texts or pairs.

    Attributes:
        tokens: Number of tokens that were read.
        models: Figures by the name of the model; the dense one is last, if there is one.
        compared: Whether there is a dense model.
        fewer_tokens: Whether the dense model was cut to the tokens of the other one.
        contradictory: A remark on labels that contradict each other; empty if none do.
    """

    source: str
    tokens: int
    models: Mapping[str, ItemQuality]
    compared: bool
    fewer_tokens: bool
    contradictory: str
    overlap: Overlap

    def table(self) -> Table:
        """How close the model is to the dense one, and the scores with labels; a column for each of both."""
        first, *_ = qualities = list(self.models.values())
        shown = [metric for metric in item_metrics() if self.compared and metric.name in first.values]
        rows = [
            (metric.heading, *(metric.words(each.values.get(metric.name)) for each in qualities)) for metric in shown
        ]
        for scores in zip(*(quality.reading.scores for quality in qualities), strict=True):
            cells = (task_cell(score, number > 0 or not self.compared) for number, score in enumerate(scores))
            rows.append((f"{scores[0].name} ({scores[0].count:,})", *cells))
        remarks = [f"{self.source}: {first.reading.texts:,} texts, {self.tokens:,} tokens"]
        if not first.reading.scores:
            remarks.append(first.reading.remark or "no scores: the texts have no labels")
        elif self.compared:
            remarks.append(READING_MEANS)
        if self.fewer_tokens:
            remarks.append("dense: the original model, cut to the same tokens")
        if self.contradictory and first.reading.scores:
            remarks.append(self.contradictory)
        remarks += self.overlap.remarks(self.source)
        return Table(("figure", "model", "dense")[: 1 + len(qualities)], rows, remarks)

    def as_json(self) -> JsonObject:
        """Plain values; figures that compare two models are left out without a dense one."""
        models: list[JsonObject] = []
        for name, quality in self.models.items():
            scores = [asdict(score) for score in quality.reading.scores]
            if not self.compared:
                scores = [score | {"difference": None, "error": None} for score in scores]
            compared = dict(quality.values) if self.compared else {}
            models.append({"model": name, "metrics": compared, "scores": scores})
        texts = next(iter(self.models.values())).reading.texts
        return {
            "source": self.source,
            "texts": texts,
            "tokens": self.tokens,
            "models": models,
            "seen": self.overlap.as_json(),
        }


def reading_settings(checkpoint: Checkpoint, sequence_length: int) -> TextSettings:
    """How a model reads its texts: with the answers and the template of the run that saved it, if one did."""
    path, given = checkpoint.folder / RECORD, dict[str, object]()
    record = read_json(path) if path.is_file() else None
    recipe = record.get("recipe") if isinstance(record, dict) else None
    text = recipe.get("text") if isinstance(recipe, dict) else None
    if isinstance(text, dict):
        given = {name: text.get(name) for name in ("answers", "template") if isinstance(text.get(name), str)}
    return TextSettings(sequence_length=sequence_length, **given)


def as_reader(opened: Opened, settings: TextSettings) -> bool:
    """Whether a model gives scores or embeddings; it then gets the tokens that it answers with. Raises RecipeError."""
    if opened.checkpoint is None:
        return False
    if not opened.checkpoint.answers:
        opened.checkpoint = with_answers(opened.checkpoint, settings)
    return objective_of(opened.checkpoint).reads


def measure_reading(
    models: Mapping[str, Opened],
    sources: Sequence[str],
    settings: TextSettings,
    *,
    tokens: int,
    batch_tokens: int,
    run: RunText | None,
) -> Iterator[ReadText]:
    """Measure models on texts or pairs, at most `tokens` of each source; a second model is the dense one.

    Raises:
        DataError, RecipeError: The texts don't fit the model.
        ModelError: The dense model gives something else.
        NumericsError: Outputs aren't finite.
    """
    (name, opened), *others = models.items()
    checkpoint = opened.checkpoint
    assert checkpoint is not None, "llama.cpp runs no reader"
    objective = cast("ItemObjective", objective_of(checkpoint))
    for dense_name, dense in others:
        reads = as_reader(dense, settings)
        if not reads or objective_of(cast("Checkpoint", dense.checkpoint)) != objective:
            raise ModelError(
                f"{dense_name} doesn't give the same as {name}, {objective.words()}, for the same tokens: --against "
                "must be the model from which the other was pruned"
            )
    for source in sources:
        text, contradictory = _prepared(checkpoint, source, settings, tokens)
        opened.check_tokens(items.ids(text.tokens))
        decoders = {key: cast("Decoder", model.decoder(text.tokens)) for key, model in [*others, (name, opened)]}
        with TemporaryDirectory(prefix="darwinlm-") as folder:
            quality = measure_items(
                decoders,
                objective,
                text.tokens,
                text.items,
                batch_tokens=batch_tokens,
                memory=HiddenMemory(Path(folder)),
            )
        of_run = EvaluationText(source, text.tokens, text.document_hashes, 0.0, 0)
        overlap = without_run(of_run) if run is None else run.overlap(of_run)
        ordered = {key: quality[key] for key in models}
        fewer = any(dense.fewer_tokens for _, dense in others)
        compared = bool(others)
        yield ReadText(source, text.n_tokens, ordered, compared, fewer, contradictory, overlap)


def _prepared(model: Checkpoint, source: str, settings: TextSettings, tokens: int) -> tuple[TokenSequences, str]:
    """Texts as the model reads them, in sequences, and a remark on contradictory labels. Raises DataError."""
    samples = Distinct(with_known_labels(read_samples(source, seed=settings.seed), model))
    encoder, shares = encoder_of(model, settings), {HELD_OUT: tokens}
    sequences = prepare_items(samples, shares, encoder, settings.seed, source, lambda _: None)
    return sequences[HELD_OUT], samples.remark
