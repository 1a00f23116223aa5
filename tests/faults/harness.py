"""Kill commands, or fill their disk, at any file operation; the same command again must end as if nothing was.

`python -m tests.faults.harness FOLDER KILLS DISKS [COMMAND ...]` does so many of both to each command, by a seeded
choice. It prints a line for each command and for everything that is wrong, and ends with 1 then. Commands run in forks
of this process, which has imported all that they need.
"""

# isort: split
import os

os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import contextlib
import errno
import hashlib
import importlib
import json
import pkgutil
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

import darwinlm
from darwinlm import cli
from darwinlm.steps.evaluate import speed
from tests.faults.commands import COMMANDS, begin, preparations
from tests.faults.operations import Watched, watch

SEED = 0
MEASURED = re.compile(r".*seconds|.*tokens_per_second(_runs)?|speed_spread|reused|resumed|files")
"""Fields of JSON files that two runs of a command need not have in common; `files` holds digests of such files."""
UNMEASURED = (".safetensors", ".gguf", ".bin", ".py", ".txt")
"""Endings of files that two runs of a command write byte for byte alike."""
speed.NEW_TOKENS, speed.TIMED_TOKENS, speed.SPEED_ROUNDS = 4, 4, 1  # nobody reads the speeds
LEFT_OVER = (".tmp", ".partial", ".unchecked", ".lock", ".old")
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, negative for a signal, what it said, and the operations that it did."""

    code: int
    err: str
    operations: list[str]


class Bench:
    """Runs commands in forks.

    Args:
        folder: for everything; made anew.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.out, self.given = folder, folder / "work", folder / "given"
        _import_all()
        begin(self.given)
        for words in preparations(self.given):
            self.out.mkdir(exist_ok=True)
            ended = self.run(words)
            assert ended.code == 0, ended.err

    def empty(self, name: str) -> None:
        """Bring the folder of a command's results into the state before it."""
        shutil.rmtree(self.out, ignore_errors=True)
        before = self.given / "before" / name
        if before.exists():
            shutil.copytree(before, self.out, symlinks=True)
        else:
            self.out.mkdir()

    def run(self, words: list[Any], at: int | None = None, error: int | None = None) -> Ended:
        """Run a command in a fork, and let it meet its fault at an operation, if one is given."""
        seen, said = self.folder / "seen.json", self.folder / "err"
        child = os.fork()
        if child == 0:
            code: Any = 70
            with contextlib.suppress(BaseException):
                code = _command(words, Watched(self.out, at, error), seen, said)
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ended(code, said.read_text(encoding="utf-8"), json.loads(seen.read_text()) if code >= 0 else [])


def _command(words: list[Any], watched: Watched, seen: Path, said: Path) -> int:
    for stream, path in ((1, "/dev/null"), (2, str(said))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["darwinlm", *map(str, words)]
    watch(watched)
    code: Any = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    operations, watched.seen = watched.seen, []
    sys.stderr.flush()
    fd = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, json.dumps(operations).encode())
    return int(code)


def _import_all() -> None:
    for found in pkgutil.walk_packages(darwinlm.__path__, "darwinlm."):
        if found.name.endswith(("__main__", "vllm_plugin")):
            continue
        with contextlib.suppress(ImportError):
            importlib.import_module(found.name)


def result(folder: Path) -> dict[str, str]:
    """What a command left, by path: bytes of weights and code, figures of JSON files, presence of the others."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".json":
            content = json.dumps(_plain(json.loads(path.read_text(encoding="utf-8"))), sort_keys=True).encode()
        else:
            content = path.read_bytes() if path.name.endswith(UNMEASURED) else b""
        if path.suffix == ".safetensors":  # the library writes metadata in any order
            length = 8 + int.from_bytes(content[:8], "little")
            header = json.dumps(json.loads(content[8:length]), sort_keys=True)
            content = header.encode() + content[length:]
        found[str(path.relative_to(folder))] = hashlib.blake2b(content, digest_size=8).hexdigest()
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if not MEASURED.fullmatch(name)}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def difference(left: dict[str, str], right: dict[str, str]) -> str:
    """The files in which two results differ, in words."""
    lacks, more = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
    changed = sorted(name for name in left.keys() & right.keys() if left[name] != right[name])
    parts = (("lacks", lacks), ("left behind", more), ("differs in", changed))
    return "; ".join(f"{what} {', '.join(names)}" for what, names in parts if names)


def half_written(folder: Path) -> str:
    """A file under a final name that isn't whole, or a left-over one, in words; empty where there is none."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if path.name.endswith(LEFT_OVER):
                return f"left behind: {path.name}"
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    file.keys()
            elif path.suffix in (".html", ".svg"):
                assert path.read_text(encoding="utf-8").rstrip().endswith(f"</{path.suffix[1:]}>")
        except Exception as error:  # noqa: BLE001 - whatever a reader raises
            return f"half-written: {path.relative_to(folder)} ({error})"
    return ""


