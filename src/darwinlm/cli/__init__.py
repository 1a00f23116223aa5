"""The command `darwinlm`: one small file of thin commands for each thing that users do."""

from darwinlm.cli import evaluate, info, prune
from darwinlm.cli.app import app
from darwinlm.cli.main import main

__all__ = ["app", "evaluate", "info", "main", "prune"]
