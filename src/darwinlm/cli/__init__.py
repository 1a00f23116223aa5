"""The command `darwinlm`: one small file of thin commands for each thing that users do."""

from darwinlm.cli import bench, compare, database, evaluate, export, import_, info, plan, prune, recover, scores, verify
from darwinlm.cli.app import app
from darwinlm.cli.main import main

__all__ = [
    "app",
    "bench",
    "compare",
    "database",
    "evaluate",
    "export",
    "import_",
    "info",
    "main",
    "plan",
    "prune",
    "recover",
    "scores",
    "verify",
]
