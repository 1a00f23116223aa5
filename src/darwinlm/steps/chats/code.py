"""Coding answers: share of a model's functions that parse as Python, and that are those of the dense model.

Each of 32 prompts asks for a small function. Answers are greedy, and no code is run. Only prompts that the dense model
answers with a block of code count, so that a model that doesn't write code has no figures.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ModelError
from darwinlm.steps.chats.chat_figures import CodeFigures
from darwinlm.steps.own_text.continuations import greedy_continuations
from darwinlm.steps.own_text.script import chat_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int
) -> list[str]:
    """Greedy answers through the chat template, of at most `new_tokens` tokens; processes share the prompts.

    Raises ModelError without a template.
    """
    parts = chat_parts(tokenizer)
    if isinstance(parts, str):
        raise ModelError(f"{parts}: coding tasks are for chat models")
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
    return [answer.strip() for answer in continued(model, tokenizer, inputs, new_tokens)]


def continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Sequence[Sequence[int]], new_tokens: int
) -> list[str]:
    """Greedy continuations of prompts of tokens, of at most `new_tokens` tokens; processes share the prompts."""
    share = list(parallel.mine(range(len(inputs))))
    own = greedy_continuations(model, tokenizer, [inputs[index] for index in share], new_tokens)
    answers = dict(zip(share, own, strict=True))
    gathered = {index: answer for part in parallel.gather(answers) for index, answer in part.items()}
    return [gathered[index] for index in range(len(inputs))]


def write_code(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """The first block of code in the answer to each task, None without one. Raises ModelError as `greedy_answers`."""
    prompts = [f"Write a Python function that {task}." for task in TASKS]
    return [first_block(answer) for answer in greedy_answers(model, tokenizer, prompts, NEW_TOKENS)]


def first_block(answer: str) -> str | None:
    """The first block of Python code in an answer; None without one."""
    block = re.search(r"```(?:python3?|py)?[ \t]*\n(.*?)```", answer, re.DOTALL | re.IGNORECASE)
    return block and block[1]


def compare_code(codes: Sequence[str | None], dense: Sequence[str | None]) -> CodeFigures | None:
    """Figures of a model's blocks, on the tasks for which `dense` has one; None if it has none."""
    pairs = [
        (parsed(code), parsed(expected)) for code, expected in zip(codes, dense, strict=True) if expected is not None
    ]
    if not pairs:
        return None
    parse = [tree is not None for tree, _ in pairs]
    same = [tree is not None and tree == expected for tree, expected in pairs]
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
                node.body = [statement for statement in body if not _is_string(statement)]  # type: ignore[attr-defined]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
