"""The tables of the page on GPUs are those of today's counts."""

from lab.benchmarks.gpu_tables import PAGE, page


def test_the_page_has_the_present_tables():
    present = PAGE.read_text(encoding="utf-8")
    assert page(present) == present, "run python -m lab.benchmarks.gpu_tables"
