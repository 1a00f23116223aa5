"""One evaluation from request to result: load the model, measure, and save every part when it is finished."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from darwinlm.evaluation import harness, score_tables
from darwinlm.evaluation.evaluation_text import EvaluationText, pack, share_vocabulary
from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.measures.measured import MeasuredScore, measure_model, score_table
from darwinlm.evaluation.measures.named import MeasureRequest
from darwinlm.evaluation.measures.score_store import ScoreStore
from darwinlm.evaluation.measures.scored_model import ScoredModel
from darwinlm.evaluation.measures.seen_items import check_unseen
from darwinlm.evaluation.read_texts import ReadText, as_reader, measure_reading, reading_settings
from darwinlm.evaluation.seen_text import Overlap, run_of, without_run
from darwinlm.evaluation.suites import SuiteTask, parse_suite
from darwinlm.formats.opened import Opened, open_model
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import NOTHING
from darwinlm.runtime.artifact import read_json, write_json
from darwinlm.runtime.compute import resolve_device, resolve_dtype
from darwinlm.runtime.errors import ArtifactError, RecipeError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.lock import hold_target
from darwinlm.runtime.places import check_output
from darwinlm.runtime.tables import Table
from darwinlm.steps.chats.answers import measure_chats
from darwinlm.steps.chats.chat_figures import ChatFigures
from darwinlm.steps.evaluate.looking_back import all_copying, longest_sequence, measure_copying
from darwinlm.steps.evaluate.metric import TokenMetric, token_metrics
from darwinlm.steps.evaluate.metrics import Divergence
from darwinlm.steps.evaluate.model_figures import CopyingScore
from darwinlm.steps.evaluate.quality import Quality, measure_quality
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from rich.console import Console


BITS = "bits_per_byte"


@dataclass(frozen=True)
class EvaluationRequest:
    """Requested measurements; see `darwinlm evaluate --help`."""

    model: str
    suite: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    texts: tuple[str, ...] = ()
    against: str | None = None
    tokens: int = 16384
    sequence_length: int = 512
    batch_size: int = 8
    device: str = "auto"
    dtype: str = "auto"
    chat: bool = False
    measures: MeasureRequest | None = None

    def check(self) -> tuple[SuiteTask, ...]:
        """The tasks, after all checks that don't need a model. Raises DarwinLMError."""
        compares = self.texts or self.chat or self.measures
        if self.suite is None and not compares:
            raise RecipeError("nothing to measure: give --suite, --text, --chat or --measure")
        if self.against is not None and not compares:
            raise RecipeError(
                "--against is for --text, --chat and --measure: --measure compares the benchmarks of two models too"
            )
        if self.chat and self.against is None:
            raise RecipeError("--chat compares answers with the original model's: name it with --against")
        tasks = () if self.suite is None else parse_suite(self.suite)
        if tasks:
            harness.check_suite(tasks, self.data_dir)
        return tasks

    def open(self, source: str, *, dequantised: bool = False) -> Opened:
        """A model as the request wants it. Raises as `open_model`."""
        return open_model(source, dtype=self.dtype, device=self.device, dequantised=dequantised, reads=True)

    def key(self) -> JsonObject:
        """Fields that must match before an earlier result is reused."""
        names = ("model", "limit", "sequence_length", "tokens", "against")
        folder = None if self.data_dir is None else str(self.data_dir)
        dtype = str(resolve_dtype(self.dtype, resolve_device(self.device))).removeprefix("torch.")
        kind = self.dtype if self.model.endswith(".gguf") else dtype
        return {name: getattr(self, name) for name in names} | {"dtype": kind, "data_dir": folder}


