"""Sentences for people about a whole run: what the page, the terminal and the model card all say in the same words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from darwinlm.report.summary import BlockFigures, Summary
from darwinlm.runtime.amounts import count, duration, factor, nats, percent, plural, size
from darwinlm.runtime.figures import TimeFigures
from darwinlm.runtime.published import hub_id, short_source
from darwinlm.steps.evaluate.item_metrics import kept_words
from darwinlm.steps.evaluate.metrics import speed_gains
from darwinlm.steps.evaluate.model_figures import ModelFigures, ReadingFigures, main_score, score_words
from darwinlm.steps.file.file_figures import BoundedFileFigures
from darwinlm.steps.recover.recovery_figures import RecoveryFigures
from darwinlm.steps.search.search_figures import SearchFigures
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures
from darwinlm.steps.vocabulary.vocabulary_settings import WHOLE_MODEL

UNTRAINED = (
    "It was not trained after pruning. Abilities that pruning removed, facts above all, only return with training."
)
MUCH = 0.4
"""KL in nats per token from which a model is said to have lost much: chat models of 135M then often answer wrongly."""


def kept_whole(summary: Summary) -> str:
    """Sentences, each with a space before it, about what is never cut or left out; empty if there is no such part."""
    sentences = [f"{clause[0].upper()}{clause[1:]}." for clause in (summary.kept, summary.left_out) if clause]
    if summary.export.whole:
        sentences.append(
            "Its parts around the language model are unchanged; the figures are of the language model alone."
        )
    return "".join(f" {sentence}" for sentence in sentences)


def gone(allocation: Sequence[BlockFigures]) -> tuple[int, int]:
    """Count the attention and the MLP sub-layers that were removed entirely."""
    attention = sum(entry.heads == 0 < entry.dense_heads for entry in allocation)
    mlp = sum(entry.width == 0 < entry.dense_width for entry in allocation)
    return attention, mlp


def gains(summary: Summary) -> list[tuple[str, str]]:
    """What was gained and what was lost: names of lines, and their words."""
    lines = [("size", smaller(summary)), ("loss", loss(summary)), ("speed", faster(summary))]
    return [*lines, *(line for figures in summary.steps.values() for line in figures.lines())]


def told(summary: Summary) -> list[tuple[str, str]]:
    """What a person is told at the end of a run: gains and losses, and what helps where the loss is large."""
    return [*gains(summary), *([("advice", words)] if (words := advice(summary)) else [])]


def advice(summary: Summary) -> str:
    """What helps a language model that lost much, at the same size, or first layers; empty for others."""
    search = summary.of(SearchFigures)
    if search is not None and search.first is not None and summary.of(RecoveryFigures) is None:
        return "train it (darwinlm recover): the first layers alone then learn to give what the whole model gave"
    file = summary.of(BoundedFileFigures)
    lost = summary.saved.kl if file is None else file.saved.kl
    if summary.export.gives != "language" or lost is None or lost < MUCH:
        return ""
    large = large_embedding(summary.dense.params, summary.dense.block_params) is not None
    ways = []
    if large and summary.budget is not None and summary.of(VocabularyFigures) is None:
        whole = summary.budget.kind in WHOLE_MODEL
        ways.append("cut the vocabulary in place of some blocks " + ("(--vocab auto)" if whole else "(--vocab 50%)"))
    trained = summary.of(RecoveryFigures) is not None
    ways.append("train it for longer" if trained else "train it (darwinlm recover)")
    return f"a model that lost this much answers many questions wrongly; to lose less, {', and '.join(ways)}"


def smaller(summary: Summary) -> str:
    """What is left, in one line."""
    final, dense, cut = summary.saved, summary.dense, summary.of(VocabularyFigures)
    share = f"{percent(final.block_params, dense.block_params)} of the block parameters"
    dense_params = dense.params if cut is None else cut.dense_params
    instead = size(dense.bytes * dense_params / dense.params)  # all weights have one type
    parameters = f"{count(final.params)} of {count(dense_params)} parameters ({share})"
    return f"{parameters}, {size(final.bytes)} of weights instead of {instead}"


def loss(summary: Summary) -> str:
    """What was lost, in one line of words.

    A KL to the model with the same tokens can't tell what the smaller vocabulary costs. If that is all that was lost,
    it is told in bits per byte.
    """
    final, cut = summary.saved, summary.of(VocabularyFigures)
    if cut is not None and only_tokens(summary):
        return f"{cut.lost}: all of it from the smaller vocabulary, since all blocks are kept"
    if final.reading is not None:
        lost = _reading_loss(final, final.reading)
        return lost if cut is None else f"{lost}, compared with the smaller vocabulary alone, which has {cut.lost}"
    parts = [] if final.agreement is None else [f"picks the original's next token {final.agreement:.0%} of the time"]
    reference = "" if cut is None else " to the original with the smaller vocabulary"
    return "; ".join([*parts, f"KL {nats(final.kl)} nats per token{reference}, where 0 means the same predictions"])


def cost_of_tokens(summary: Summary) -> str:
    """What a smaller vocabulary costs that is all that was lost, as a sentence; empty for other models."""
    if not only_tokens(summary):
        return ""
    return f"{'It needs' if summary.saved.reading is None else 'On held-out texts:'} {loss(summary)}."


def only_tokens(summary: Summary) -> bool:
    """Whether a model has fewer tokens than the original and is otherwise the same."""
    search = summary.of(SearchFigures)
    whole = search is not None and not search.chose and search.first is None
    return whole and summary.of(VocabularyFigures) is not None and summary.of(RecoveryFigures) is None


def _reading_loss(final: ModelFigures, reading: ReadingFigures) -> str:
    """What a model lost that reads texts one by one: its score with labels if there is one, and what it kept."""
    return "; ".join([*score_words(main_score(reading)), *kept_words(final.metrics)]) or "not measured"


def faster(summary: Summary) -> str:
    """What is faster, in one line."""
    saved, dense = summary.saved, summary.dense
    if saved.speed_spread is None or dense.speed_spread is None:
        timed = saved.tokens_per_second is not None and dense.tokens_per_second is not None
        return f"timed once, which tells no difference; {_computed_speed(summary)}" if timed else "not measured"
    gained = speed_gains(saved.metrics, dense.metrics)
    noise = "no difference beyond the noise of the measurement on this machine"
    return ", ".join(gained) or f"{noise}; {_computed_speed(summary)}"


def _computed_speed(summary: Summary) -> str:
    """The speed by the sizes alone: a prompt takes time for the blocks, and a token for reading all weights.

    Models that read generate no tokens.
    """
    saved, dense = summary.saved, summary.dense
    prompt, token = factor(dense.block_params, saved.block_params), factor(dense.params, saved.params)
    decoding = f", decode speed ×{token}" if saved.reading is None else ""
    return f"computed from the sizes: prompt speed ×{prompt}{decoding}"


def large_embedding(params: int, block_params: int) -> str | None:
    """Says that the vocabulary can be cut too, if more than a fifth of a model is outside its blocks.

    Half of a 0.5B's 152k tokens are 14 % of it, and 0.3 % of the bits of English and Python (docs/results.md).
    """
    share = 1 - block_params / params
    return f"{share:.0%} of the parameters are in its embedding, which --vocab 50% halves" if share > 0.2 else None


def title(summary: Summary) -> str:
    """The smaller model's name for people: the dense model's, and what is left of it."""
    vocabulary = summary.of(VocabularyFigures)
    tokens = f" and {_share(vocabulary.tokens, vocabulary.dense_tokens)} of its vocabulary" if vocabulary else ""
    share = _share(summary.saved.block_params, summary.dense.block_params)
    return f"{model_name(summary)} with {share} of its block parameters{tokens}"


def model_name(summary: Summary) -> str:
    """The original model's name for people.

    A GGUF file that doesn't have its model's name, such as model.gguf, is called by what its metadata say.
    """
    name, inside = plain_name(summary.model), summary.origin.name
    if not inside or not summary.model.lower().endswith(".gguf"):
        return name
    first = re.split(r"\W|_", inside.strip().lower())[0]
    return name if first and first in name.lower() else inside


def _share(part: float, total: float) -> str:
    """A share in words: half, 37 %."""
    per_cent = 100 * part / total
    shares = {75: "three quarters", 50: "half", 25: "a quarter"}
    return next((words for total, words in shares.items() if abs(per_cent - total) < 0.75), f"{per_cent:.3g} %")


def plain_name(source: str) -> str:
    """A model's name on one line without owner, folder, revision and file type: SmolLM2-135M-Instruct."""
    source = " ".join(source.split())
    name = re.split(r"[/\\]", source.rstrip("/\\"))[-1] or source
    if hub_id(source.partition("@")[0]):
        name = name.partition("@")[0]
    if name.lower().endswith(".gguf"):
        name = re.sub(r"[.-](q\d\w*|iq\d\w*|f16|f32|bf16)$", "", name[: -len(".gguf")], flags=re.IGNORECASE)
    return name


