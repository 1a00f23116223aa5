"""The text of a record: a field with text, a chat, or a question and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast

from darwinlm.runtime.errors import DataError, first_line
from darwinlm.runtime.limits import parse_json, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

Record = dict[str, object]
"""Fields of a record, as its file has them."""


class Function(TypedDict):
    """The name of a tool, and the arguments that it is called with, or their JSON schema."""

    name: str
    arguments: object


class Tool(TypedDict):
    """A tool, or a call of one, in the form of OpenAI's API."""

    type: str
    function: Function


CHAT_FIELDS = ("messages", "conversations")
"""Fields for the chat of a record without text, as OpenAI's API and ShareGPT name them."""
PAIRS = (("instruction", "output"), ("prompt", "completion"), ("question", "answer"))
"""Fields for a question and its answer, as Alpaca, TRL and tables of questions name them."""
TEXT_FIELDS = ("text", "passage", "page", "content")
"""Fields that may hold a record's text, in order of preference, before those of chats and pairs."""
CHAT_COLUMNS = ("system", "input", "tools")
"""Further fields of a chat: its system message, the input of an instruction, and tools as JSON schemas."""

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "function_response": "tool",
    "observation": "tool",
}
"""Other names of the roles that chat templates know."""
_NO_CHAT = (
    '{}: the field with the chat holds no list of messages like [{{"role": "user", "content": "..."}}]. '
    "Name the field that holds the text or the chat after a '#'."
)


def listed(names: Sequence[str]) -> str:
    """Names as a list for messages: a, b or c."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def same_name(name: str, names: Iterable[object]) -> str | None:
    """The name among `names` that is `name`, or else the only one that differs from it in case or outer spaces."""
    existing = [str(other) for other in names]
    if name in existing:
        return name
    alike = [other for other in existing if other.strip().casefold() == name.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def text_fields(names: Sequence[str], field: str | None, location: str) -> tuple[str, ...]:
    """Choose the text fields: the given one, or two joined by a plus, a question and its answer.

    None takes the first existing of `TEXT_FIELDS`, `CHAT_FIELDS` and `PAIRS`. Names may differ in case. `location`
    names the record or file in errors. Raises DataError.
    """
    choices: list[tuple[str, ...]]
    if field is None:
        choices = [(name,) for name in (*TEXT_FIELDS, *CHAT_FIELDS)] + list(PAIRS)
    else:
        choices = [(field,)]
        if field.count("+") == 1:
            choices.append(tuple(field.split("+")))
    for choice in choices:
        found = tuple(same for name in choice if (same := same_name(name, names)) is not None)
        if len(found) == len(choice):
            return found
    missing = ["+".join(choice) for choice in choices]
    if field is not None:
        missing = [name for name in choices[-1] if same_name(name, names) is None]
    existing = shorten(", ".join(sorted(map(str, names))), 200) or "none"
    raise DataError(
        f"{location}: there is no field {listed(missing)}; the existing fields are: {existing}. "
        "Name the one that holds the text after a '#' at the end of the source, or a question and its answer as "
        "'#question+answer'."
    )


def text_of(
    record: Mapping[str, object], fields: Sequence[str], location: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Text of a record: a string as it is; messages, or a question and its answer, rendered as a chat.

    Only chats need the tokenizer. `location` names the record in errors. Raises DataError.
    """
    values = [record[name] for name in fields]
    if len(fields) == 1:
        (value,) = values
        if value is None:
            return ""
        if not isinstance(value, list) and fields[0].strip().casefold() not in CHAT_FIELDS:
            return _string(value, fields[0], location)
        messages = value
    elif all(isinstance(value, list) for value in values):
        messages = [message for value in values if isinstance(value, list) for message in value]
    else:
        question, answer = (_string(value or "", name, location) for value, name in zip(values, fields, strict=True))
        more = _value(record, "input") if fields[0].strip().casefold() == "instruction" else None
        if more:
            question = f"{question}\n\n{_string(more, 'input', location)}"
        if not question.strip() or not answer.strip():
            return ""
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    system = _value(record, "system")
    if isinstance(messages, list) and messages and system and isinstance(system, str):
        messages = [{"role": "system", "content": system}, *messages]
    return chat_text(messages, tokenizer, location, _value(record, "tools"))


