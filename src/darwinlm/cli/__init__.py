"""The command `darwinlm`: thin commands, one small file for each task of the user."""

from darwinlm.cli import (  # noqa: F401 - each declares its command
    chat,
    demo,
    evaluate,
    export,
    import_,
    plan,
    prune,
    recover,
    show,
)
from darwinlm.cli.app import app
from darwinlm.cli.main import main

__all__ = ["app", "main"]
