"""What each hostile input is given to: the functions that stand behind the commands, in this process."""

from collections.abc import Callable
from pathlib import Path

from darwinlm.engines.resolve import resolve_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.gguf.header import read_header
from darwinlm.recipe import load_recipe
from darwinlm.stages.execution.plan import plan_card
from darwinlm.stages.execution.sizes import Sizes
from darwinlm.text.sampling.script import is_chat
from darwinlm.text.sources import read_documents


def model(folder: Path) -> None:
    """As `prune` opens a model, with its tokenizer, generation settings, card and licences."""
    checkpoint = resolve_model(str(folder), folder / "work")
    tokenizer = checkpoint.tokenizer()
    checkpoint.check_carried()
    is_chat(tokenizer)


def plan(folder: Path) -> None:
    """As `plan` does: without weights."""
    sizes = Sizes(Checkpoint.describe(folder), load_recipe(None, (), {"model": str(folder)}))
    plan_card(sizes, "h100").as_json()


def gguf(folder: Path) -> None:
    read_header(folder / "model.gguf")


def recipe(folder: Path) -> None:
    load_recipe(folder / "recipe.yaml", (), {"model": "model"})


def text(folder: Path) -> None:
    for _ in read_documents(str(next(folder.glob("text.*")))):
        pass


READERS: dict[str, Callable[[Path], None]] = {
    "model": model,
    "plan": plan,
    "gguf": gguf,
    "recipe": recipe,
    "text": text,
}
