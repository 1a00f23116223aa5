"""The command starts without heavy libraries, helps, completes, and minds its terminal."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from tests.tiny.command import Ended
from tests.tiny.process import python

import darwinlm
from darwinlm.cli import app
from darwinlm.cli.app import ORDER

HEAVY = {"torch", "transformers", "numpy", "scipy", "datasets", "matplotlib", "huggingface_hub", "safetensors"}

COUNT = """
import json, sys
sys.argv = ["darwinlm", *json.loads(sys.argv[1])]
from darwinlm.cli import main
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules}), len(sys.modules)]))
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["prune", "--help"], 0),
        (["prnue"], 2),
        (["prune", "--kep", "50%"], 2),
        (["show", "nowhere"], 2),
    ],
)
def test_nothing_heavy_is_imported_before_there_is_work(arguments: list[str], status: int) -> None:
    ended = python("-c", COUNT, json.dumps(arguments))
    code, roots, n_modules = json.loads(ended.stdout.splitlines()[-1])
    assert code == status
    allowed = {"safetensors"} if arguments[0] == "show" else set()
    assert not HEAVY & set(roots) - allowed
    assert n_modules < 800, n_modules


SPINS = r"""
import os, re, sys
os.environ.pop("GOMP_SPINCOUNT", None)
os.environ |= dict(word.split("=") for word in sys.argv[2:])
before = dict(os.environ)
import darwinlm
assert "torch" not in sys.modules
exec(sys.argv[1])
assert "torch" in sys.modules
assert dict(os.environ) == before
"""

LOADS = "from darwinlm.runtime.spinning import load_torch\nload_torch()\nimport torch"
"""What names such as `darwinlm.prune` do first. They also import transformers, which takes most of the time."""

NO_STATISTICS = "assert 'scipy.stats' not in sys.modules"
"""They take half a second to import, and only measures need them."""


def test_importing_changes_no_environment() -> None:
    assert python("-c", SPINS.replace('assert "torch" in', 'assert "torch" not in'), "darwinlm.Recipe").stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's OpenMP is another one")
@pytest.mark.parametrize(
    ("loads", "chosen", "spins"),
    [(f"darwinlm.prune\n{NO_STATISTICS}", (), 1000), (f"import torch\n{LOADS}", (), 300000), (LOADS, (7,), 7)],
)
def test_threads_of_pytorch_wait_without_holding_the_processor(loads: str, chosen: tuple[int, ...], spins: int) -> None:
    """The library tells its settings when it is loaded."""
    words = [f"GOMP_SPINCOUNT={number}" for number in chosen]
    told = python("-c", SPINS, loads, *words, OMP_DISPLAY_ENV="verbose").stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in told


LATE = """
import os, time
os.environ.pop("GOMP_SPINCOUNT", None)  # which commands in this process have set
import torch
torch.set_num_threads(2)
import darwinlm
from darwinlm.runtime.torch_state import in_usual_state
count = lambda: len(os.listdir("/proc/self/task"))
processors, steady = len(os.sched_getaffinity(0)), 0
before = count()
while steady < 20:  # threads of the imports have ended
    time.sleep(0.05)
    steady = steady + 1 if count() == before else 0
    before = count()
during = in_usual_state(lambda: in_usual_state(count)())()
ends = time.monotonic() + 600
while count() > before and time.monotonic() < ends:
    time.sleep(0.01)
print(during - before - 1 == processors, count() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's OpenMP is another one")
def test_a_library_that_is_loaded_has_sleeping_threads_meanwhile() -> None:
    """More threads than processors: then GNU's OpenMP lets those that wait sleep at once."""
    assert python("-c", LATE).stdout == "True 0\n"


def test_help_lists_all_commands_in_order(command) -> None:
    ended = command("--help").succeeded()
    names = [name for panel in ORDER for name in panel]
    places = [ended.out.find(f"│ {name} ") for name in names]
    assert -1 not in places, dict(zip(names, places, strict=True))
    assert places == sorted(places)
    assert sorted(typer.main.get_command(app).commands) == sorted(names)


@pytest.mark.parametrize("name", [name for panel in ORDER for name in panel])
def test_every_command_has_an_example_that_it_takes(name: str) -> None:
    found = typer.main.get_command(app).commands[name]
    lines = re.findall(r"\[cyan\](.*?)\[/cyan\]", found.epilog or "")
    assert lines
    for line in lines:
        words = shlex.split(line.rpartition("|")[2].partition(" > ")[0])
        assert words[:2] == ["darwinlm", name]
        found.make_context(name, words[2:], resilient_parsing=False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chat M --max-tokens 0", "'--max-tokens': must be 1 or more, not 0"),
        ("chat M --seed -1", "'--seed': must be 0 or more, not -1"),
        ("evaluate M --sequence-length 1", "'--sequence-length': must be 2 or more, not 1"),
        ("plan M --processes 0", "'--processes': must be 1 or more, not 0"),
        ("chat M --temperature hot", "'--temperature'"),
        ("export M --to gguf", "No such option: --to; use --quant"),
    ],
)
def test_numbers_out_of_range(command, line: str, said: str) -> None:
    command(*line.split()).refused(said)


def test_the_module_runs() -> None:
    assert python("-m", "darwinlm", "--version").stdout.strip() == darwinlm.__version__
    done = python("-m", "darwinlm", "show", "nowhere", status=2)
    Ended(2, done.stdout, done.stderr).refused("nowhere is not a run")


def test_a_closed_pipe_ends_quietly(finished_llama: Path) -> None:
    code = (
        "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "sys.argv = ['darwinlm', *sys.argv[1:]]\nfrom darwinlm.cli import main\nmain()"
    )
    for arguments in (["show", finished_llama], ["show", finished_llama, "--json"], ["prune", "--help"]):
        assert python("-c", code, *arguments, status=141).stderr == ""


def test_public_names() -> None:
    names = "DarwinLMError Model Recipe Reporter Result load load_recipe load_recipes plan prune prune_sweep recover"
    assert " ".join(name for name in dir(darwinlm) if not name.startswith("_")) == names
