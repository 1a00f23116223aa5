"""Chats as text: records with a list of messages, rendered by the model's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darwinlm.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_FIELD = "messages"
"""Field for the chat of a record without text."""


def chat_text(messages: object, tokenizer: PreTrainedTokenizerBase | None, where: str) -> str:
    """Render a chat with the model's template, without the bos token, which packing adds.

    `messages` is a list of records with a `role` and a `content`, both text; `where` names the record in errors. Raises
    DataError if it isn't a list of messages, the tokenizer has no template, or the template refuses the chat.
    """
    from jinja2 import TemplateError

    if not isinstance(messages, list) or not all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in messages
    ):
        raise DataError(
            f"{where}: the field with the chat holds no list of messages like "
            '[{"role": "user", "content": "..."}]. Name the field that holds the text or the chat after a \'#\'.'
        )
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            f"{where}: this is a chat, but the model's tokenizer has no chat template to render it. Give plain "
            "text, or a model with a chat template."
        )
    if not messages:
        return ""
    template: Any = tokenizer.apply_chat_template
    try:
        text = str(template(messages, tokenize=False))
    except TemplateError as error:
        raise DataError(
            f"{where}: the model's chat template refuses this chat ({error}). Correct or remove it."
        ) from error
    bos = tokenizer.bos_token
    return text.removeprefix(str(bos)) if bos else text
