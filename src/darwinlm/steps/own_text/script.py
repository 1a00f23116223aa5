"""What a model writes: chats from its own template, or documents from the first token.

For chats, a model gets its template up to the user's turn and samples the prompt, then its answer (Magpie, Xu et al.,
arXiv 2406.08464).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.errors import first_line
from darwinlm.steps.own_text.sampler import Sampled, Segment
from darwinlm.steps.text.packing import document_hash

if TYPE_CHECKING:
    from pydantic import JsonValue
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Record = dict[str, JsonValue]

PROMPT_TEMPERATURE, ANSWER_TEMPERATURE, DOCUMENT_TEMPERATURE = 1.0, 0.7, 1.0
_MARK = "QUESTION"
"""Stands for the user's turn in the rendered template."""


@dataclass(frozen=True)
class Script:
    """A kind of text.

    Attributes:
        prefix: Tokens at the beginning, at least one.
        record: Makes a record of a sequence, for text sources; None for an unusable one.
        identity: Hash of what must not be repeated.
    """

    name: str
    prefix: tuple[int, ...]
    segments: tuple[Segment, ...]
    record: Callable[[Sampled], Record | None]
    identity: Callable[[Sampled], str]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer: those of the model's generation config and of the tokenizer."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    return tuple(sorted(end for end in ends if end is not None))


def chat_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
    """Tokens of the template before the user's words, and between them and the answer.

    Or the reason why the template can't be used.
    """
    if not getattr(tokenizer, "chat_template", None):
        return "the model has no chat template"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # noqa: BLE001 - a template is a program; it may raise anything
        return f"the model's chat template fails ({first_line(error)})"
    before, *after = str(text).split(_MARK)
    if len(after) != 1:
        return f"the model's chat template renders the user's words {len(after)} times"
    prefix, header = (tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after[0]))
    if not prefix or not header:
        return "the model's chat template has nothing before or after the user's words"
    return prefix, header


def is_chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model has a chat template that can be used."""
    return not isinstance(chat_parts(tokenizer), str)


def chats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> Script | str:
    """Chats of at most `length` tokens with a prompt and an answer; or why the model can't write them."""
    parts = chat_parts(tokenizer)
    if isinstance(parts, str):
        return parts
    prefix, header = parts
    room = length - len(prefix) - len(header)
    if room < length // 2:
        return f"the model's chat template takes {length - room} of {length} tokens"
    ends = end_tokens(model, tokenizer)
    question = Segment(PROMPT_TEMPERATURE, (header[0], *ends), len(prefix) + room // 2, header)

    def record(sampled: Sampled) -> Record | None:
        words = [_text(tokenizer, part) for part in sampled.parts]
        if len(words) < 2 or not all(words) or loops(sampled.parts[0]) or loops(sampled.parts[1]):
            return None
        return {
            "messages": [
                {"role": role, "content": text} for role, text in zip(("user", "assistant"), words, strict=True)
            ],
            "ended": sampled.ended,
        }

    return Script(
        "chats",
        prefix,
        (question, Segment(ANSWER_TEMPERATURE, ends, length)),
        record,
        lambda sampled: document_hash(_text(tokenizer, sampled.parts[0])),
    )


def documents(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> Script | str:
    """Documents of at most `length` tokens; or why the model can't write them."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        return "its tokenizer has neither a first nor a last token to begin documents with"

    def record(sampled: Sampled) -> Record | None:
        text = _text(tokenizer, sampled.parts[0])
        return {"text": text, "ended": sampled.ended} if text and not loops(sampled.parts[0]) else None

    return Script(
        "documents",
        (first,),
        (Segment(DOCUMENT_TEMPERATURE, end_tokens(model, tokenizer), length),),
        record,
        lambda sampled: document_hash(_text(tokenizer, sampled.parts[0])),
    )


def _text(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def loops(tokens: tuple[int, ...]) -> bool:
    """Whether a sequence ends in three repetitions of a phrase of 1 to 32 tokens."""
    return any(
        len(tokens) >= 3 * n and tokens[-n:] == tokens[-2 * n : -n] == tokens[-3 * n : -2 * n] for n in range(1, 33)
    )
