"""Every hostile input ends in one clear error: no other exception, no hang, no exhausted memory, no code run.

CI runs a part of the corpus that covers every kind of case; `make fuzz` runs all of it (FUZZ=all).
"""

import os
import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.resolve import resolve_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import plan_card
from darwinlm.recipe import load_recipe
from darwinlm.runtime.errors import DarwinLMError
from darwinlm.runtime.limits import MESSAGE, shorten
from darwinlm.steps.own_text.script import is_chat
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.text.sources import read_documents
from tests.fuzz.case import REFUSED, Case
from tests.fuzz.cases import corpus

SECONDS, MEMORY = 2.0, 600 << 20
"""Processor time and memory that a case may take. A slow one is tried again: the first run may import modules."""
LOOPS = 50
"""A slow case may also take so many times a loop of a million additions: 0.04 s, and more on a busy machine."""
PART = 12
"""CI takes every so many cases of a reader."""
SLOW = ("many zeros", "a long line", "80 MB", "inside a character")
CASES = corpus()


def model(folder: Path) -> None:
    """As `prune` opens a model, with its tokenizer, generation settings, card and licences."""
    checkpoint = resolve_model(str(folder), folder / "work")
    tokenizer = checkpoint.tokenizer()
    checkpoint.check_carried()
    is_chat(tokenizer)


def plan(folder: Path) -> None:
    """As `plan` does: without weights."""
    sizes = RunSizes(Checkpoint.describe(folder), load_recipe(None, (), {"model": str(folder)}))
    plan_card(STEPS, sizes, "h100").seconds()


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


def _chosen() -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in CASES:
        groups[case.reader].append(case)
    if os.environ.get("FUZZ") == "all":
        return dict(groups)
    return {
        reader: [case for case in cases[:: PART if len(cases) > 100 else 2] if not case.name.endswith(SLOW)]
        for reader, cases in groups.items()
    }


def outcome(case: Case, folder: Path, model: Path) -> str | None:
    """What is wrong with how a case ended; None where it ended as it should."""
    case.write(folder, model)
    before = {path.name for path in folder.iterdir()}
    memory, begun = _memory(), time.process_time()
    refused = None
    try:
        READERS[case.reader](folder)
    except DarwinLMError as error:
        refused = shorten(str(error), MESSAGE)
        if "\n" in refused or len(refused) > MESSAGE:
            return f"a message of {len(refused)} characters"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {shorten(error, 200)}"
    seconds, more = time.process_time() - begun, _memory() - memory
    if seconds > SECONDS and (again := _seconds(case, folder)) > max(SECONDS, LOOPS * _loop()):
        return f"{seconds:.1f} s, then {again:.1f} s"
    if more > MEMORY:
        return f"{more >> 20} MiB"
    if (folder / "RAN").exists() or Path("RAN").exists():
        return "code ran"
    if {path.name for path in folder.iterdir()} - before:
        return f"left behind: {sorted({path.name for path in folder.iterdir()} - before)}"
    return "accepted" if case.outcome == REFUSED and refused is None else None


def _seconds(case: Case, folder: Path) -> float:
    begun = time.process_time()
    with suppress(DarwinLMError):
        READERS[case.reader](folder)
    return time.process_time() - begun


def _loop() -> float:
    begun = time.process_time()
    sum(number % 7 for number in range(1_000_000))
    return time.process_time() - begun


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reader", READERS)
def test_hostile_input(reader, tiny_llama, tmp_path):
    wrong = {}
    for number, case in enumerate(_chosen()[reader]):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = outcome(case, folder, tiny_llama)
        if found is not None:
            wrong[case.name] = found
        shutil.rmtree(folder)
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


def test_the_whole_model_passes(tiny_llama):
    """What the cases change is accepted unchanged: they are refused for what they change."""
    for reader in ("model", "plan"):
        READERS[reader](tiny_llama)
