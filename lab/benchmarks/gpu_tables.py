"""Tables of `docs/gpu.md`: what runs ask of a GPU, and how long they take there, counted and not measured.

    python -m lab.benchmarks.gpu_tables          # writes them into the page
    python -m lab.benchmarks.gpu_tables --check  # fails if the page has others

Nothing is typed: counts are those of `darwinlm plan`, and rates those of `planning/speeds.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.tiny.published import PUBLISHED

from darwinlm import plan
from darwinlm.planning.run_plan import Plan, Row
from darwinlm.planning.speeds import CardSpeed
from darwinlm.runtime.amounts import duration, size
from darwinlm.runtime.step import Work

PAGE = Path("docs/gpu.md")
SECTION = "<!-- {name}: python -m lab.benchmarks.gpu_tables -->\n"
END = "<!-- end -->"

LARGE: dict[str, dict[str, Any]] = {
    "Llama-3.1-70B": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "Qwen3-235B-A22B": {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
}
"""Configurations of models for which there is no recipe, as their publishers state them."""
TITLES = {
    "llama2-7b-2.7b-fast": "Llama-2-7B to 2.7B",
    "llama3.1-8b-4.6b-fast": "Llama-3.1-8B to 4.6B",
    "qwen2.5-14b-8.4b-fast": "Qwen2.5-14B to 8.4B",
}
SINGLE = (("llama2-7b-2.7b-fast", "h100"), ("qwen2.5-14b-8.4b-fast", "h100"), ("llama3.1-8b-4.6b-fast", "rtx4090"))
PLANNED = (("llama2-7b-2.7b-fast", "h100"), ("llama2-7b-2.7b-fast", "rtx4090"), ("qwen2.5-14b-8.4b-fast", "h100"))
"""Runs by recipe and card: of the tables of stages, and of the table of plans."""
TRAINED = {
    "llama2-7b-2.7b": "Llama-2, 2.7B",
    "llama3.1-8b-4.6b": "Llama-3.1, 4.6B",
    "qwen2.5-14b-8.4b": "Qwen2.5, 8.4B",
}
MANY = (1, 8, 64)
"""Numbers of cards."""
COLUMNS = ("operations", "in float64", "GPU memory", "copied", "disk", "launches", "most time", "reachable", "expected")
SHORT = {"computing": "products", "memory": "GPU memory", "launches": "launches", "disk": "disk", "copies": "copies"}
SHORT |= {"links": "links"}


@functools.cache
def planned(name: str, card: str, processes: int = 1, recipe: str | None = None, *settings: str) -> Plan:
    """The plan of a bundled recipe for a model, or of the 8B's for half of the blocks of a larger one."""
    config = LARGE.get(name) or PUBLISHED[name.removesuffix("-fast")]
    recipe = recipe or ("llama3.1-8b-4.6b-fast" if name in LARGE else name)
    budget = (
        "budget.keep=50%" if name in LARGE else f"budget.params={name.removesuffix('-fast').rpartition('-')[2].upper()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")
        return plan(folder, recipe=recipe, device=card, processes=processes, assignments=[budget, *settings])


def total(row: Row) -> Work:
    """What all parts of a step ask for."""
    return sum(row.cost.parts.values(), Work())


def limit(rows: list[Row], speed: CardSpeed) -> str:
    """What most of the time of some steps is spent on."""
    spent: dict[str, float] = {}
    for part in (part for row in rows for part in row.cost.parts.values()):
        units = speed.units(part)
        longest = max(units, key=units.__getitem__)
        if units["computing"] + units["memory"] >= units[longest]:
            longest = max(("computing", "memory"), key=units.__getitem__)
        spent[longest] = spent.get(longest, 0.0) + speed.of_part(part)
    return SHORT[max(spent, key=spent.__getitem__)]


