"""Figures that the pages state: measurements, defaults, limits and plans are those of the results and the code."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny.process import forked
from tools.results import Cell, read_results, results_page, summarised

from darwinlm.recipe import Recipe, load_recipe
from darwinlm.recipe.load import shipped_recipes
from darwinlm.runs.demo_recipe import SETTINGS, SIZE
from darwinlm.steps.recover.recovery_settings import LONG_TRAINING
from darwinlm.steps.refit.refit_settings import RefitSettings
from darwinlm.steps.text.text_settings import TextSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Pages that users read; the notebook keeps what was measured when it was written."""
RESULTS = read_results()
SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
FIGURE = re.compile(r"(\d[\d,]*(?:\.\d+)?) ?([kMBT]\b)?")
STATED = re.compile(r"(?<![\w.-])(\d[\d,]*\.\d+)(?![\w.])()")
"""A figure with decimals in a sentence, but not in a name such as Qwen2.5-0.5B."""


def test_the_results_page_is_made_from_the_results() -> None:
    forked(ROOT / "tools" / "results.py", "--check", cwd=ROOT)
    named = re.findall(r"<!-- table: (\S+) -->", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert set(named) <= set(RESULTS)
    assert results_page().count("<!-- end -->") == len(named)


Figure = tuple[float, float]
"""A figure, and half a unit of its last digit."""


def figures(text: str, pattern: re.Pattern[str] = FIGURE) -> list[Figure]:
    found = []
    for digits, unit in pattern.findall(text):
        whole, _, decimals = digits.replace(",", "").partition(".")
        scale = SCALE[unit]
        found.append((float(f"{whole}.{decimals or 0}") * scale, 0.5 * scale / 10 ** len(decimals)))
    return found


def measured(cell: Cell) -> list[float]:
    texts = [cell] if isinstance(cell, str) else [*cell, *summarised(cell)]
    return [value for text in texts for value, _ in figures(text)]


def is_measured(figure: Figure, values: list[float]) -> bool:
    value, rounding = figure
    return any(abs(value - each) <= rounding * (1 + 1e-6) for each in values)


def stated(path: Path) -> Iterator[tuple[list[str], str]]:
    """The paragraphs and tables after a mark of figures, each with the entries that it names."""
    text = path.read_text(encoding="utf-8")
    for names, block in re.findall(r"^<!-- figures: ([^\n]*?) -->\n(.*?)(?:\n\n|\Z)", text, flags=re.M | re.S):
        yield names.split(), block


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_marked_figures_are_measured(path: Path) -> None:
    for names, block in stated(path):
        rows = [[value for cell in row for value in measured(cell)] for name in names for row in RESULTS[name].rows]
        if block.startswith("|"):
            for line in block.splitlines()[2:]:
                told = figures("|".join(line.strip("|").split("|")[1:]))
                unknown = [
                    value for value, rounding in told if not any(is_measured((value, rounding), row) for row in rows)
                ]
                assert not unknown, f"{path.name} states {unknown} in '{line}', which no row of {names} has"
        else:
            sentences = re.sub(r"\]\([^)]*\)", "]", block)
            values = [value for row in rows for value in row]
            unknown = [
                value for value, rounding in figures(sentences, STATED) if not is_measured((value, rounding), values)
            ]
            assert not unknown, f"{path.name} states {unknown}, which {names} don't have"


def test_a_stale_figure_is_noticed() -> None:
    values = measured(["1.552", "1.554", "1.585"])
    assert is_measured(figures("1.56")[0], values)
    assert not is_measured(figures("1.57")[0], values)
    assert figures("a 0.5B of Qwen2.5 has 0.149 (28.3 of 134.5 M)", STATED)[0][0] == 0.149
    assert is_measured(figures("30.6 B")[0], measured("30,600,000,000"))


TABLES = re.compile(r"(<!-- .* -->\n)?((?:^\|.*\n)+)", flags=re.M)


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "docs/tradeoff.md", "docs/chat-models.md"])
def test_tables_of_figures_name_their_results(name: str) -> None:
    for mark, table in TABLES.findall((ROOT / name).read_text(encoding="utf-8")):
        if len(STATED.findall(table)) > 4:
            assert mark, f"{name}: no results are named above the table\n{table}"


def amounts(preset: str) -> str:
    recipe = load_recipe(None, [f"preset={preset}"])
    generations = recipe.search.generations
    cells = (
        f"`{preset}`",
        f"{recipe.text.calibration_tokens:,}",
        f"{recipe.refit.tokens:,}",
        f"{max(each.tokens for each in recipe.search.rounds):,}",
        f"at most {generations}" if generations > 10 else str(generations),
        f"{recipe.text.evaluation_tokens:,}",
    )
    return f"| {' | '.join(cells)} |"


DEFAULTS = Recipe()
STATEMENTS = [
    *(("docs/budgets.md", amounts(preset)) for preset in ("quick", "default", "thorough")),
    ("docs/budgets.md", f"The default is `--keep {DEFAULTS.budget.keep:.0%}`"),
    ("docs/budgets.md", f"at least {1 - DEFAULTS.budget.tolerance:.1%} of it".replace("%", " %")),
    ("docs/own-model.md", f"Calibration reads {DEFAULTS.text.calibration_tokens:,} tokens by default"),
    ("docs/recovering.md", f"From {LONG_TRAINING // 1_000_000} million tokens on, the embedding and the output head"),
    ("docs/recovering.md", f"from {DEFAULTS.recovery.distillation:.0f} (the default) to 0"),
    ("docs/method.md", "a fifth repeats passages; at most 512 tokens of a document | `text.looking_back=0`"),
    ("docs/method.md", f"{DEFAULTS.search.generations} of at most {DEFAULTS.search.offspring} in two rounds"),
    ("docs/method.md", f"{DEFAULTS.text.calibration_tokens:,} tokens | `text.calibration_tokens`"),
    ("README.md", f"to at most {SIZE['budget.params']} parameters".replace("M", " M")),
    ("docs/quickstart.md", f"to at most {SIZE['budget.params']} parameters".replace("M", " M")),
    ("docs/quickstart.md", f"searched for {SETTINGS['search.generations']} generations"),
]


@pytest.mark.parametrize(("page", "sentence"), STATEMENTS, ids=lambda value: value[:60])
def test_what_pages_say_of_defaults_is_true(page: str, sentence: str) -> None:
    assert sentence in " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_comments_of_recipes_are_true() -> None:
    for name, path in shipped_recipes().items():
        if not name.endswith("-fast"):
            continue
        recipe, text = load_recipe(name), path.read_text(encoding="utf-8")
        assert "as many as `--preset thorough`" in text
        assert recipe.search.generations == load_recipe(None, ["preset=thorough"]).search.generations
        assert "twice the default's fitness text, in three rounds instead of two" in text
        assert recipe.search.rounds[-1].tokens == 2 * DEFAULTS.search.rounds[-1].tokens
        assert (len(recipe.search.rounds), len(DEFAULTS.search.rounds)) == (3, 2)
        least, channels = re.search(r"at least (\d+) tokens for each of (\d+) MLP channels", text).groups()
        assert recipe.section(TextSettings).calibration_tokens >= int(least) * int(channels)
        assert recipe.section(RefitSettings).tokens == recipe.section(TextSettings).calibration_tokens
