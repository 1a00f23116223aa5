"""Instruction following: share of answers that obey a rule which a program can check, and of answers that loop.

Each of 240 prompts asks for a short text on one of 20 topics with one of 12 rules. Answers are greedy. The idea is
IFEval's (Zhou et al., arXiv 2311.07911); prompts and checks are ours, and the figures are not comparable with IFEval's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.figures import InstructionFigures
from darwinlm.text.sampling.script import chat_parts, end_tokens, loops

NEW_TOKENS = 64
"""Maximum length of an answer."""
PROMPTS_AT_ONCE = 32

TOPICS = (
    "a lighthouse", "the desert", "chess", "a train journey", "honey", "the night sky", "a market in the morning",
    "coffee", "an old oak tree", "football", "glass", "a lost key", "the first day of spring", "potatoes", "a bridge",
    "sleep", "the violin", "volcanoes", "a letter to a friend", "snow",
)  # fmt: skip


def words(answer: str) -> list[str]:
    """The words of an answer, in lower case."""
    return re.findall(r"[a-z']+", answer.lower())


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


RULES: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "capitals": ("Write everything in capital letters.", lambda a: a == a.upper()),
    "lower case": ("Write everything in lower case letters.", lambda a: a == a.lower()),
    "no commas": ("Don't use commas.", lambda a: "," not in a and len(words(a)) > 3),
    "twelve words": ("Use no more than twelve words.", lambda a: len(words(a)) <= 12),
    "numbered": (
        "Write a numbered list with exactly four items.",
        lambda a: re.findall(r"^\s*\**(\d+)[.)]", a, re.MULTILINE) == ["1", "2", "3", "4"],
    ),
    "dashes": (
        "Write only bullet points, each on its own line with a dash.",
        lambda a: len(_lines(a)) > 1 and all(re.match(r"[-*•]\s", line) for line in _lines(a)),
    ),
    "first word": ("The first word must be Once.", lambda a: words(a)[:1] == ["once"]),
    "last word": ("The last word must be finally.", lambda a: words(a)[-1:] == ["finally"]),
    "keyword": ("Include the word yellow.", lambda a: "yellow" in words(a)),
    "question": ("Reply with one question.", lambda a: a.endswith("?") and a.count("?") == 1),
    "one sentence": ("Reply with one sentence.", lambda a: len(re.findall(r"[.!?](?=\s|$)", a)) == 1),
    "title": (
        "Begin with a title on a line of its own.",
        lambda a: len(_lines(a)) > 1 and len(words(_lines(a)[0])) <= 10 and _lines(a)[0][-1:] not in ".,;",
    ),
}
"""Rule and check of an answer, by name. An empty answer follows no rule."""


def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy answers through the chat template; processes share the prompts. Raises ModelError without a template."""
    parts = chat_parts(tokenizer)
    if isinstance(parts, str):
        raise ModelError(f"{parts}: instructions are for chat models")
    questions = [[{"role": "user", "content": prompt}] for prompt in prompts]
    asked = tokenizer.apply_chat_template(questions, add_generation_prompt=True, return_dict=True)["input_ids"]
    ends = end_tokens(model, tokenizer)
    how: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    how |= {"max_new_tokens": new_tokens, "eos_token_id": list(ends) or None, "pad_token_id": [*ends, 0][0]}
    mine, found = list(parallel.mine(range(len(asked)))), dict[int, str]()
    for start in range(0, len(mine), PROMPTS_AT_ONCE):
        batch = mine[start : start + PROMPTS_AT_ONCE]
        longest = max(len(asked[index]) for index in batch)
        room = [longest - len(asked[index]) for index in batch]
        ids = [[0] * left + list(asked[index]) for left, index in zip(room, batch, strict=True)]
        mask = [[0] * left + [1] * (longest - left) for left in room]
        given, seen = (torch.tensor(each, device=model.device) for each in (ids, mask))
        out = model.generate(given, attention_mask=seen, **how)[:, longest:].tolist()
        for index, new in zip(batch, out, strict=True):
            end = next((place for place, token in enumerate(new) if token in ends), len(new))
            found[index] = str(tokenizer.decode(new[:end], skip_special_tokens=True)).strip()
    together = {index: answer for part in parallel.gather(found) for index, answer in part.items()}
    return [together[index] for index in range(len(asked))]


def measure_instructions(model: Any, tokenizer: Any) -> InstructionFigures:
    """Share of the 240 prompts whose rule the answer follows, and of answers that end in a loop. Raises ModelError."""
    asked = [(topic, rule) for topic in TOPICS for rule in RULES]
    prompts = [f"Write a few words about {topic}. {RULES[rule][0]}" for topic, rule in asked]
    answers = greedy_answers(model, tokenizer, prompts, NEW_TOKENS)
    followed = [
        bool(words(answer)) and RULES[rule][1](answer) for (_, rule), answer in zip(asked, answers, strict=True)
    ]
    share = sum(followed) / len(followed)
    return InstructionFigures(
        prompts=len(asked),
        followed=share,
        error=(share * (1 - share) / len(asked)) ** 0.5,
        loops=sum(loops(words(answer)) for answer in answers) / len(answers),
    )