@dataclass
class Evaluated:
    """Results of an evaluation.

    Attributes:
        texts: Figures on each text, with the names of the JSON.
        overlaps: What of each text the run that made the model has read.
        copying: Scores of the model, and of the dense one if there is one, by name.
        left_out: The kinds of sequences without scores, and the reasons.
        read: Figures of a model that gives scores or embeddings, on each text.
    """

    request: EvaluationRequest
    params: int = 0
    engine: str = ""
    scores: list[harness.TaskScore] = field(default_factory=list)
    texts: list[JsonObject] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    copying: dict[str, list[CopyingScore]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    chats: ChatFigures | None = None
    measured: list[MeasuredScore] = field(default_factory=list)
    read: list[ReadText] = field(default_factory=list)

    def tables(self) -> Iterator[Table]:
        """The tables of what was measured, in the order in which it is measured."""
        if self.texts:
            yield _text_table(self.texts, self.overlaps, self.engine)
        yield from (text.table() for text in self.read)
        if self.copying:
            names = [score.name for score in next(iter(self.copying.values()))]
            rows = []
            for model, scores in self.copying.items():
                copied = [f"{score_tables.percent(score.accuracy)} ({score.loss:.2f})" for score in scores]
                rows.append((model, *(copied or ["not measured"])))
            yield Table(("copied, %, and loss in nats", *(names or [""])), rows, self.left_out)
        if self.chats is not None:
            yield from self.chats.tables()
        if self.measured:
            yield score_table(self.measured)
        if self.scores:
            yield Table(score_tables.HEADINGS, score_tables.rows(self.scores), score_tables.notes(self.scores))

    def as_json(self) -> JsonObject:
        """Plain values for --out."""
        value, stderr = score_tables.average(self.scores)
        return {
            "request": self.request.key() | {"suite": self.request.suite},
            "params": self.params,
            "engine": self.engine,
            "texts": self.texts,
            "reading": [text.as_json() for text in self.read],
            "copying": [
                {"model": model, "scores": [asdict(score) for score in row], "remarks": self.left_out}
                for model, row in self.copying.items()
            ],
            "chat": None if self.chats is None else self.chats.as_json(),
            "measures": [measured.as_json() for measured in self.measured],
            "tasks": harness.as_json(self.scores),
            "average": {"value": value, "stderr": stderr} if len(self.scores) > 1 else None,
        }


def _text_table(texts: list[JsonObject], overlaps: list[Overlap], engine: str) -> Table:
    """The token metrics on each text; metrics that don't compare two models are shown for the dense one too."""
    headings, rows = ["text", "tokens"], [[str(text["source"]), str(text["tokens"])] for text in texts]
    remarks = [f"run by {engine}"]
    for metric in token_metrics():
        names = [(metric.name, metric.heading)]
        if not metric.compares:
            names.append((f"dense_{metric.name}", f"dense {metric.heading}"))
        for name, heading in names:
            headings.append(heading)
            for row, text in zip(rows, texts, strict=True):
                row.append(metric.precise(text[name]))
    headings.append("bits per byte")
    for row, text in zip(rows, texts, strict=True):
        row.append(f"{text[BITS]:.4f}" if text[BITS] is not None else NOTHING)
    compared = [text for text in texts if text[Divergence.name] is not None]
    if len(compared) > 1:
        remarks.append(f"the highest KL is on {max(compared, key=itemgetter(Divergence.name))['source']}")
    for text, overlap in zip(texts, overlaps, strict=True):
        remarks += overlap.remarks(str(text["source"]))
    return Table(headings, rows, remarks)


def _text_figures(
    text: EvaluationText, metrics: Sequence[TokenMetric], quality: Quality, dense: Quality | None
) -> JsonObject:
    """The figures of one text, as in the JSON: those that compare two models are None without a dense one.

    Bits per byte compare models with different tokens. They are None for a text of special tokens alone.
    """
    figures: JsonObject = {"source": text.source, "sequences": len(text.tokens), "tokens": quality.tokens}
    bits = quality.tokens * math.log2(quality.perplexity)
    figures[BITS] = bits / text.bytes if text.bytes else None
    for metric in metrics:
        can_compare = dense is not None or not metric.compares
        figures[metric.name] = quality.values[metric.name] if can_compare else None
        if not metric.compares:
            figures[f"dense_{metric.name}"] = None if dense is None else dense.values[metric.name]
    return figures


def evaluate_model(request: EvaluationRequest, out: Path | None = None, console: Console | None = None) -> Evaluated:
    """Measure a model; processes share the text and the benchmarks' items.

    `out` is a JSON file, written after every part; finished tasks of an interrupted run for the same request are kept.
    The console gets every finished task. Raises DarwinLMError, except for a task that fails while running: this is
    recorded in its score.
    """
    parallel.init_from_environment()
    with ExitStack() as stack:
        finished: dict[str, harness.TaskScore] = {}
        with parallel.agree():
            if out is not None and parallel.is_main():
                check_output(out, (request.model, request.against), request.texts, resumed=True)
                stack.enter_context(hold_target(out))
            request.key()  # refuses an unknown device or type
            tasks = request.check()
            measures = [] if request.measures is None else request.measures.open()
            if parallel.is_main():
                finished = _resumed(request, out)
        finished = parallel.broadcast(finished)
        with parallel.agree():
            models = _opened(request)
        opened = next(iter(models.values()))
        result = Evaluated(request, opened.params, opened.engine)
        save = partial(_save, result, out, console)
        with parallel.agree():
            reads = _reads(request, opened)
        if reads:
            _measure_reader(request, models, result)
        elif request.texts:
            _measure_texts(request, models, result)
        if request.chat:
            batch_tokens = request.batch_size * request.sequence_length
            result.chats = measure_chats(models, tokens=request.tokens // 2, batch_tokens=batch_tokens)
        if measures:
            del models
            result.measured = _measure(request, measures)
        if not finished or not tasks:
            save(list(finished.values()))
        if tasks:
            harness.run_suite(
                opened.model,
                opened.tokenizer,
                tasks,
                data_dir=request.data_dir,
                limit=request.limit,
                batch_size=request.batch_size,
                finished=finished,
                save=save,
            )
        return result


def _save(result: Evaluated, out: Path | None, console: Console | None, scores: list[harness.TaskScore]) -> None:
    """Keep scores, write the result, and print the newest score."""
    result.scores = list(scores)
    if out is not None and parallel.is_main():
        write_json(out, result.as_json())
    if console is not None and scores:
        newest = scores[-1]
        console.print(f"{newest.title}: {newest.error or score_tables.with_error(newest.value, newest.stderr)}")


def _opened(request: EvaluationRequest) -> dict[str, Opened]:
    """The model and, if texts or chats need it, the dense one, by name. Raises DarwinLMError."""
    opened = request.open(request.model, dequantised=request.chat)
    models = {opened.source: opened}
    if request.against is not None and (request.texts or request.chat):
        dense = request.open(request.against, dequantised=True)
        if _reads(request, opened):
            as_reader(dense, _reading_settings(request, opened))
        share_vocabulary(opened, dense)
        cut = ", cut to the same tokens" if dense.fewer_tokens else ""
        models[f"{dense.source} (dense{cut})"] = dense
    for model in models.values():
        if request.chat and model.engine != "PyTorch":
            raise RecipeError(f"--chat: PyTorch can't run {model.source}: give a folder instead of a GGUF file")
    return models


def _reads(request: EvaluationRequest, opened: Opened) -> bool:
    """Whether the model gives scores or embeddings, which only texts measure. Raises RecipeError."""
    if opened.checkpoint is None:
        return False
    asked = {"--suite": request.suite, "--chat": request.chat, "--measure": request.measures}
    others = ", ".join(option for option, value in asked.items() if value)
    if opened.checkpoint.family.ending == "language" and others:
        return False  # it may also judge texts
    reads = as_reader(opened, _reading_settings(request, opened))
    if reads and others:
        raise RecipeError(
            f"{others}: this is for models that write, and {opened.source} gives "
            f"{objective_of(opened.checkpoint).words()}: measure it on texts or pairs, such as --text pairs.jsonl"
        )
    return reads


def _measure_reader(request: EvaluationRequest, models: dict[str, Opened], result: Evaluated) -> None:
    """Figures on texts or pairs of a model that gives scores or embeddings."""
    result.read = list(
        measure_reading(
            models,
            request.texts,
            _reading_settings(request, next(iter(models.values()))),
            tokens=request.tokens,
            batch_tokens=request.batch_size * request.sequence_length,
            run=run_of(request.model),
        )
    )


def _reading_settings(request: EvaluationRequest, opened: Opened) -> TextSettings:
    """How a model reads texts: they are cut where it takes no more."""
    assert opened.checkpoint is not None, "PyTorch runs it"
    length = min(request.sequence_length, longest_sequence(opened.config) or request.sequence_length)
    return reading_settings(opened.checkpoint, length)


def _measure_texts(request: EvaluationRequest, models: dict[str, Opened], result: Evaluated) -> None:
    """Figures on texts, then copying of lists and of the first text's passages, for all models."""
    opened = next(iter(models.values()))
    packed = {
        source: pack(source, opened.tokenizer, sequence_length=request.sequence_length, max_tokens=request.tokens)
        for source in request.texts
    }
    for text in packed.values():
        opened.check_tokens(text.tokens)
    run = run_of(request.model)
    longest = longest_sequence(opened.config)
    if longest is not None and request.sequence_length > longest:
        raise RecipeError(
            f"--sequence-length is {request.sequence_length}, but {opened.source} takes {longest} tokens at most"
        )
    batch_tokens = request.batch_size * request.sequence_length
    sequences, result.left_out = all_copying(opened.tokenizer, next(iter(packed.values())).tokens, longest)
    measured = (*(text.tokens for text in packed.values()), *(sequence.tokens for sequence in sequences))
    read = torch.cat([tokens.flatten() for tokens in measured])
    readers = {name: model.decoder(read) for name, model in models.items()}
    with TemporaryDirectory(prefix="darwinlm-") as folder:  # for text whose streams have no room in memory
        memory = HiddenMemory(Path(folder))
        for text in packed.values():
            tokens = text.tokens
            dense = [*readers.values()][-1]
            qualities = measure_quality(dense, readers, tokens, batch_tokens=batch_tokens, memory=memory)
            quality, *of_dense = qualities.values()
            dense_quality = of_dense[0] if of_dense else None
            figures = _text_figures(text, token_metrics(), quality, dense_quality)
            overlap = without_run(text) if run is None else run.overlap(text)
            result.overlaps.append(overlap)
            result.texts.append(figures | {"seen": overlap.as_json()})
    result.copying = measure_copying(readers, sequences, batch_tokens=batch_tokens)


def _measure(request: EvaluationRequest, measures: list[Measure]) -> list[MeasuredScore]:
    """Scores on measures, beside those of the dense model if there is one. Raises MeasureError, DataError."""
    opened = [request.open(source, dequantised=True) for source in (request.model, request.against) if source]
    scored = []
    for model in opened:
        if model.checkpoint is None:
            raise RecipeError(f"--measure: PyTorch can't run {model.source}: give a folder instead of a GGUF file")
        scored.append(ScoredModel(model.checkpoint, model.dtype, model.device))
    run = run_of(request.model)
    if run is not None:
        check_unseen(measures, run.purposes, opened[0].tokenizer)
    return measure_model(measures, scored[0], scored[1] if len(scored) > 1 else None, ScoreStore())


def _resumed(request: EvaluationRequest, out: Path | None) -> dict[str, harness.TaskScore]:
    """Finished scores of an earlier run for the same request, by task. Raises ArtifactError."""
    if out is None or not out.exists():
        return {}
    result = read_json(out)
    if not isinstance(result, dict) or not isinstance(result.get("request"), dict) or "tasks" not in result:
        raise ArtifactError(f"{out} is not a result of darwinlm evaluate: choose another file")
    fields = result["request"]
    changed = [f"{name} was {fields.get(name)}" for name, value in request.key().items() if fields.get(name) != value]
    if changed:
        raise ArtifactError(
            f"{out} holds the result of another request ({', '.join(changed)}): choose another file, or delete it"
        )
    return harness.from_json(out, result["tasks"])