def measured_on(summary: Summary) -> str:
    """Name the text that perplexity and KL were measured on."""
    source = short_source(summary.text.source)
    evaluation = summary.text.purposes.get("evaluation")
    if evaluation is None:
        return source
    copies = f", {words}" if (words := summary.text.near_copies) else ""
    return f"{evaluation.tokens:,} tokens ({plural(evaluation.documents, 'document')}) of {source}{copies}"


def measures(summary: Summary) -> str:
    """What is compared between models, and its verb, to begin a sentence."""
    if summary.export.gives == "language":
        return "Perplexity and KL(dense ‖ model) were"
    return f"The {'scores' if summary.export.gives == 'scores' else 'embeddings'} of texts were"


def machine_words(summary: Summary) -> str:
    """Describe the machine that the speeds were measured on."""
    machine = summary.machine
    threads, versions = plural(machine.threads, "thread"), f"torch {machine.torch}, transformers {machine.transformers}"
    return f"{machine.device}, {threads}, {machine.compute_dtype}, {versions}"


def time_limit(time: TimeFigures) -> str:
    """What a time limit left, in a sentence."""
    return f"Time limit: {duration(time.seconds)} of {duration(time.limit)} used, with the amounts of `{time.preset}`."


def expectation(summary: Summary) -> str:
    """What a reader must expect of the weights: what the last step says that trained them."""
    sentences = [words for figures in summary.steps.values() if (words := figures.expectation())]
    return sentences[-1] if sentences else UNTRAINED
