"""Numbers and sentences for people: what the page, the terminal and the model card all say in the same words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "dense": "dense",
    "uniform": "uniform, same size",
    "stitched": "searched, stitched",
    "refit": "searched + refit",
    "recovered": "searched + refit + recovery",
}
"""What a model is called in tables and plots, in their order."""

_UNSEARCHED = {"stitched": "stitched", "refit": "stitched + refit", "recovered": "stitched + refit + recovery"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
NOTHING = "–"
"""Stands where a figure is missing."""


def count(value: float | None) -> str:
    """Write a number of parameters or tokens: 820, 53.0 M, 1.24 B."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) < 999.5:
        return f"{value:.0f}"
    for unit, digits in (("k", 1), ("M", 1), ("B", 2), ("T", 2)):
        value /= 1000
        if round(abs(value), digits) < 1000 or unit == "T":
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("every number has a unit")


def megabytes(value: float | None) -> str:
    """Write bytes as MB of 10⁶ bytes, three digits or more, without the unit."""
    return NOTHING if value is None else _three_digits(value / 1e6)


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


def divergence(value: float | None) -> str:
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


def duration(seconds: float) -> str:
    """Write a time: 0.4 s, 12.3 s, 5 min 3 s, 1 h 12 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def amount(value: float, unit: str) -> str:
    """An amount of what a budget counts: parameters, bytes or nanoseconds."""
    if unit == "bytes":
        return f"{megabytes(value)} MB"
    if unit == "nanoseconds":
        return f"{value / 1e6:,.4g} ms" if value < 1e9 else f"{value / 1e9:.4g} s"
    return f"{value:,} {unit}"


def model_name(key: str, summary: Mapping[str, Any]) -> str:
    """What a model is called; nothing is called searched that wasn't, or of the same size that isn't."""
    if key == "uniform" and not _same_size(summary):
        return "uniform, same budget"
    if summary.get("search") is None and key in _UNSEARCHED:
        return _UNSEARCHED[key]
    return NAMES.get(key, key)


def measured_models(summary: Mapping[str, Any]) -> list[str]:
    """Keys of the models that were measured, in the order of the tables."""
    return [key for key in NAMES if summary["models"].get(key) is not None]


def final_key(summary: Mapping[str, Any]) -> str:
    """Key of the model that is saved: the last one made."""
    return measured_models(summary)[-1]


def short_source(source: str | None) -> str:
    """Name a model or a text without telling where it lies on someone's disk: hub ids whole, files by their name."""
    if not source:
        return "unnamed"
    if source.startswith("hf:") or hub_id(source):
        return source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1] or source


def hub_id(source: str | None) -> str | None:
    """Give back `owner/name` if the source looks like one, and None for paths and files."""
    if source and _HUB_ID.fullmatch(source) and not source.lower().endswith(".gguf"):
        return source
    return None


def gone(allocation: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Count the attention and the MLP sub-layers that were there and aren't any more."""
    attention = sum(entry["heads"] == 0 < entry["dense_heads"] for entry in allocation)
    mlp = sum(entry["width"] == 0 < entry["dense_width"] for entry in allocation)
    return attention, mlp


def headline(summary: Mapping[str, Any]) -> str:
    """Say in one sentence what was gained and what was lost."""
    models, budget = summary["models"], summary["budget"]
    final, dense = models[final_key(summary)], models["dense"]
    kept, whole = budget["block_params"], budget["dense_block_params"]
    uniform = models.get("uniform")
    loss = f"perplexity {perplexity(dense.get('perplexity'))} → {perplexity(final.get('perplexity'))}"
    if uniform is not None and final is not uniform:
        of = "of the same size" if _same_size(summary) else f"that keeps {percent(uniform['block_params'], whole)}"
        loss += f" ({perplexity(uniform.get('perplexity'))} for a uniform model {of})"
    parts = [f"{count(kept)} of {count(whole)} block parameters kept ({percent(kept, whole)})", loss]
    prompt = factor(final.get("tokens_per_second"), dense.get("tokens_per_second"))
    decode = factor(final.get("decode_tokens_per_second"), dense.get("decode_tokens_per_second"))
    if prompt and decode:
        parts.append(f"prompts read {prompt} times and text written {decode} times as fast")
    if final.get("bytes") and dense.get("bytes"):
        parts.append(f"{megabytes(final['bytes'])} MB of weights instead of {megabytes(dense['bytes'])} MB")
    return ", ".join(parts) + "."


def measured_on(summary: Mapping[str, Any], *, short: bool = False) -> str:
    """Name the text that perplexity and KL were measured on."""
    text = summary["text"]
    source = short_source(text.get("source")) if short else text.get("source") or "unnamed"
    evaluation = text["purposes"].get("evaluation")
    if evaluation is None:
        return str(source)
    documents = evaluation["documents"]
    plural = "" if documents == 1 else "s"
    return f"{evaluation['tokens']:,} tokens ({documents:,} document{plural}) of {source}"


def machine_words(summary: Mapping[str, Any]) -> str:
    """Describe the machine that the speeds were measured on."""
    machine = summary.get("machine") or {}
    parts = [str(machine["device"])] if machine.get("device") else []
    if machine.get("threads"):
        parts.append(f"{machine['threads']} thread" + ("" if machine["threads"] == 1 else "s"))
    if machine.get("compute_dtype"):
        parts.append(str(machine["compute_dtype"]))
    parts += [f"{library} {machine[library]}" for library in ("torch", "transformers") if machine.get(library)]
    return ", ".join(parts) or "an unnamed machine"


def loading_code(summary: Mapping[str, Any]) -> str:
    """Python that loads the saved model and lets it write; it asks for remote code only where the model needs it."""
    export = summary["export"]
    prompts = summary.get("prompts") or ["Once upon a time"]
    remote = ", trust_remote_code=True" if export["custom_code"] else ""
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"folder = {_python_string(export['folder'])}",
            f"tokenizer = AutoTokenizer.from_pretrained(folder{remote})",
            f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{remote})',
            f'inputs = tokenizer({_python_string(prompts[0])}, return_tensors="pt")',
            "tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)",
            "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
        ]
    )


def _same_size(summary: Mapping[str, Any]) -> bool:
    """Whether the uniform model is within 1 % of the saved one: equal layers come in coarser steps."""
    uniform, final = summary["models"].get("uniform"), summary["models"][final_key(summary)]
    return uniform is None or abs(uniform["block_params"] - final["block_params"]) <= 0.01 * final["block_params"]


def _three_digits(value: float) -> str:
    if not math.isfinite(value):
        return NOTHING
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _python_string(text: str) -> str:
    """A literal in double quotes, on one line: JSON's are Python's."""
    return json.dumps(str(text), ensure_ascii=False)
