"""Instruction following: share of answers that obey an instruction which a program can check.

Every prompt asks for a short text on one of the topics and adds one instruction, such as "Write in capital letters
only". Answers are greedy, through the chat template, and cut after `--new-tokens`. The idea is IFEval's (Zhou et al.,
arXiv 2311.07911); the prompts and checks are ours, and the figures are not comparable with IFEval's.

Answers that end in a phrase said three times in a row are counted too (`loops`). An empty answer follows no
instruction. Prints one JSON line for each model, with the standard error of the share.

    python benchmarks/instructions.py DENSE runs/half/model --topics 12
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from darwinlm.evaluation.chat import AnswerSettings, Conversation
from darwinlm.models.opened import open_model

TOPICS = (
    "the sea", "a dog", "the moon", "bread", "winter", "a school", "the city of Paris", "music", "a bicycle",
    "the heart", "rain", "books",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """An instruction and the check of an answer."""

    name: str
    text: str
    obeyed: Callable[[str], bool]


def words(answer: str) -> list[str]:
    """The words of an answer, in lower case."""
    return re.findall(r"[a-z']+", answer.lower())


INSTRUCTIONS = (
    Instruction("capitals", "Write in capital letters only.", lambda a: a == a.upper() and bool(words(a))),
    Instruction("lower case", "Write in small letters only.", lambda a: a == a.lower() and bool(words(a))),
    Instruction("no commas", "Use no commas.", lambda a: "," not in a and len(words(a)) > 3),
    Instruction("short", "Answer with at most ten words.", lambda a: 0 < len(words(a)) <= 10),
    Instruction("list", "Give a list of three items, numbered 1, 2 and 3.", lambda a: _numbers(a) == ["1", "2", "3"]),
    Instruction("bullets", "Give a list of items that begin with a dash.", lambda a: len(_dashes(a)) > 1),
    Instruction("begin", "Begin your answer with the word Perhaps.", lambda a: words(a)[:1] == ["perhaps"]),
    Instruction("include", "Use the word window in your answer.", lambda a: "window" in words(a)),
    Instruction("question", "Answer with a question.", lambda a: a.endswith("?")),
    Instruction("quotes", "Put your whole answer in double quotes.", lambda a: len(a) > 2 and a[0] == a[-1] == '"'),
)


def _numbers(answer: str) -> list[str]:
    return re.findall(r"^\s*(\d+)[.)]", answer, re.MULTILINE)


def _dashes(answer: str) -> list[str]:
    return re.findall(r"^\s*[-*•]\s", answer, re.MULTILINE)


def loops(answer: str) -> bool:
    """Whether an answer ends in a phrase of one to ten words, three times in a row."""
    found = words(answer)
    return any(len(found) >= 3 * n and found[-n:] == found[-2 * n : -n] == found[-3 * n : -2 * n] for n in range(1, 11))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--topics", type=int, default=len(TOPICS))
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()

    for name in options.models:
        chat = Conversation(
            open_model(name),
            AnswerSettings(temperature=0, repetition_penalty=1.0, max_tokens=options.new_tokens),
        )
        obeyed: dict[str, list[bool]] = {each.name: [] for each in INSTRUCTIONS}
        looping = []
        for topic in TOPICS[: options.topics]:
            for instruction in INSTRUCTIONS:
                chat.reset()
                answer = chat.answer(f"Write about {topic}. {instruction.text}").strip()
                obeyed[instruction.name].append(instruction.obeyed(answer))
                looping.append(loops(answer))
        every = [each for found in obeyed.values() for each in found]
        share = sum(every) / len(every)
        line = {
            "model": name,
            "prompts": len(every),
            "followed": round(share, 4),
            "error": round((share * (1 - share) / len(every)) ** 0.5, 4),
            "loops": round(sum(looping) / len(looping), 4),
            "by_instruction": {name: sum(found) / len(found) for name, found in obeyed.items()},
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
