"""The command `darwinlm`: thin commands, one small file for each task of the user."""

from darwinlm.cli import chat, demo, evaluate, export, import_, plan, prune, recover, show  # noqa: F401 - each declares its command
from darwinlm.cli.app import app
from darwinlm.cli.main import main

__all__ = ["app", "main"]
