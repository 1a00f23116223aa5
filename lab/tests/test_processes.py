"""Two processes of torchrun compare methods."""

import json

from tests.integration.test_processes import POSIX, torchrun
from tests.tiny.benchmarks import QUIET

pytestmark = QUIET


@POSIX
def test_two_processes_compare_methods(tiny_llama, tiny_text_file, tmp_path):
    """Baselines are stages of the first process alone, in which the search's own shared work is done too."""
    methods = ("--methods", "uniform,ziplm,darwinlm+refit")
    done = torchrun("compare", tiny_llama, tiny_text_file, tmp_path / "two", *methods, program="lab")
    found = json.loads((tmp_path / "two" / "comparison.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in found["rows"]] == ["dense", "uniform", "ziplm", "darwinlm+refit"]
    assert done.stdout.count("measure uniform:") == 1
