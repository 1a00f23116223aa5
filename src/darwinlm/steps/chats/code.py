"""Coding answers: share of a model's functions that parse as Python, and that are those of the dense model.

Each of 32 prompts asks for a small function. Answers are greedy, and no code is run. Only prompts that the dense model
answers with a block of code count, so that a model that doesn't write code has no figures.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ModelError
from darwinlm.steps.chats.step import CodeFigures
from darwinlm.steps.own_text.script import chat_parts, end_tokens

NEW_TOKENS = 256
"""Maximum length of an answer."""
PROMPTS_AT_ONCE = 32

TASKS = (
    "reverses a string", "checks whether a number is prime", "returns the largest number of a list",
    "counts the vowels of a string", "merges two sorted lists", "computes the factorial of a number",
    "removes duplicates from a list and keeps the order", "checks whether a string is a palindrome",
    "returns the n-th Fibonacci number", "sorts a list of words by length", "reads a file and counts its lines",
    "converts Celsius to Fahrenheit", "flattens a nested list", "finds the greatest common divisor of two numbers",
    "counts how often each word occurs in a text", "searches a sorted list by bisection",
    "transposes a matrix given as a list of lists", "checks whether two strings are anagrams",
    "returns the sum of the digits of a number", "splits a list into chunks of a given size",
    "converts a Roman numeral to an integer", "returns the keys of a dictionary sorted by their values",
    "generates a random password", "validates an e-mail address with a regular expression",
    "computes the mean and the median of a list", "returns all permutations of a list",
    "checks whether brackets in a string are balanced", "implements bubble sort", "converts an integer to binary",
    "finds the second largest element of a list", "returns the intersection of two lists",
    "capitalises the first letter of each word",
)  # fmt: skip


def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy answers through the chat template; processes share the prompts. Raises ModelError without a template."""
    parts = chat_parts(tokenizer)
    if isinstance(parts, str):
        raise ModelError(f"{parts}: coding tasks are for chat models")
    questions = [[{"role": "user", "content": prompt}] for prompt in prompts]
    asked = tokenizer.apply_chat_template(questions, add_generation_prompt=True, return_dict=True)["input_ids"]
    ends = end_tokens(model, tokenizer)
    how: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    how |= {"max_new_tokens": new_tokens, "eos_token_id": list(ends) or None, "pad_token_id": [*ends, 0][0]}
    mine, answers = list(parallel.mine(range(len(asked)))), dict[int, str]()
    for start in range(0, len(mine), PROMPTS_AT_ONCE):
        batch = mine[start : start + PROMPTS_AT_ONCE]
        longest = max(len(asked[index]) for index in batch)
        room = [longest - len(asked[index]) for index in batch]
        ids = [[0] * left + list(asked[index]) for left, index in zip(room, batch, strict=True)]
        mask = [[0] * left + [1] * (longest - left) for left in room]
        given, seen = (torch.tensor(rows, device=model.device) for rows in (ids, mask))
        # Of the prompts, the head reads the last tokens; torch would copy its weights for every such strided row.
        with model.get_output_embeddings().register_forward_pre_hook(lambda _, x: (x[0].contiguous(),)):
            out = model.generate(given, attention_mask=seen, **how)[:, longest:].tolist()
        for index, new in zip(batch, out, strict=True):
            end = next((place for place, token in enumerate(new) if token in ends), len(new))
            answers[index] = str(tokenizer.decode(new[:end], skip_special_tokens=True)).strip()
    together = {index: answer for part in parallel.gather(answers) for index, answer in part.items()}
    return [together[index] for index in range(len(asked))]


def write_code(model: Any, tokenizer: Any) -> list[str | None]:
    """The first block of code in the answer to each task, None without one. Raises ModelError as `greedy_answers`."""
    prompts = [f"Write a Python function that {task}." for task in TASKS]
    blocks = [
        re.search(r"```(?:python3?|py)?[ \t]*\n(.*?)```", answer, re.DOTALL | re.IGNORECASE)
        for answer in greedy_answers(model, tokenizer, prompts, NEW_TOKENS)
    ]
    return [block and block[1] for block in blocks]


def compare_code(codes: Sequence[str | None], dense: Sequence[str | None]) -> CodeFigures | None:
    """Figures of a model's blocks, on the tasks for which `dense` has one; None if it has none."""
    pairs = [(parsed(code), parsed(other)) for code, other in zip(codes, dense, strict=True) if other is not None]
    if not pairs:
        return None
    parse = [code is not None for code, _ in pairs]
    same = [code is not None and code == other for code, other in pairs]
    return CodeFigures(tasks=len(pairs), parsed=sum(parse) / len(pairs), same=sum(same) / len(pairs))


def parsed(code: str | None) -> str | None:
    """The syntax tree of some code, without comments, docstrings and layout; None if it isn't Python."""
    if code is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                node.body = [each for each in body if not _is_string(each)]  # type: ignore[attr-defined]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
