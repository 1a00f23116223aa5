"""The command `darwinlm`: one small file of thin commands for each thing that users do."""

from darwinlm.cli import compare, evaluate, info, prune
from darwinlm.cli.app import app
from darwinlm.cli.main import main

__all__ = ["app", "compare", "evaluate", "info", "main", "prune"]
