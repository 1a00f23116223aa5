"""A corpus that a model writes itself, in files of JSON lines that grow while it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import DataError
from darwinlm.runtime.memory import kept_memory
from darwinlm.text.sampling.lines import JsonLines
from darwinlm.text.sampling.sampler import Sampled, Sampler
from darwinlm.text.sampling.script import Script, chats, documents

TRIAL, RECENT, USABLE = 32, 256, 0.25
"""Sequences at the beginning, and the last ones, of which the share `USABLE` must be usable."""


def write_corpus(
    model: Any,
    tokenizer: Any,
    folder: Path,
    tokens: int,
    *,
    length: int = 512,
    seed: int = 0,
    first: int = 0,
    rows: int | None = None,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    late: Callable[[], bool] = lambda: False,
) -> None:
    """Let a model write at least `tokens` tokens of chats or, if it can't, of documents.

    The folder gets a file of JSON lines from each process. If the call is repeated, finished documents are kept. Loops,
    repeated prompts and empty texts are left out. A model that has no usable chat template, doesn't end its turn, or
    repeats one prompt writes documents instead; `say` gets the reason.

    Documents have at most `length` tokens. No more of them are begun once `late` says so. A document's random numbers
    depend on `seed` and its number; `first` is the number of the first one.

    Raises:
        DataError: The model writes no usable text.
        StorageError: The disk is full.
    """
    length = min(length, getattr(model.config, "max_position_embeddings", None) or length)
    reason = ""
    with kept_memory(model.device):
        for kind in (chats, documents):
            script = kind(model, tokenizer, length)
            if isinstance(script, str):
                reason = script
                continue
            if kind is documents:
                say(f"{reason}, so it writes documents instead of chats")
            corpus = _Corpus(script, folder, tokens, seed, first, progress)
            with parallel.agree():
                failed = corpus.trial(model, rows) if parallel.is_main() else ""
            failed = parallel.broadcast(failed)
            if not failed:
                with parallel.agree():
                    corpus.write(model, rows, late)
                return
            reason = failed
    raise DataError(f"the model writes no text of its own that can be used ({reason}): name a text with --text")


class _Corpus:
    def __init__(
        self,
        script: Script,
        folder: Path,
        tokens: int,
        seed: int,
        first: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.script, self.seed, self.first, self.progress = script, seed, first, progress
        self.lines = JsonLines(folder / f"{script.name}-{parallel.place()}.jsonl")
        self.wanted = -(-tokens // parallel.size())
        self.seen = {str(record["identity"]) for record in self.lines.records}
        # What an interrupted run left out is tried again.
        self.tried = {int(record["number"]): int(record["tokens"]) for record in self.lines.records}
        """Tokens of each finished sequence by its number, 0 if it was left out."""
        self.begun = 0
        self.lately: deque[bool] = deque(maxlen=RECENT)
        """Whether each of the last finished sequences was usable."""
        self.why = {"unusable": 0, "repeated": 0, "unended": 0}

    @property
    def written(self) -> int:
        """Tokens in the file."""
        return sum(self.tried.values())

    def trial(self, model: Any, rows: int | None) -> str:
        """Write the first documents, in the first process; returns why this kind of text can't be used, or nothing."""
        numbers = range(self.first, self.first + TRIAL)
        self._run(model, rows, iter(numbers))
        if sum(1 for number in numbers if self.tried[number]) >= USABLE * TRIAL:
            return ""
        self.lines.path.unlink(missing_ok=True)
        return self._reason(TRIAL)

    def _reason(self, among: int) -> str:
        """The most frequent reason for leaving sequences out."""
        worst = max(self.why, key=self.why.__getitem__)
        among = max(among, self.why[worst])
        what = "prompts" if self.script.name == "chats" else "texts"
        return {
            "unusable": f"{self.why[worst]} of {among} {self.script.name} are empty or end in a loop",
            "repeated": f"{self.why[worst]} of {among} {what} repeat an earlier one",
            "unended": f"it doesn't end the user's turn in {self.why[worst]} of {among} prompts",
        }[worst]

    def write(self, model: Any, rows: int | None, late: Callable[[], bool]) -> None:
        """Write until there are enough tokens. Raises DataError if hardly any of the last sequences are usable."""
        place, size = parallel.place(), parallel.size()

        def numbers() -> Iterator[int]:
            for number in count(self.first + TRIAL + place, size):
                unfinished = (self.begun - len(self.tried)) * (self.written / max(len(self.tried), 1))
                if self.written + unfinished >= self.wanted or late():
                    return
                yield number

        self._run(model, rows, numbers())

    def _run(self, model: Any, rows: int | None, numbers: Iterator[int]) -> None:
        script = self.script
        length = max(segment.until for segment in script.segments)
        sampler = Sampler(model, script.prefix, script.segments, length, self.seed, rows)
        with self.lines:
            for sampled in sampler.sample(self._new(numbers)):
                self._add(sampled)

    def _new(self, numbers: Iterator[int]) -> Iterator[int]:
        self.begun = len(self.tried)
        for number in numbers:
            if number not in self.tried:
                self.begun += 1
                yield number

    def _add(self, sampled: Sampled) -> None:
        record, identity = self.script.record(sampled), self.script.identity(sampled)
        self.lately.append(record is not None and identity not in self.seen)
        self.tried[sampled.number] = 0
        if record is None:
            self.why["unended" if len(sampled.parts) < len(self.script.segments) else "unusable"] += 1
        elif identity in self.seen:
            self.why["repeated"] += 1
        else:
            self.seen.add(identity)
            self.tried[sampled.number] = tokens = len(sampled.tokens)
            self.lines.add({**record, "number": sampled.number, "tokens": tokens, "identity": identity})
            self.progress(min(self.written, self.wanted), self.wanted)
        if len(self.lately) == RECENT and sum(self.lately) < USABLE * RECENT:
            raise DataError(
                f"the model's own text comes to an end after {self.written:,} of {self.wanted:,} tokens "
                f"({self._reason(RECENT)}): name a text with --text, or lower the tokens of the recipe"
            )
