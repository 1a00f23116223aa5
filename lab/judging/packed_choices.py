"""Questions with choices, scored in packed sequences: a prompt is read once for all of its choices.

Letters: t tokens of a packed sequence.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS = 768
"""Tokens of a packed sequence, unless a single question is longer."""


@dataclass(frozen=True)
class Item:
    """A question: its prompt, the choices that may follow, and which one is right."""

    prompt: str
    choices: tuple[str, ...]
    right: int


def _sciq(row: dict[str, Any]) -> Item:
    choices = (row["correct_answer"], row["distractor1"], row["distractor2"], row["distractor3"])
    return Item(f"Question: {row['question']}\nAnswer:", choices, 0)


def _piqa(row: dict[str, Any]) -> Item:
    return Item(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), row["label"])


def _arc(row: dict[str, Any]) -> Item:
    choices = row["choices"]
    return Item(
        f"Question: {row['question']}\nAnswer:", tuple(choices["text"]), choices["label"].index(row["answerKey"])
    )


TASKS = {
    "sciq": ("sciq/test.jsonl", _sciq),
    "piqa": ("piqa/validation.jsonl", _piqa),
    "arc_easy": ("arc_easy/test.jsonl", _arc),
}
"""Files of the tasks below the folder of data, and how a row is read."""


def read_items(name: str, data: Path, count: int) -> list[Item]:
    """The first items of a task."""
    path, item_of = TASKS[name]
    opened = gzip.open if path.endswith(".gz") else open
    with opened(data / path, "rt", encoding="utf-8") as lines:
        return [item_of(json.loads(line)) for line, _ in zip(lines, range(count), strict=False)]


@dataclass(frozen=True)
class _Tokens:
    prompt: list[int]
    choices: list[list[int]]

    @property
    def n(self) -> int:
        return len(self.prompt) + sum(map(len, self.choices))


def scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[float]:
    """1 for each item whose right choice is the most likely per byte, and 0 for the others."""
    tokens = [
        _Tokens(tokenizer(item.prompt)["input_ids"], [tokenizer(f" {text}")["input_ids"] for text in item.choices])
        for item in items
    ]
    found: list[float] = []
    for group in _groups(tokens):
        for likelihoods in _likelihoods(model, group):
            item = items[len(found)]
            per_byte = [value / len(choice.encode()) for value, choice in zip(likelihoods, item.choices, strict=True)]
            found.append(float(per_byte.index(max(per_byte)) == item.right))
    return found


def _groups(tokens: Sequence[_Tokens]) -> Iterator[list[_Tokens]]:
    group: list[_Tokens] = []
    for item in tokens:
        if group and sum(each.n for each in group) + item.n > TOKENS:
            yield group
            group = []
        group.append(item)
    yield group


@torch.no_grad()
def _likelihoods(model: PreTrainedModel, group: Sequence[_Tokens]) -> list[list[float]]:
    """Log-likelihood of each choice of each question, in nats: a choice sees its prompt and itself."""
    ids: list[int] = []
    positions: list[int] = []
    size = sum(item.n for item in group)
    sees = torch.zeros(size, size, dtype=torch.bool)
    spans: list[list[tuple[int, int, int]]] = []  # last token of the prompt, and the choice's tokens
    for item in group:
        begin, of_item = len(ids), []
        end = begin + len(item.prompt)
        sees[begin:end, begin:end] = True
        ids += item.prompt
        positions += range(len(item.prompt))
        for choice in item.choices:
            first = len(ids)
            last = first + len(choice)
            sees[first:last, begin:end] = True
            sees[first:last, first:last] = True
            ids += choice
            positions += range(len(item.prompt), len(item.prompt) + len(choice))
            of_item.append((end - 1, first, last))
        spans.append(of_item)
    sees &= torch.ones(size, size, dtype=torch.bool).tril()
    hidden: Tensor = model.base_model(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=sees[None, None],
        use_cache=False,
    ).last_hidden_state[0]
    read = [[before, *range(first, last - 1)] for of_item in spans for before, first, last in of_item]
    flat = torch.tensor([place for places in read for place in places])
    expected = torch.tensor([ids[at] for of_item in spans for _, first, last in of_item for at in range(first, last)])
    log_p = model.get_output_embeddings()(hidden[flat]).float().log_softmax(-1)
    taken = log_p.gather(1, expected[:, None])[:, 0]
    sums = iter([float(part.sum()) for part in taken.split([len(places) for places in read])])
    return [[next(sums) for _ in of_item] for of_item in spans]
