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

from darwinlm.evaluation.instructions import greedy_answers
from darwinlm.runtime.figures import CodeFigures

NEW_TOKENS = 256
"""Maximum length of an answer."""

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
    parse, same = (
        [code is not None for code, _ in pairs],
        [code is not None and code == other for code, other in pairs],
    )
    return CodeFigures(tasks=len(pairs), parsed=sum(parse) / len(pairs), same=sum(same) / len(pairs))


def parsed(code: str | None) -> str | None:
    """The syntax tree of some code, without comments and layout; None if it isn't Python."""
    if code is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.dump(ast.parse(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
