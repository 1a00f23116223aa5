"""What people do with a finished run, as commands."""

from __future__ import annotations

import shlex

from darwinlm.report.summary import Summary


def next_steps(summary: Summary, run: str, beside: str, model: str | None) -> list[tuple[str, str]]:
    """Each wish and the command that fulfils it.

    New files and folders begin with the path `beside`. `model` is the dense one; None where it has no name that others
    know.
    """
    run, recovered, gguf = (shlex.quote(path) for path in (run, f"{beside}-recovered", f"{beside}.gguf"))
    against = f" --against {shlex.quote(model)}" if model else ""
    steps = [(f"talk to it{' beside the dense model' if model else ''}", f"darwinlm chat {run}{against}")]
    if summary.recovery is None:
        steps.append(
            (
                "train it (needs a GPU; on a CPU try --tokens 1M): this gains the most quality",
                f"darwinlm recover {run} --tokens 300M --out {recovered}",
            )
        )
    return [
        *steps,
        ("measure it on benchmarks", f"darwinlm evaluate {run} --suite quick"),
        ("write a file for llama.cpp", f"darwinlm export {run} --to gguf --quant q8_0 --out {gguf}"),
        ("publish it", f"darwinlm push {run} OWNER/NAME --dry-run"),
    ]
