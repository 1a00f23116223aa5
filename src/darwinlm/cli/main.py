"""Entry point of the command `darwinlm`.

Errors that input can cause end with one message and status 2, an interrupt with 130 and how to go on, and a reader who
closes the pipe with 141 and silence. Nothing heavy is imported here: a command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from typing import NoReturn

import typer
from rich.console import Console

from darwinlm import parallel
from darwinlm.cli import terminal
from darwinlm.cli.app import app
from darwinlm.errors import DarwinLMError

INTERRUPTED = 130
PIPE_CLOSED = 141
# Typer brings click's exceptions under its own name in some releases and under click's in others.
UsageError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

SILENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # its bars would tear ours
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What the libraries read when they are imported."""


def main() -> None:
    """Entry point: run a command and turn errors into messages and exit codes."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    terminal.set_verbosity(terminal.Verbosity.NORMAL)
    code: object = 0
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except DarwinLMError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Exit as stop:
        code = stop.exit_code
    except UsageError as error:
        _refuse(error.format_message() or "say what to do; see darwinlm --help")  # type: ignore[attr-defined]
    except BrokenPipeError:
        code = PIPE_CLOSED
        # The interpreter flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        parallel.shutdown()
    if code == INTERRUPTED:
        command = shlex.join(["darwinlm", *sys.argv[1:]])
        _errors().print(
            f"interrupted; finished work is kept. Go on with: {command}", highlight=False, markup=False, soft_wrap=True
        )
    sys.exit(code if isinstance(code, int) else 0)


def _errors() -> Console:
    return Console(stderr=True, quiet=not parallel.is_main())


def _refuse(message: str) -> NoReturn:
    _errors().print(f"error: {message}", highlight=False, markup=False, style="red", soft_wrap=True)
    sys.exit(2)