def roofline(name: str, card: str) -> list[str]:
    """The table of one run on one card: for each step what it asks for, and its times."""
    plan = planned(name, card)
    expected = plan.speeds[0]
    assert isinstance(expected, CardSpeed)
    lines = [
        f"{TITLES[name]} on an `{card}`:",
        "",
        "| " + " | ".join(("stage", *COLUMNS)) + " |",
        "|" + " --- |" * (1 + len(COLUMNS)),
    ]
    rows = [row for row in plan.rows if row.cost.parts]
    for label, chosen in [*((row.step, [row]) for row in rows), ("all", rows)]:
        work = sum(map(total, chosen), Work())
        amounts = (
            f"{work.operations / 1e12:,.0f} T",
            f"{work.float64 / 1e12:,.0f} T",
            *map(size, (work.moved, work.copied, work.read + work.written)),
        )
        times = map(duration, plan.seconds(*chosen))
        lines.append(
            "| " + " | ".join((label, *amounts, f"{work.launches:,.0f}", limit(chosen, expected), *times)) + " |"
        )
    return lines


def cluster() -> list[str]:
    """The table of models on one and several cards."""
    lines = [
        "| model | 1 `h100` | 8 | 64 | 8 are faster by | 64 by | most time on 8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("llama2-7b-2.7b-fast", "qwen2.5-14b-8.4b-fast", *LARGE):
        plans = [planned(name, "h100", cards) for cards in MANY]
        one, eight, all_cards = (plan.seconds()[1] for plan in plans)
        expected = plans[1].speeds[0]
        assert isinstance(expected, CardSpeed)
        slowest = max(plans[1].rows, key=lambda row: plans[1].seconds(row)[1])
        cells = [TITLES.get(name, f"{name} at half"), *(plan.times() for plan in plans)]
        cells += [f"{one / eight:.1f}", f"{one / all_cards:.1f}", f"{slowest.step}: {limit([slowest], expected)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plans() -> list[str]:
    """The table of planned times and memory."""
    found = [planned(name, card) for name, card in PLANNED]
    heads = (f"{TITLES[name]}, `{card}`" for name, card in PLANNED)
    lines = ["| " + " | ".join(("stage", *heads)) + " |", "| --- | --- | --- | --- |"]
    for number, row in enumerate(found[0].rows):
        cells = (f"{plan.times(plan.rows[number])}, {size(plan.rows[number].cost.bytes)}" for plan in found)
        lines.append("| " + " | ".join((row.step, *cells)) + " |")
    cells = (f"{plan.times()}, {size(plan.peak.cost.bytes)}" for plan in found)
    return [*lines, "| " + " | ".join(("all", *cells)) + " |"]


def training() -> list[str]:
    """The table of the two phases of training on eight cards."""
    lines = [
        "| smaller model | `recover-documents`, 10B tokens, per card | `recover-chats`, 3B tokens, per card |",
        "| --- | --- | --- |",
    ]
    for name, title in TRAINED.items():
        short = ("text.sequence_length=4096",) if name.startswith("llama2") else ()
        cells = []
        for recipe, settings in (("recover-documents", ()), ("recover-chats", short)):
            made = planned(name, "h100", 8, recipe, *settings)
            row = next(row for row in made.rows if row.step == "recover")
            shortest, longest = (seconds / 3600 for seconds in made.seconds(row))
            cells.append(f"{size(row.cost.bytes)}, {shortest:.0f} to {longest:.0f} h")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def tables() -> dict[str, list[str]]:
    """The tables by the name of their section."""
    single = [line for name, card in SINGLE for line in (*roofline(name, card), "")][:-1]
    return {"plans": plans(), "roofline": single, "cluster": cluster(), "training": training()}


def page(text: str) -> str:
    """The page with the present tables."""
    for name, lines in tables().items():
        begin = SECTION.format(name=name)
        before, found, rest = text.partition(begin)
        assert found, f"{PAGE} has no section {name}"
        text = before + begin + "\n".join(lines) + "\n" + END + rest.partition(END)[2]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare them with the page")
    present = PAGE.read_text(encoding="utf-8")
    current = page(present)
    if not parser.parse_args().check:
        PAGE.write_text(current, encoding="utf-8")
    elif current != present:
        sys.exit(f"error: {PAGE} is out of date: run python -m lab.benchmarks.gpu_tables")


if __name__ == "__main__":
    main()