class Case:
    """A command and how it ends when nothing happens.

    Raises:
        AssertionError: it doesn't end well.
    """

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.words = COMMANDS[name](bench.given, bench.out)
        self.bench.empty(name)
        ended = self.bench.run(self.words)
        assert ended.code == 0, f"{name}: {ended.err}"
        assert not half_written(self.bench.out), f"{name}: {half_written(self.bench.out)}"
        self.whole, self.operations = result(self.bench.out), ended.operations

    def killed(self, at: int) -> str:
        """What is wrong after a kill before operation `at` and the same command again; empty where nothing is."""
        self.bench.empty(self.name)
        ended = self.bench.run(self.words, at)
        if ended.code != -signal.SIGKILL:
            return f"it wasn't killed, but ended with {ended.code}: {ended.err}"
        return self._again()

    def refused(self, at: int, error: int) -> str:
        """The same after a disk that refused from operation `at` on."""
        self.bench.empty(self.name)
        ended = self.bench.run(self.words, at, error)
        before = ("reading", "writing", "checking")  # what exports and imports say while they work
        lines = [line for line in ended.err.strip().splitlines() if not line.startswith(before)]
        if ended.code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
            return f"it ended with {ended.code} and said {ended.err[-1500:]!r}"
        if error != errno.EROFS and (left := half_written(self.bench.out)):
            return left
        return self._again()

    def _again(self) -> str:
        ended = self.bench.run(self.words)
        if ended.code != 0 and not (ended.code == 2 and " exists: " in ended.err):  # it was finished already
            return f"the second run ended with {ended.code}: {ended.err[-1500:]}"
        return difference(self.whole, result(self.bench.out))


def chosen(operations: list[str], places: list[int], count: int, rng: random.Random) -> list[int]:
    """Seeded places among those given. A first one of every operation on every name comes before any second one."""
    met: Counter[str] = Counter()
    ranked = []
    for at in rng.sample(places, len(places)):
        kind = re.sub(r"\d+", "", operations[at])
        ranked.append((met[kind], at))
        met[kind] += 1
    return sorted(at for _, at in sorted(ranked, key=lambda pair: pair[0])[:count])


def main(folder: Path, kills: int, disks: int, names: list[str]) -> int:
    """Kill each command so many times, fill so many disks, and run it on a read-only one. Returns how many went wrong.

    Args:
        folder: to work in.
        kills: how often the process is killed.
        disks: how often the disk gets full.
        names: of commands; all where there is none.
    """
    begun, bench, rng = time.monotonic(), Bench(folder), random.Random(SEED)
    given, wrong = result(bench.given), 0
    for case in (Case(bench, name) for name in names or COMMANDS):
        every = list(range(len(case.operations)))
        filling = [at for at in every if not case.operations[at].startswith("remove")]
        faults: list[tuple[int, int | None]] = [(at, None) for at in chosen(case.operations, every, kills, rng)]
        full = chosen(case.operations, filling, disks, rng)
        faults += [(at, FULL[number % len(FULL)]) for number, at in enumerate(full)] + [(0, errno.EROFS)]
        errors = 0
        for at, error in faults:
            found = case.killed(at) if error is None else case.refused(at, error)
            if found:
                errors += 1
                what = "killed" if error is None else os.strerror(error)
                print(f"  {case.name}, {what} at {at} ({case.operations[at]}): {found}", flush=True)
        print(f"{case.name}: {len(every)} operations, {len(faults)} faults, {errors} wrong", flush=True)
        wrong += errors
    assert not difference(given, result(bench.given)), "a command changed what it reads"
    print(f"{wrong} wrong, {time.monotonic() - begun:.0f} s", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
