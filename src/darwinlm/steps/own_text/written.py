"""Text that a model writes itself, in files of JSON lines that grow while it is written."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import damaged
from darwinlm.runtime.errors import DataError, storage_error
from darwinlm.steps.own_text.sampler import Sampled, Sampler
from darwinlm.steps.own_text.script import Script, chats, documents

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRIAL, RECENT, USABLE = 32, 256, 0.25
"""Sequences at the beginning, and the last ones, of which the share `USABLE` must be usable."""


def write_own_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
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
    for kind in (chats, documents):
        script = kind(model, tokenizer, length)
        if isinstance(script, str):
            reason = script
            continue
        if kind is documents:
            say(f"{reason}, so it writes documents instead of chats")
        longest = max(segment.until for segment in script.segments)
        text = _OwnText(script, folder, tokens, first, progress, longest)
        sampler = Sampler(model, script.prefix, script.segments, longest, seed, rows, on_steps=text.report)
        with parallel.agree():
            failed = text.trial(sampler) if parallel.is_main() else ""
        failed = parallel.broadcast(failed)
        if not failed:
            with parallel.agree():
                text.write(sampler, late)
            return
        reason = failed
    raise DataError(f"the model writes no text of its own that can be used ({reason}): name a text with --text")


@dataclass(frozen=True)
class _Line:
    """What is read back of the line of a document, which also has its text."""

    number: int
    tokens: int
    identity: str


class _OwnText:
    """The documents of one process; its file of JSON lines grows, and stays whole when the process is interrupted."""

    def __init__(
        self,
        script: Script,
        folder: Path,
        tokens: int,
        first: int,
        progress: Callable[[int, int], None],
        longest: int,
    ) -> None:
        self.script, self.first, self.progress, self.longest = script, first, progress, longest
        self.path = folder / f"{script.name}-{parallel.place()}.jsonl"
        self.requested = -(-tokens // parallel.size())
        records: list[_Line] = []
        if self.path.exists():
            content = self.path.read_bytes()
            lines = content[: content.rfind(b"\n") + 1]  # an interruption cuts the last line
            self.path.write_bytes(lines)
            for number, line in enumerate(lines.splitlines(), 1):
                try:
                    records.append(TypeAdapter(_Line).validate_json(line))
                except ValidationError as error:
                    raise damaged(self.path, f"line {number} isn't one of ours") from error
        self.seen = {record.identity for record in records}
        # What an interrupted run left out is tried again.
        self.tried = {record.number: record.tokens for record in records}
        """Tokens of each finished sequence by its number, 0 if it was left out."""
        self.begun = 0
        self.reported = 0
        """Largest number of tokens that was reported as progress."""
        self.lately: deque[bool] = deque(maxlen=RECENT)
        """Whether each of the last finished sequences was usable."""
        self.reasons = Counter[str]()
        """Why sequences were left out."""

    @property
    def written(self) -> int:
        """Tokens in the file."""
        return sum(self.tried.values())

    def report(self, unfinished: int) -> None:
        """Report progress: what is written of what will be written in all, as a share of what was asked for.

        Unfinished documents count as far as they are likely to be used. They are all written to their ends, so that
        the last ones go beyond what was asked for; each is taken to end halfway between here and the longest document.
        """
        usable = sum(map(bool, self.tried.values())) / len(self.tried) if self.tried else 1.0
        so_far = self.written + usable * unfinished
        rest = usable * max((self.begun - len(self.tried)) * self.longest - unfinished, 0) / 2
        done = int(self.requested * so_far / max(self.requested, so_far + rest))
        self.reported = max(self.reported, done)
        self.progress(self.reported, self.requested)

    def trial(self, sampler: Sampler) -> str:
        """Write the first documents, in the first process; returns why this kind of text can't be used, or nothing."""
        numbers = range(self.first, self.first + TRIAL)
        self._run(sampler, iter(numbers))
        if sum(1 for number in numbers if self.tried[number]) >= USABLE * TRIAL:
            return ""
        self.path.unlink(missing_ok=True)
        return self._reason(TRIAL)

    def _reason(self, among: int) -> str:
        """The most frequent reason for leaving sequences out."""
        ((reason, count),) = self.reasons.most_common(1)
        return f"{count} of {max(among, count)} {self.script.name} {reason}"

    def write(self, sampler: Sampler, late: Callable[[], bool]) -> None:
        """Write until there are enough tokens. Raises DataError if hardly any of the last sequences are usable."""

        def numbers() -> Iterator[int]:
            for number in count(self.first + TRIAL + parallel.place(), parallel.size()):
                unfinished = (self.begun - len(self.tried)) * (self.written / max(len(self.tried), 1))
                if self.written + unfinished >= self.requested or late():
                    return
                yield number

        self._run(sampler, numbers())

    def _run(self, sampler: Sampler, numbers: Iterator[int]) -> None:
        self.begun = len(self.tried)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                for sampled in sampler.sample(self._new(numbers)):
                    self._add(sampled, file)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def _new(self, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            if number not in self.tried:
                self.begun += 1
                yield number

    def _add(self, sampled: Sampled, file: IO[str]) -> None:
        record, identity = self.script.record(sampled), self.script.identity(sampled)
        usable = record is not None and identity not in self.seen
        self.lately.append(usable)
        self.tried[sampled.number] = len(sampled.tokens) if usable else 0
        if record is not None and usable:
            self.seen.add(identity)
            about = {"number": sampled.number, "tokens": len(sampled.tokens), "identity": identity}
            file.write(json.dumps(record | about) + "\n")
            file.flush()
            self.report(0)
        elif record is not None:
            self.reasons["repeat an earlier prompt or text"] += 1
        else:
            unended = len(sampled.parts) < len(self.script.segments)
            self.reasons["don't end the user's turn" if unended else "are empty or end in a loop"] += 1
        if len(self.lately) == RECENT and sum(self.lately) < USABLE * RECENT:
            raise DataError(
                f"the model's own text comes to an end after {self.written:,} of {self.requested:,} tokens "
                f"({self._reason(RECENT)}): name a text with --text, or lower the tokens of the recipe"
            )
