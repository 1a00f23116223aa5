"""What people type first, and what it is called here."""

from __future__ import annotations

import re
from typing import Any

WORDS = (
    ("prune", "compress shrink reduce slim start"),
    ("recover", "train finetune fine-tune distill heal"),
    ("export", "convert quantize quantise save gguf"),
    ("chat", "generate ask talk infer serve"),
    ("show", "list report status results info describe inspect"),
    ("evaluate", "test measure perplexity"),
    ("plan", "estimate dry-run memory"),
    ("--help", "help"),
    ("--version", "version"),
    ("--keep", "--size --ratio --target --percent"),
    ("--keep, the share that stays", "--sparsity --remove --pruning-ratio --amount"),
    ("--out", "--output --output-dir --output-path --save --dir"),
    ("--text", "--data --dataset --corpus --calibration"),
    ("--set text.source=TEXT", "--text --data --dataset --corpus --calibration"),
    ("--set preset=NAME", "--preset"),
    ("--device", "--gpu --gpus --cuda --cpu"),
    ("--set compute.device=cuda", "--gpu --gpus --cuda --cpu --device"),
    ("--quant", "--quantize --quantization --to --format --type"),
    ("--for", "--quant --quantize --quantization --format"),
    ("--recipe", "--config"),
    ("--time", "--minutes --hours --timeout --max-time"),
    ("--tokens", "--steps --epochs"),
    ("--max-tokens", "--max-new-tokens --max-length --n-predict"),
    ("--suite", "--task --tasks --benchmark"),
    ("--overwrite", "--force --yes"),
    ("--set SETTING=VALUE; recipe.default.yaml lists the settings", "--seed --batch-size --lr --learning-rate"),
    ("the model alone, without an option", "--model --path --input"),
    ("a tokenizer.json: a checkpoint's code never runs here", "--trust-remote-code --allow-remote-code"),
    ("a pipe: echo 'hi' | darwinlm chat MODEL", "--prompt --question --message"),
)


def meant(error: Any, message: str) -> str:
    """The message of a usage error, which names our word for an unknown one, or the commands that have the option."""
    unknown = re.match(r"No such (?:command|option):? '?([\w-]+)'?", message)
    if unknown is None:
        return message
    typed, group = unknown[1], error.ctx.find_root().command
    options = {
        name: {option for each in command.params for option in each.opts if option.startswith("--")}
        for name, command in getattr(group, "commands", {}).items()
    }
    here = options.get(error.ctx.command.name, set())  # none for an unknown command
    early = not here and any(typed in known for known in options.values())  # an option before its command
    ours = [] if early else [word for word, others in WORDS if typed in others.split()]
    for word in ours:
        if not here or not word.startswith("--") or re.split("[ ,]", word)[0] in here:
            return f"{unknown[0]}; use {word}"
    wanted = ours[0] if ours and " " not in ours[0] else typed
    having = [f"darwinlm {name}" for name, known in options.items() if wanted in known]
    return f"{unknown[0]}; {wanted} is an option of {', '.join(having)}" if having else message
