"""What people type first, and what it is called here."""

from __future__ import annotations

import re

from darwinlm.cli.app import Context

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


def meant(context: Context, message: str) -> str:
    """The message of a usage error, which names our word for an unknown one, or the commands that have the option.

    `context` is that of the command, as click knows it.
    """
    unknown = re.match(r"No such (?:command|option):? '?([\w-]+)'?", message)
    if unknown is None:
        return message
    typed, group = unknown[1], context.find_root().command
    commands = getattr(group, "commands", {})
    options = {
        name: {option for parameter in commands[name].params for option in parameter.opts if option.startswith("--")}
        for name in (group.list_commands(context) if commands else ())  # in the order of the help
    }
    of_command = options.get(context.command.name, set())  # none for an unknown command
    early = not of_command and any(typed in names for names in options.values())  # an option before its command
    suggested = [] if early else [word for word, synonyms in WORDS if typed in synonyms.split()]
    for word in suggested:
        if not of_command or not word.startswith("--") or re.split("[ ,]", word)[0] in of_command:
            return f"{unknown[0]}; use {word}"
    option_name = suggested[0] if suggested and " " not in suggested[0] else typed
    having = [f"darwinlm {name}" for name, names in options.items() if option_name in names]
    return f"{unknown[0]}; {option_name} is an option of {', '.join(having)}" if having else message
