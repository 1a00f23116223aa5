"""Entry point of the command `darwinlm`.

Errors that input can cause end with one message and status 2, an interrupt with a hint and status 130 (SIGTERM: 143),
a closed pipe silently with 141. Nothing heavy is imported here; commands import their modules when they run.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from pathlib import Path

import typer
from rich.console import Console

from darwinlm.cli.app import app
from darwinlm.cli.words import meant
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import DISK, ArtifactError, DarwinLMError, ParallelError
from darwinlm.runtime.limits import MESSAGE, NOT_IN_UTF8, shorten
from darwinlm.runtime.lock import release_all
from darwinlm.runtime.safe_console import Terminal
from darwinlm.runtime.spinning import SPINS

SHARED = frozenset({"prune", "demo", "recover", "evaluate"})
"""Commands that several processes of torchrun can share."""
PIPE_CLOSED = 141
_interrupted: list[int] = []
"""The status of a command that was interrupted."""
# In some releases Typer has its own copies of click's exceptions.
UsageError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

SILENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # its progress bars would break ours
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # it would print stacks of C++ when another process has ended
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # a GPU's memory then has fewer gaps
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",  # what Apple's GPUs lack runs on the CPU
    **SPINS,
    "USE_HUB_KERNELS": "NO",  # native code that transformers would fetch unasked
}
"""Environment variables for libraries, set before their import."""


def main(app: typer.Typer = app, program: str = "darwinlm", shared: frozenset[str] = SHARED) -> None:
    """Entry point: run a command and turn errors into messages and exit codes.

    `program` is how it is called, and `shared` its commands that several processes of torchrun can share.
    """
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("COLUMNS", "").strip("0"):
        os.environ.pop("COLUMNS", None)  # with no columns, rich prints nothing
    warnings.filterwarnings("ignore")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (stream := getattr(sys, name)) is None:  # it was closed, and a file of ours would get its number
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the end
        elif isinstance(stream, io.TextIOWrapper):  # which then fails at no character that its encoding lacks
            stream.reconfigure(errors="replace")
    Console.on_broken_pipe = _pipe_closed  # type: ignore[method-assign]  # Typer's help has a console of its own
    resume = f"interrupted; finished work is kept. Resume with: {program} {shlex.join(sys.argv[1:])}"
    _listen(resume)
    code = _run(app, program, shared)
    if code == 130 and not _interrupted:  # by other people's code, not by a signal
        _tell(resume, KeyboardInterrupt())
    status = code if isinstance(code, int) else 0
    if status:
        parallel.leave(status)
    parallel.shutdown()
    sys.exit(status)


def _listen(resume: str) -> None:
    """End the command with a line at the first Ctrl-C or SIGTERM; another one kills it.

    Among several processes SIGTERM kills: torchrun sends it when one has died, for which others may wait.
    """

    def interrupt(number: int, _: object) -> None:
        _interrupted.append(128 + number)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        sys.unraisablehook = lambda _: None  # of libraries that it disturbs
        threading.excepthook = lambda _: None
        interruption = KeyboardInterrupt()
        _tell(resume, interruption)
        raise interruption

    _interrupted.clear()
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells let the background ignore it
        signal.signal(signal.SIGINT, interrupt)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        signal.signal(signal.SIGTERM, interrupt)


def _run(app: typer.Typer, program: str, shared: frozenset[str]) -> object:
    """Run the command; returns its status."""
    code: object = 0
    try:
        _check_folder()
        _check_processes(sys.argv[1:], program, shared)
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except typer.Exit as stop:
        code = stop.exit_code
    except BrokenPipeError:
        code = PIPE_CLOSED
        # The interpreter flushes standard output at its end; in a test it may not be a file.
        with contextlib.suppress(io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except BaseException as error:
        code = 2
        if not _interrupted:  # otherwise it is how a library reported the interrupt
            panicked = type(error).__name__ == "PanicException"  # of the tokenizers library, which is no Exception
            if not panicked and not _expected(error):
                if not parallel.connected():
                    raise
                code = 1
                if parallel.tells(error):
                    sys.excepthook(type(error), error, error.__traceback__)
            elif message := shorten(_message(error), MESSAGE):  # it is empty if the help was printed
                _tell(f"error: {message}", error, style="red")
    finally:
        release_all()
    return _interrupted[0] if _interrupted else code


def _check_folder() -> None:
    """Refuse a current folder that was removed: in one, libraries end the process with messages of their own."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ArtifactError("the current folder was removed: change to one that exists") from error


