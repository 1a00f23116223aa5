"""The command `darwinlm`: one small file of thin commands for each thing that users do."""

from darwinlm.cli import (
    bench,
    chat,
    compare,
    database,
    demo,
    evaluate,
    export,
    import_,
    info,
    plan,
    prune,
    push,
    recover,
    scores,
    show,
    verify,
)
from darwinlm.cli.app import app
from darwinlm.cli.main import main

__all__ = [
    "app",
    "bench",
    "chat",
    "compare",
    "database",
    "demo",
    "evaluate",
    "export",
    "import_",
    "info",
    "main",
    "plan",
    "prune",
    "push",
    "recover",
    "scores",
    "show",
    "verify",
]
