"""Numbers and sentences for people: what the page, the terminal and the model card all say in the same words."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence

from darwinlm.report.summary import BlockFigures, Summary
from darwinlm.runtime import amounts
from darwinlm.runtime.amounts import duration
from darwinlm.runtime.figures import TimeFigures
from darwinlm.runtime.published import hub_id, short_model, short_source
from darwinlm.steps.evaluate.step import ModelKey
from darwinlm.steps.search.step import SearchFigures
from darwinlm.steps.vocabulary.step import VocabularyFigures

NOTHING = "–"
"""Stands where a figure is missing."""


def count(value: float | None) -> str:
    """Write a number of parameters or tokens: 820, 53.0 M, 1.24 B."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for unit, digits in (("", 0), (" k", 1), (" M", 1), (" B", 2)):
        if round(abs(value), digits) < 1000:
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    return f"{value:.2f} T"


def size(value: float | None) -> str:
    """Write bytes."""
    return NOTHING if value is None or not math.isfinite(value) else amounts.size(value)


def perplexity(value: float | None) -> str:
    """Write a perplexity: 4.31, 48.4, 1,204; beyond a million only its order matters."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞"
    if value >= 999_999.5:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if value >= 999.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def kl(value: float | None) -> str:
    """Write a KL in nats per token."""
    if value is None or math.isnan(value):
        return NOTHING
    return "∞" if math.isinf(value) else f"{value:.3f}"


def rate(value: float | None) -> str:
    """Write tokens per second."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def percent(part: float, whole: float) -> str:
    """Write a share of a whole: 49.9 %."""
    return NOTHING if whole == 0 else f"{100 * part / whole:.1f} %"


def factor(value: float | None, reference: float | None) -> str:
    """Write how many times the reference a value is, without the sign: 1.8; empty where it can't be known."""
    if value is None or not reference or not math.isfinite(value / reference):
        return ""
    ratio = value / reference
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 0.095 else f"{ratio:.2g}"


def model_name(key: ModelKey, summary: Summary) -> str:
    """What a model is called; it names the steps that made it, and no others."""
    made = "searched" if summary.search is not None else "pruned"
    plain = {"dense": "dense", "uniform": "uniform", "before": "before recovery", "stitched": made}
    if key in plain:
        return plain[key]
    steps = [made]
    if summary.refit is not None:
        steps.append("refit" if summary.refit.kept == "refit" else "refit (no gain)")
    return " + ".join([*steps, "recovery"] if key == "recovered" else steps)


def kept_whole(summary: Summary) -> str:
    """Sentences, each with a space before it, about what is never cut or left out; empty if there is no such part."""
    clauses = "".join(f" {each[0].upper()}{each[1:]}." for each in (summary.kept, summary.left_out) if each)
    around = " Its parts around the language model are unchanged; the figures are of the language model alone."
    return clauses + around * summary.export.whole


def gone(allocation: Sequence[BlockFigures]) -> tuple[int, int]:
    """Count the attention and the MLP sub-layers that were there and aren't any more."""
    attention = sum(entry.heads == 0 < entry.dense_heads for entry in allocation)
    mlp = sum(entry.width == 0 < entry.dense_width for entry in allocation)
    return attention, mlp


def searched_by(search: SearchFigures) -> str:
    """What chose the sizes, in words: only what ran is named."""
    if not search.generations:
        return "equal layers brought to the budget, without a generation of search"
    plural = "s" if search.generations != 1 else ""
    return f"an evolutionary search of {search.generations} generation{plural} {search.described}"


def gains(summary: Summary) -> list[tuple[str, str]]:
    """What was gained and what was lost: names of lines, and their words."""
    lines = [("size", smaller(summary)), ("loss", loss(summary)), ("speed", faster(summary))]
    if summary.vocabulary is not None:
        lines.append(("tokens", f"{kept_tokens(summary.vocabulary)}, {more_tokens(summary.vocabulary)}"))
    return lines if summary.bounded is None else [*lines, ("file", bounded_file(summary))]


def smaller(summary: Summary) -> str:
    """What is left, in one line."""
    final, dense, cut = summary.saved, summary.dense, summary.vocabulary
    kept = f"{percent(final.block_params, dense.block_params)} of the block parameters"
    whole = dense.params if cut is None else cut.dense_params
    instead = size(dense.bytes * whole / dense.params)  # all weights have one type
    parameters = f"{count(final.params)} of {count(whole)} parameters ({kept})"
    return f"{parameters}, {size(final.bytes)} of weights instead of {instead}"


def loss(summary: Summary) -> str:
    """What was lost, in one line of words."""
    final = summary.saved
    parts = [] if final.agreement is None else [f"picks the original's next token {final.agreement:.0%} of the time"]
    return "; ".join([*parts, f"KL {kl(final.kl)} nats per token, where 0 means the same predictions"])


def faster(summary: Summary) -> str:
    """What is faster, in one line."""
    if summary.saved.speed_spread is None or summary.dense.speed_spread is None:
        timed = summary.saved.tokens_per_second is not None and summary.dense.tokens_per_second is not None
        return "timed once, which tells no difference" if timed else "not measured"
    found = [f"{what} ×{factor(rate, before)}" for what, rate, before in speeds(summary)]
    return ", ".join(found) or "no difference beyond the noise of the measurement on this machine"


