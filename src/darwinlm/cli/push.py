"""`darwinlm push`: publish a model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import terminal
from darwinlm.cli.app import USE, command
from darwinlm.runtime import amounts


@command(
    USE,
    "darwinlm push runs/half you/SmolLM2-half --dry-run",
    "darwinlm push runs/half you/SmolLM2-half --gguf q8_0 --private",
)
def push(
    run: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model, or of a finished run.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")],
    gguf: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Add a GGUF file of this type: f16, q8_0, q4_k_m ...")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Add to an existing repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded, and stop.")] = False,
) -> None:
    """Upload a model to the Hugging Face hub: model card, weights, tokenizer and, if wanted, a GGUF file."""
    from darwinlm.export.push import folder_to_push, gguf_name, push_folder
    from darwinlm.runs.verify import files_to_push

    folder = folder_to_push(run, repo, gguf)
    names = files_to_push(run, folder)
    console = terminal.console()
    if "README.md" not in names:
        terminal.say(f"{folder} has no model card (README.md): the model's page will be empty")
    if dry_run:
        sizes = {name: (folder / name).stat().st_size for name in names}
        width = max(map(len, names))
        lines = [f"{name:<{width}}  {amounts.size(size):>10}" for name, size in sizes.items()]
        lines += [f"{gguf_name(repo, gguf)}  built from the weights"] if gguf else []
        total = sum(sizes.values())
        lines.append(f"{amounts.size(total)} would go to {repo}; nothing was uploaded")
        console.print("\n".join(lines), soft_wrap=True)
        return
    page = push_folder(folder, names, repo, gguf, private=private, update=update, say=terminal.say)
    console.print(f"published: {page}", soft_wrap=True)
