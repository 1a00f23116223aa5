"""Draw the rooms of the package: a box for each, an arrow for each import between two of them.

    python tools/rooms.py --out docs/rooms.svg

Rooms stand above all rooms that they import. An import that is implied by others is not drawn. It fails if imports form
a cycle, which the contracts of `lint-imports` rule out.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

PACKAGE = Path(__file__).parents[1] / "src" / "darwinlm"
Graph = dict[str, set[str]]


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, from the parts of its dotted name after that of the package."""
    return parts[0] if parts else "__init__"


def read_rooms() -> tuple[Graph, dict[str, int]]:
    """Imports between rooms, and lines of each. Imports only for annotations don't count."""
    graph: Graph = defaultdict(set)
    lines: dict[str, int] = defaultdict(int)
    modules = {tuple(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    for parts, path in modules.items():
        if parts[-1] == "__init__" and len(parts) == 1:
            continue
        room, text = room_of(parts), path.read_text(encoding="utf-8")
        lines[room] += text.count("\n")
        graph[room] |= {room_of(target) for target in imports(ast.parse(text), set(modules))} - {room, "__init__"}
    return dict(graph), dict(lines)


def imports(tree: ast.Module, modules: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Modules of the package that a file imports, at its top or inside functions."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    targets = []
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.ImportFrom)
            or id(node) in skipped
            or not (node.module or "").startswith("darwinlm")
        ):
            continue
        base = tuple(str(node.module).split(".")[1:])
        for alias in node.names:
            deeper = (*base, alias.name)
            targets.append(deeper if deeper in modules or (*deeper, "__init__") in modules else base)
    return targets


def floors_of(graph: Graph) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports. Raises CycleError."""
    floors: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        floors[room] = max((floors[other] + 1 for other in graph.get(room, ())), default=0)
    return floors


def needed_arrows(graph: Graph) -> list[tuple[str, str]]:
    """Imports that no chain of other imports implies."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph.get(start, ()))
        while todo:
            room = todo.pop()
            if room not in seen:
                seen.add(room)
                todo += graph.get(room, ())
        return seen

    below = {room: reachable(room) for room in graph}
    return [
        (room, other)
        for room, others in sorted(graph.items())
        for other in sorted(others)
        if not any(other in below.get(third, ()) for third in others - {other})
    ]


def draw(graph: Graph, lines: dict[str, int]) -> str:
    """The picture as SVG text."""
    floors = floors_of(graph)
    by_floor: dict[int, list[str]] = defaultdict(list)
    for room, floor in sorted(floors.items()):
        by_floor[floor].append(room)
    height = max(by_floor) + 1
    mpl.rcParams["svg.hashsalt"] = "rooms"
    figure, axes = plt.subplots(figsize=(11, 0.75 * height))
    places: dict[str, tuple[float, float]] = {}
    for floor, rooms in by_floor.items():
        for number, room in enumerate(rooms):
            places[room] = ((number + 0.5) / len(rooms), float(floor))
    for room, other in needed_arrows(graph):
        (x1, y1), (x2, y2) = places[room], places[other]
        axes.annotate(
            "",
            (x2, y2 + 0.24),
            (x1, y1 - 0.24),
            arrowprops={"arrowstyle": "-|>", "color": "#b8b8b8", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0},
        )
    for room, (x, y) in places.items():
        width = 0.075 + 0.008 * len(room) / 2
        box = FancyBboxPatch(
            (x - width / 2, y - 0.2), width, 0.4, boxstyle="round,pad=0.004", facecolor="#eaf1f8", edgecolor="#35618e"
        )
        axes.add_patch(box)
        axes.text(x, y + 0.05, room, ha="center", va="center", fontsize=8.5)
        axes.text(x, y - 0.11, f"{lines[room]:,} lines", ha="center", va="center", fontsize=6, color="#555555")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.5, height - 0.5)
    axes.axis("off")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": "tools/rooms.py"})
    plt.close(figure)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/rooms.svg"))
    options = parser.parse_args()
    graph, lines = read_rooms()
    try:
        floors_of(graph)
    except CycleError as error:
        sys.exit(f"error: rooms import each other: {' -> '.join(map(str, error.args[1]))}")
    options.out.write_text(draw(graph, lines), encoding="utf-8")
    print(f"{len(graph)} rooms, {sum(map(len, graph.values()))} arrows: {options.out}")


if __name__ == "__main__":
    main()
