"""Kill one of two processes of a run in each stage: the other must end, and the same command again as if nothing was.

`python -m tests.faults.ranks FOLDER [STAGE ...]` kills each of them at a collective of both, and the first one at a
file operation too. Nobody like torchrun ends the other one here: it must notice itself.
"""

import json
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from darwinlm.runtime import parallel
from tests.faults.commands import SETTINGS, TRAINING
from tests.faults.harness import _command, _import_all, difference, half_written, result
from tests.faults.operations import Watched
from tests.tiny.checkpoint import tiny_checkpoint, tiny_text
from tests.tiny.command import sets

PATIENCE, HANGS = 60.0, 99
"""Seconds until a process that doesn't end counts as one that hangs, and its code."""


class Pair:
    """Runs a command in two processes, in a folder that is made anew."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _import_all()
        model, text = tiny_checkpoint(folder / "model", num_hidden_layers=2), tiny_text(folder / "text.txt")
        self.folder, self.out = folder, folder / "work"
        self.words = ["prune", model, "--keep", "60%", "--text", text, "--out", self.out / "out"]
        self.words += sets((*SETTINGS, "recovery.tokens=512", *TRAINING))

    def run(self, doomed: int = -1, collective: int | None = None, operation: int | None = None) -> list[int]:
        """Exit codes of both, negative for a signal; the doomed one dies at a collective or a file operation."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        children = []
        for rank in range(2):
            children.append(os.fork())
            if not children[-1]:
                code = 70
                try:
                    code = self._rank(rank, port, *((collective, operation) if rank == doomed else (None, None)))
                finally:
                    os._exit(code)
        return [_end(child) for child in children]

    def _rank(self, rank: int, port: int, met_at: int | None, operation: int | None) -> int:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in own.items()}
        whole, met, stages = parallel._collective, self.folder / f"met{rank}", self.out / "out" / "stages"
        met.unlink(missing_ok=True)
        seen: list[str] = []

        def collective() -> AbstractContextManager[None]:
            there = [path.name for path in stages.iterdir()] if stages.is_dir() else []
            seen.append(next((name for name in there if name not in set(seen)), seen[-1] if seen else ""))
            met.write_text(json.dumps(seen))
            if len(seen) - 1 == met_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole()

        parallel._collective = collective
        said = [self.folder / f"{name}{rank}" for name in ("seen", "err")]
        return _command(self.words, Watched(self.out, operation), *said)


def _end(child: int) -> int:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGS


def middle(places: list[str]) -> dict[str, int]:
    """The middle one of the places in each stage, by the stage."""
    found: dict[str, list[int]] = {}
    for number, stage in enumerate(places):
        found.setdefault(stage, []).append(number)
    return {stage: numbers[len(numbers) // 2] for stage, numbers in found.items() if stage}


def main(folder: Path, only: list[str]) -> int:
    """Kill both in every stage, or in some. Returns how many cases went wrong."""
    pair, wrong, tried = Pair(folder), 0, 0

    def fresh() -> None:
        shutil.rmtree(pair.out, ignore_errors=True)
        pair.out.mkdir()

    fresh()
    assert pair.run() == [0, 0], (pair.folder / "err0").read_text()
    whole = result(pair.out)
    operations = [each.split(" ", 1)[1].split("/") for each in json.loads((pair.folder / "seen0").read_text())]
    stages = [parts[2] if parts[:2] == ["out", "stages"] and len(parts) > 2 else "" for parts in operations]
    places = [(rank, "collective", json.loads((pair.folder / f"met{rank}").read_text())) for rank in range(2)]
    for rank, kind, where in (*places, (0, "operation", stages)):
        for stage, at in middle(where).items():
            if only and stage not in only:
                continue
            fresh()
            codes, tried = pair.run(rank, **{kind: at}), tried + 1
            said = (pair.folder / f"err{1 - rank}").read_text().strip()
            if codes[rank] != -signal.SIGKILL or codes[1 - rank] != 2 or "Traceback" in said:
                found = f"they ended with {codes}: {said[-1000:]}"
            elif (codes := pair.run()) != [0, 0]:
                found = f"the second run ended with {codes}: {(pair.folder / 'err0').read_text()[-1000:]}"
            else:
                found = half_written(pair.out) or difference(whole, result(pair.out))
            wrong += bool(found)
            print(f"process {rank}, {kind} {at} in {stage}: {found or 'as if nothing was'}", flush=True)
    print(f"{wrong} wrong of {tried}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), sys.argv[2:])))