def speeds(summary: Summary) -> list[tuple[str, float, float]]:
    """Each speed that differs from the dense model's by more than the timed runs do: what, its and the dense rate.

    A difference of less than a tenth, or of models that were timed once, isn't one.
    """
    final, dense = summary.saved, summary.dense
    if final.speed_spread is None or dense.speed_spread is None:
        return []
    noise = max(0.1, final.speed_spread + dense.speed_spread)
    rates = (
        ("prompt speed", final.tokens_per_second, dense.tokens_per_second),
        ("decode speed", final.decode_tokens_per_second, dense.decode_tokens_per_second),
    )
    return [(what, rate, before) for what, rate, before in rates if rate and before and abs(rate / before - 1) > noise]


def bounded_file(summary: Summary) -> str:
    """The file that the budget bounds beside the quantised dense model, in sentences; empty without such a budget."""
    if (found := summary.bounded) is None:
        return ""
    saved, dense = found.saved, found.dense
    said = (
        f"{found.file} has {size(saved.bytes)} and KL {kl(saved.kl)} on {found.tokens:,} tokens of the "
        "evaluation text in llama.cpp."
    )
    if dense is None:
        return f"{said} No type makes the dense model that small."
    other = f"the dense model as {dense.quantisation} has {size(dense.bytes)} and KL {kl(dense.kl)}"
    if dense.kl > saved.kl:
        return f"{said} It loses less than quantising alone: {other}."
    model = shlex.quote(short_model(summary.model))
    do = f"darwinlm export {model} --quant {dense.quantisation} --out model.gguf"
    return f"{said} Quantising alone loses less: {other}. Use that instead: {do}."


def large_embedding(params: int, block_params: int) -> str | None:
    """Says that the vocabulary can be cut too, if more than a fifth of a model is outside its blocks.

    Half of a 0.5B's 152k tokens are 14 % of it, and 0.3 % of the bits of English and Python (docs/results.md).
    """
    share = 1 - block_params / params
    return f"{share:.0%} of the parameters are in its embedding, which --vocab 50% halves" if share > 0.2 else None


def kept_tokens(vocabulary: VocabularyFigures) -> str:
    """The size of a smaller vocabulary, in words."""
    return f"{vocabulary.tokens:,} of {vocabulary.dense_tokens:,} tokens of the vocabulary kept"


def more_tokens(vocabulary: VocabularyFigures) -> str:
    """What a smaller vocabulary means for the length of text, in words."""
    return f"held-out text spelt in {100 * vocabulary.longer:.1f} % more tokens"


def vocabulary_words(vocabulary: VocabularyFigures) -> str:
    """What a smaller vocabulary cost, and what the other figures are relative to."""
    return (
        f"{kept_tokens(vocabulary)}, {more_tokens(vocabulary)}: {100 * vocabulary.affected:.1f} % of its tokens were "
        "removed from the vocabulary and are now written as several. Logits of text whose tokens are all kept have not "
        f"changed. Before its blocks were pruned, the model needed {vocabulary.bits_per_byte:.3f} bits per byte of "
        f"held-out text, and {vocabulary.dense_bits_per_byte:.3f} with all tokens. Perplexity, KL and speeds are per "
        "token of the smaller vocabulary. The dense model is measured with it too: it has "
        f"{count(vocabulary.params)} parameters, and {count(vocabulary.dense_params)} with all tokens."
    )


def title(summary: Summary) -> str:
    """The smaller model's name for people: the dense model's, and what is left of it."""
    vocabulary = summary.vocabulary
    tokens = f" and {_share(vocabulary.tokens, vocabulary.dense_tokens)} of its vocabulary" if vocabulary else ""
    share = _share(summary.saved.block_params, summary.dense.block_params)
    return f"{plain_name(summary.model)} with {share} of its block parameters{tokens}"


def _share(part: float, whole: float) -> str:
    """A share in words: half, 37 %."""
    kept = 100 * part / whole
    shares = {75: "three quarters", 50: "half", 25: "a quarter"}
    return next((words for whole, words in shares.items() if abs(kept - whole) < 0.75), f"{kept:.3g} %")


def plain_name(source: str) -> str:
    """A model's name without owner, folder, revision and file type: SmolLM2-135M-Instruct."""
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
    plural = "" if evaluation.documents == 1 else "s"
    return f"{evaluation.tokens:,} tokens ({evaluation.documents:,} document{plural}) of {source}"


def machine_words(summary: Summary) -> str:
    """Describe the machine that the speeds were measured on."""
    its = summary.machine
    threads = f"{its.threads} thread{'s' * (its.threads != 1)}"
    return f"{its.device}, {threads}, {its.compute_dtype}, torch {its.torch}, transformers {its.transformers}"


def time_limit(time: TimeFigures) -> str:
    """What a time limit left, in a sentence."""
    return f"Time limit: {duration(time.seconds)} of {duration(time.limit)} used, with the amounts of `{time.preset}`."


def what_training_left(summary: Summary) -> str:
    """What a reader must expect of the weights, by whether the model was trained after pruning."""
    if summary.recovery is None:
        return (
            "It was not trained after pruning. Abilities that pruning removed, facts above all, only return with "
            "training."
        )
    if summary.recovery.kept == "before":
        return (
            f"Training on {summary.recovery.tokens:,} tokens after pruning did not help on held-out text, so the "
            "weights from before it were kept. Abilities that pruning removed, facts above all, are gone."
        )
    return (
        f"It was trained on {summary.recovery.tokens:,} tokens after pruning. Facts and other abilities that this "
        "text does not teach have not returned."
    )
