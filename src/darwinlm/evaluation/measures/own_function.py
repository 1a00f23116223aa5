"""A measure that is a function of the caller: `check.py:score`.

The function gets a model and its tokenizer, and returns a list of scores, or yields them one after the other. Only a
name that the caller gives on the command line or in Python leads here: no recipe, record or model folder does.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import reprlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from darwinlm.evaluation.measures.imported_files import imported_files
from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import duration
from darwinlm.runtime.artifact import digest_of, file_digest
from darwinlm.runtime.errors import DarwinLMError, MeasureError, RecipeError, first_line
from darwinlm.runtime.limits import shorten
from darwinlm.runtime.torch_state import put_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Score = Callable[[PreTrainedModel, PreTrainedTokenizerBase], Iterable[float]]

MOST_SCORES, LARGEST_SCORE = 100_000, 1e12
"""More scores come from a loop without an end; larger ones are no scores, and their sums would lose digits."""
AGAIN = 1.0
"""Seconds after which a function that has caught the end of its time is interrupted again, inside of its handler."""


_loaded: dict[str, str] = {}
"""Digests of imported files when a measure of this process loaded them last."""


class _Overdue(BaseException):
    """The function's time is up; no Exception, so that its own handlers let it pass."""


class FunctionMeasure(Measure):
    """A function in a file of Python.

    Args:
        path: The file, which is run once.
        function: Name of the function in it.
        seconds: Longest time until the list is returned, or until the next score is yielded.

    Raises RecipeError if there is no such file or function, MeasureError if the file itself fails.
    """

    changes_model = True

    def __init__(self, path: Path, function: str, seconds: float) -> None:
        self.name = f"{path.name}:{function}"
        self.path, self.function, self.seconds = path, function, seconds
        if not path.is_file():
            raise RecipeError(f"--measure {path}:{function}: there is no file {path}")
        self._beside = {str(file): file_digest(file) for file in imported_files(path)}
        folder = path.absolute().parent
        beside = [[str(Path(file).relative_to(folder)), digest] for file, digest in self._beside.items()]
        self._digest = digest_of([file_digest(path), function, *beside])
        found = getattr(self._module(), function, None)
        if not callable(found):
            raise RecipeError(f"--measure {path}:{function}: the file has no function '{function}'")
        self._score: Score = found

    @property
    def digest(self) -> str:
        """Content of the file, and of the files beside it that it imports."""
        return self._digest

    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: int = 0) -> Iterator[float]:
        """What the function gives in the first process. Raises MeasureError."""
        assert known == 0, "a function begins with its first item"
        with put_back():
            scores = parallel.decide(lambda: list(self._scores(model, tokenizer)))
        yield from scores

    def _scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[float]:
        streams, done = inspect.isgeneratorfunction(self._score), 0
        with self._guarded("item 1" if streams else "before it returned its scores"):
            values = iter(self._listed(self._score(model, tokenizer)))
        while True:
            done += 1
            with self._guarded(f"item {done}"):
                try:
                    number = self._number(next(values), done)
                except StopIteration:
                    break
            if done > MOST_SCORES:
                raise MeasureError(
                    f"{self.name} gave more than {MOST_SCORES:,} scores: look for an endless loop, or give fewer items"
                )
            yield number
        if done == 1:
            raise MeasureError(f"{self.name} gave no scores: it must return or yield one number for each item")

    def _listed(self, values: object) -> Iterable[object]:
        if isinstance(values, set | frozenset):
            raise MeasureError(
                f"{self.name} returned a set, which has no order: it must return a list with one number for each item"
            )
        if isinstance(values, Iterable) and not isinstance(values, str | bytes | dict):
            return values
        raise MeasureError(
            f"{self.name} returned {shorten(reprlib.repr(values))}: it must return a list with one number for each item"
        )

    def _number(self, value: object, item: int) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:
            number = math.inf
        except Exception:  # noqa: BLE001 - of any class
            shown = shorten(reprlib.repr(value))
            raise MeasureError(f"{self.name}: item {item} has the score {shown}, not a number") from None
        if not math.isfinite(number):
            raise MeasureError(f"{self.name}: item {item} has the score {number}: scores must be finite")
        if abs(number) > LARGEST_SCORE:
            raise MeasureError(
                f"{self.name}: item {item} has the score {number:g}: scores must lie between -1e12 and 1e12"
            )
        return number

    @contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        """Run a part of the function: its errors become one line, and it ends in time."""
        try:
            with _interrupted_at_last(), _limited(self.seconds):
                yield
        except _Overdue:
            raise MeasureError(
                f"{self.name}: {where}: not finished after {duration(self.seconds)}: look for an endless loop, or give "
                "it more time with --measure-time"
            ) from None
        except (DarwinLMError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise MeasureError(f"{self.name}: {where}: {self._told(error)}") from error

    def _told(self, error: BaseException) -> str:
        """An error of the function in one line, with the line of its file."""
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.path)
        ]
        place = f" (line {lines[-1]})" if lines else ""
        name, reason = type(error).__name__, shorten(first_line(error), 300)
        return f"{name if reason in ('', name) else f'{name}: {reason}'}{place}"

    def _module(self) -> ModuleType:
        folder, name = str(self.path.absolute().parent), f"darwinlm_measure_{self._digest}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        assert spec is not None, "a file that ends with .py can be loaded"
        assert spec.loader is not None, "it has a loader"
        module = importlib.util.module_from_spec(spec)
        if folder not in sys.path:  # as for a script, which imports what lies beside it
            sys.path.insert(0, folder)
        if any(_loaded.get(file, digest) != digest for file, digest in self._beside.items()):
            # One has changed since an earlier measure loaded it; the others may hold what it was.
            for loaded, imported in [*sys.modules.items()]:
                if str(getattr(imported, "__file__", None)) in self._beside:
                    del sys.modules[loaded]
        _loaded.update(self._beside)
        importlib.invalidate_caches()
        with put_back(), self._guarded("when it was loaded"):
            spec.loader.exec_module(module)
        return module


@contextmanager
def _interrupted_at_last() -> Iterator[None]:
    """Interrupt after the body if it was interrupted and the function swallowed that, as a bare `except:` does.

    What the function gives afterwards is no score. Only in the main thread, where signals arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = ((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
    before = {int(number): handler for number, handler in handlers if callable(handler)}
    arrived = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        before[number](number, frame)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # the command lets a second interrupt end the process
                signal.signal(number, handler)
    if arrived:
        raise KeyboardInterrupt


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_Overdue` in the body after some seconds; only the main thread of a Unix process can be interrupted."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Handlers in the function may take it, such as `except:` in a loop: the first line of these raises it again.
        while frame is not None and frame.f_code.co_filename != __file__:
            frame.f_trace, frame = at_next_line, frame.f_back
        sys.settrace(lambda *_: None)
        raise _Overdue

    def at_next_line(frame: FrameType, event: str, _: object) -> object:
        if event == "line":
            raise _Overdue
        return at_next_line

    before, tracing = signal.signal(signal.SIGALRM, interrupt), sys.gettrace()
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.settrace(tracing)
