"""Chats in the shapes that people have them in, written out by the model's chat template, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.tiny.models import tiny_model
from tests.tiny.tokenizer import BOS_ID, EOS_ID, tiny_tokenizer

from darwinlm.runtime.errors import DataError
from darwinlm.steps.evaluate.speed import BEGINNINGS, continue_greedily, prompts_for
from darwinlm.steps.text.packing import added_bos, tokenise
from darwinlm.steps.text.sources import read_documents

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' + message.role) }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}\n{% endfor %}"
)
CHAT = [{"role": "user", "content": "Which river?"}, {"role": "assistant", "content": "The Rhine."}]
WRITTEN = "[user]Which river?\n[assistant]The Rhine.\n"


@pytest.fixture
def tokenizer():
    made = tiny_tokenizer(add_bos=True)
    made.chat_template = TEMPLATE
    return made


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_text_goes_before_messages_and_any_field_can_be_named(tmp_path, tokenizer):
    source = lines(tmp_path / "a.jsonl", {"text": "plain", "messages": CHAT, "conversation": CHAT[:1]})
    assert list(read_documents(source, tokenizer=tokenizer)) == ["plain"]
    assert list(read_documents(f"{source}#messages", tokenizer=tokenizer)) == [WRITTEN]
    assert list(read_documents(f"{source}#conversation", tokenizer=tokenizer)) == ["[user]Which river?\n"]


TOOLS = [{"type": "function", "function": {"name": "depth", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "depth", "arguments": '{"of": "Rhine"}'}}
CALLING = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "river?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "8 m"},
]
TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.of }})"
    "{% endfor %}{% endfor %}"
)
CALLED = "[system]Be brief.[user]Which river?[assistant]depth(Rhine)[tool]8 m"
SHORT = "[user]Which river?[assistant]The Rhine."


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("record", "written"),
    [
        ({"instruction": "Which river?", "input": "", "output": "The Rhine."}, SHORT),
        (
            {"instruction": "Which", "input": "river?", "output": "The Rhine."},
            "[user]Which\n\nriver?[assistant]The Rhine.",
        ),
        (
            {"conversations": [{"from": "human", "value": "Which river?"}, {"from": "gpt", "value": "The Rhine."}]},
            SHORT,
        ),
        ({"conversations": CHAT, "system": "Be brief."}, f"[system]Be brief.{SHORT}"),
        ({"prompt": "Which river?", "completion": "The Rhine."}, SHORT),
        ({"Question": "Which river?", "Answer": "The Rhine."}, SHORT),
        (
            {"Instruction": "Which", "Input": "river?", "OUTPUT": "The Rhine."},
            "[user]Which\n\nriver?[assistant]The Rhine.",
        ),
        ({"Messages": CHAT, "System": "Be brief."}, f"[system]Be brief.{SHORT}"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, SHORT),
        ({"messages": CHAT, "tools": None}, SHORT),
        ({"messages": CHAT, "tools": json.dumps(TOOLS)}, f"<depth>{SHORT}"),
        ({"messages": CALLING}, CALLED),
        ({"messages": CALLING, "tools": TOOLS}, f"<depth>{CALLED}"),
    ],
)
def test_chats_as_people_have_them(tmp_path, tokenizer, kind, record, written):
    tokenizer.chat_template = TOOL_TEMPLATE
    if kind == "jsonl":
        source = lines(tmp_path / "a.jsonl", record)
    elif any(isinstance(message.get("content"), list) for message in record.get("messages", [])):
        pytest.skip("a column has one type")
    else:
        source = str(tmp_path / "a.parquet")
        pq.write_table(pa.Table.from_pylist([record]), source)
    assert list(read_documents(source, tokenizer=tokenizer)) == [written]


def test_a_question_and_its_answer_are_a_chat_in_every_format(tmp_path, tokenizer):
    record = {"ask": "Which river?", "reply": "The Rhine.", "text": "plain"}
    source = lines(tmp_path / "a.jsonl", record, record | {"reply": None}, record | {"ask": " "})
    assert list(read_documents(f"{source}#ask+reply", tokenizer=tokenizer)) == [WRITTEN]
    table = pa.Table.from_pylist([record, record | {"ask": None}])
    pq.write_table(table, tmp_path / "b.parquet")
    assert list(read_documents(f"{tmp_path / 'b.parquet'}#ask+reply", tokenizer=tokenizer)) == [WRITTEN]
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert list(read_documents(f"{tmp_path / 'c.arrow'}#ask+reply", tokenizer=tokenizer)) == [WRITTEN]


@pytest.mark.parametrize("added", [True, False])
def test_chats_are_packed_with_the_bos_of_their_template(tmp_path, added):
    tokenizer = tiny_tokenizer(add_bos=added)
    tokenizer.chat_template = TEMPLATE
    (text,) = read_documents(lines(tmp_path / "a.jsonl", {"messages": CHAT}), tokenizer=tokenizer)
    (tokens,) = tokenise([text], tokenizer, added_bos(tokenizer))
    assert tokens.tolist().count(BOS_ID) == 1
    assert tokens[0] == BOS_ID
    assert tokens[-1] == EOS_ID


NO_LIST = r"a\.jsonl, line 2: the field with the chat holds no list of messages like"
NO_TEMPLATE = r"line 1: this is a chat, but the model's tokenizer has no chat template"
IMAGE = [{"role": "user", "content": [{"type": "image"}]}]
REFUSED = [
    *(
        ([{"messages": CHAT}, {"messages": value}], "", True, NO_LIST)
        for value in ("a text", 7, [1, 2], [{"role": "user"}], IMAGE, {"role": "user"})
    ),
    *(([{"messages": CHAT}], "", given, NO_TEMPLATE) for given in (False, None)),
    *(
        ([{"messages": chat, **more}], "", True, "line 1: the model's chat template leaves out the tool 'depth'")
        for chat, more in ((CHAT, {"tools": TOOLS}), (CALLING[1:3], {}))
    ),
    ([{"messages": CHAT, "tools": "{"}], "", True, "line 1: tools or their arguments aren't JSON"),
    ([{"ask": "a"}], "#ask+reply", True, "there is no field reply; the existing fields are: ask"),
    (
        [{"messages": [{"role": "critic", "content": "No."}]}],
        *("", True, r"line 1: the model's chat template refuses this chat \(no role critic\)"),
    ),
]


@pytest.mark.parametrize(("records", "field", "template", "said"), REFUSED)
def test_chats_that_are_refused(tmp_path, tokenizer, records, field, template, said):
    """With a tokenizer that has a template or none, or without a tokenizer."""
    given = {True: tokenizer, False: tiny_tokenizer(), None: None}[template]
    with pytest.raises(DataError, match=said):
        list(read_documents(lines(tmp_path / "a.jsonl", *records) + field, tokenizer=given))


@pytest.mark.parametrize("template", ["{{ 1/0 }}", "{% for i in range(10**9) %}x{% endfor %}", "{% if"])
def test_a_template_that_fails_in_any_way_is_told_and_the_model_continues_text_instead(tmp_path, tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="line 1: the model's chat template refuses this chat"):
        list(read_documents(lines(tmp_path / "a.jsonl", {"messages": CHAT}), tokenizer=tokenizer))
    assert prompts_for(tokenizer) == BEGINNINGS
    model = tiny_model("llama")
    (answer,) = continue_greedily(model, tokenizer, ("the river",))
    tokenizer.chat_template = None
    assert [answer] == continue_greedily(model, tokenizer, ("the river",))