def _value(record: Mapping[str, object], name: str) -> object:
    return record.get(same_name(name, record) or name)


def _string(value: object, field: str, location: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{location}: the field '{field}' holds a {type(value).__name__}, not text. "
            "Name the one that holds the text after a '#' at the end of the source."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def chat_text(
    messages: object,
    tokenizer: PreTrainedTokenizerBase | None,
    location: str,
    tools: object = None,
    *,
    answering: bool = False,
) -> str:
    """Render a chat with the model's template, without a bos token that packing adds.

    Args:
        messages: A list of records with a `role` and a `content` in the form of OpenAI's API, or with `from` and
            `value` as in ShareGPT. Tool calls may hold their arguments as JSON text.
        tokenizer: Tokenizer with the template.
        location: Name of the record in errors.
        tools: A list of tools as JSON schemas, also as JSON text; None or empty without tools.
        answering: Whether the beginning of the model's answer is added.

    Raises:
        DataError: This is no chat, or the template can't render it, tools included.
    """
    from darwinlm.steps.text.packing import added_bos  # with NumPy, which reading a recipe doesn't need

    if not isinstance(messages, list):
        raise DataError(_NO_CHAT.format(location))
    chat = [_message(message, location) for message in messages]
    schemas = cast("list[Tool]", _from_json(tools, location) or [])
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            f"{location}: this is a chat, but the model's tokenizer has no chat template to render it. Give plain "
            "text, or a model with a chat template."
        )
    if not chat:
        return ""
    try:
        text = str(
            tokenizer.apply_chat_template(chat, tools=schemas or None, add_generation_prompt=answering, tokenize=False)
        )
    except Exception as error:  # a template is a program; it may raise anything
        raise DataError(
            f"{location}: the model's chat template refuses this chat ({first_line(error)}). Correct or remove it."
        ) from error
    calls = [call for message in chat for call in cast("list[Tool]", message.get("tool_calls", []))]
    for name in (tool["function"]["name"] for tool in (*schemas, *calls)):
        if name not in text:
            raise DataError(
                f"{location}: the model's chat template leaves out the tool '{name}'. Remove chats with tools, or give "
                "a model whose template renders them."
            )
    bos = tokenizer.bos_token
    # Only a token that every text gets anyway is left out; others, such as SmolLM2's, are a part of the template.
    if bos and text.startswith(bos) and added_bos(tokenizer) is not None:
        text = text.removeprefix(bos)
    return _string(text, "messages", location)


def _message(message: object, location: str) -> Record:
    """A message with the keys that chat templates read; empty keys, which tables add, are left out."""
    if not isinstance(message, dict):
        raise DataError(_NO_CHAT.format(location))
    known = {name: value for name, value in message.items() if value is not None}
    if "from" in known and "value" in known:
        known = {"role": known["from"], "content": known["value"]}
    content = known.get("content", "" if known.get("tool_calls") else None)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    role = known.get("role")
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(_NO_CHAT.format(location))
    rendered = {**known, "role": _ROLES.get(role, role), "content": content}
    if known.get("tool_calls"):
        rendered["tool_calls"] = [_call(call, location) for call in known["tool_calls"]]
    return rendered


def _call(call: object, location: str) -> Tool:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{location}: a tool call has no function with a name. Correct or remove it.")
    arguments = _from_json(function.get("arguments"), location)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _from_json(value: object, location: str) -> object:
    """A value, parsed if it is JSON text; None for blank text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value) if value.strip() else None
    except ValueError as error:
        raise DataError(
            f"{location}: tools or their arguments aren't JSON ({shorten(error, 200)}). Correct them."
        ) from error
