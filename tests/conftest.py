"""What all tests share: no network, one thread, and tiny models, texts and runs made once per process."""

import os

# Read by the Hugging Face libraries and by PyTorch when they are imported, so they stand before everything else.
# Processes that tests start must add in the same order as the tests do, hence the threads.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

from tests.tiny import lines
from tests.tiny.shapes import check_formulas

if lines.LINES is None:
    check_formulas()

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from darwinlm.recipe import load_recipe
from darwinlm.runs.opening import open_run
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.run import Run
from darwinlm.steps.evaluate import speed
from darwinlm.steps.text import text_settings
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint, tiny_text
from tests.tiny.command import Command, command_runner
from tests.tiny.pruned import plain_checkpoint
from tests.tiny.stages import run_stages

torch.set_num_threads(1)  # matrices this small gain nothing from threads, and wait long for them on a busy machine

speed.NEW_TOKENS, speed.TIMED_TOKENS, speed.SPEED_ROUNDS = 4, 4, 1  # as little as there can be to measure
text_settings.LEAST_FOR_ANSWERS = 64

MakeRun = Callable[..., Run]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The lines that no test reaches, if they are measured."""
    if lines.LINES is not None and not hasattr(config, "workerinput"):
        terminalreporter.section("lines that no test reaches")
        terminalreporter.write(lines.report(lines.LINES))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make the checkpoint of a family, or hand out the one that was made before. It is shared: don't write into it."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = tiny_checkpoint(tmp_path_factory.mktemp("models") / model_type, model_type)
        return made[model_type]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_folder: Callable[[str], Path]) -> Path:
    """Folder of a tiny random Llama. It is shared: don't write into it."""
    return tiny_folder("llama")


@pytest.fixture
def model_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny Llama that may be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file that is long enough for the tiny settings."""
    return tiny_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process: command("prune", folder, "--keep", "50%")."""
    return command_runner(monkeypatch, capsys)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what commands keep between runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def make_run(tiny_text_file: Path) -> MakeRun:
    """Open a run with tiny settings: make_run(model, folder, *assignments, keep="60%", text=None, reporter=None)."""

    def make(
        model: Path,
        folder: Path,
        *assignments: str,
        keep: str | None = "60%",
        text: Path = tiny_text_file,
        reporter: Reporter | None = None,
    ) -> Run:
        overrides = {"model": str(model), "text.source": str(text), "budget.keep": keep}
        recipe = load_recipe(None, (*SETTINGS, *assignments), overrides)
        return open_run(recipe, folder, reporter or Reporter(quiet=True), begun=working_time())

    return make


@pytest.fixture(scope="session")
def finished_llama(tiny_llama: Path, make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a whole run on the tiny Llama. It is shared: don't write into it."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    run_stages(make_run(tiny_llama, folder), "report")
    return folder


@pytest.fixture
def finished_copy(finished_llama: Path, tmp_path: Path) -> Path:
    """A copy of it in tmp_path/out, which may be changed."""
    return Path(shutil.copytree(finished_llama, tmp_path / "out"))


@pytest.fixture
def sharded(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama in several shards, which may be damaged."""
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="100KB")
    for path in tiny_llama.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of a tiny Llama of three blocks, with weights in float32."""
    pytest.importorskip("gguf", reason="the extra gguf")
    from darwinlm.formats.gguf.checked_file import export_gguf
    from darwinlm.model.families.checkpoint import Checkpoint

    folder = tmp_path_factory.mktemp("gguf")
    export_gguf(Checkpoint.open(plain_checkpoint(folder / "model", "llama")), folder / "m.gguf", quantisation="f32")
    return (folder / "m.gguf").read_bytes()


HOLD = """
import sys, time
from pathlib import Path
from darwinlm.runtime import lock
held = getattr(lock, sys.argv[1])(Path(sys.argv[2]))
print("held", flush=True)
time.sleep(3600)
"""


@pytest.fixture
def holder():
    """Start processes that hold a lock: holder("hold_folder", path)."""
    started: list[subprocess.Popen[str]] = []

    def start(how: str, path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, how, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