def _pipe_closed(self: Console) -> None:
    """Leave a closed pipe to `main`, because rich would exit with status 1."""
    raise BrokenPipeError


def _message(error: BaseException) -> str:
    """The message of an error: the problem and the remedy in one line."""
    if isinstance(error, UsageError):
        return _usage(error)
    if isinstance(error, OSError):
        path = shorten(error.filename) if error.filename else "a file"
        advice = DISK.get(error.errno or 0, f"{error.strerror or shorten(error)}: check the path and its permissions")
        return f"{path}: {advice}"
    if isinstance(error, UnicodeEncodeError):
        return f"{shorten(ascii(error.object))}: {NOT_IN_UTF8}"
    if isinstance(error, MemoryError):
        return "the machine ran out of memory: see darwinlm plan, or lower compute.batch_tokens"
    if not isinstance(error, Exception):
        return f"the model's tokenizer fails on this text ({shorten(error, 200)}): give other text or another model"
    return str(error)


def _expected(error: BaseException) -> bool:
    """Whether an error is told in a line: input can cause it, or names of files that Python can't encode here."""
    if isinstance(error, UnicodeEncodeError):
        return sys.getfilesystemencoding() != "utf-8"
    return isinstance(error, DarwinLMError | UsageError | OSError | MemoryError)


def _usage(error: Exception) -> str:
    """The message for words that aren't a command, with what they were meant to be if that can be told."""
    context = getattr(error, "ctx", None)
    message = meant(context, error.format_message())  # type: ignore[attr-defined]
    joined = next((word for word in sys.argv if re.match(r"--[\w-]+\s+\S", word)), None)
    if joined and message.startswith("No such option"):
        option, value = joined.split(maxsplit=1)
        return f"'{shorten(joined)}' is a single word: write an option and its value as two, {option} {_quoted(value)}"
    takes_settings = context is not None and any("--set" in option.opts for option in context.command.params)
    if not takes_settings or "extra argument" not in message:
        return message
    if settings := re.findall(r"\w+\.[\w.]+=[^\s)]*", message):
        return f"{message}: give settings as --set {' --set '.join(settings)}"
    unassigned = _unassigned(sys.argv)
    return message + (f": put = between a setting and its value: --set {_quoted(unassigned)}" if unassigned else "")


def _quoted(value: str) -> str:
    return shlex.quote(shorten(value))


def _unassigned(words: list[str]) -> str | None:
    """What `--set section.field value` was meant to be; None if no setting lacks its `=`."""
    for option, setting, value in zip(words, words[1:], words[2:], strict=False):
        if option == "--set" and "=" not in setting and not value.startswith("-"):
            return f"{setting}={value}"
    return None


def _check_processes(words: list[str], program: str, shared: frozenset[str]) -> None:
    """Refuse torchrun for a command that can't be shared by processes. Raises ParallelError."""
    command = next((word for word in words if not word.startswith("-")), None)
    if parallel.expected() > 1 and command is not None and command not in shared:
        raise ParallelError(
            f"{program} {command} runs in one process, but {parallel.expected()} were started: start it without "
            f"torchrun (several processes share {', '.join(sorted(shared))})"
        )


def _tell(message: str, error: BaseException, *, style: str | None = None) -> None:
    """Print what ends the command, in one of several processes."""
    try:
        tells = parallel.tells(error)
    except ParallelError:  # which the message is about
        tells = True
    console = Terminal(stderr=True, quiet=not tells)
    console.print(message, highlight=False, markup=False, style=style, soft_wrap=True)
