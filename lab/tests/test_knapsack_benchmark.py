"""The benchmark of the knapsack compares two solvers of the same problem."""

import json

from lab.benchmarks import knapsack


def test_the_choices_of_both_solvers_are_as_good(monkeypatch, capsys):
    monkeypatch.setattr(knapsack, "MODELS", {"tiny": (3, (4, 3000), (401, 8000))})
    monkeypatch.setattr("sys.argv", ["knapsack", "--instances", "2"])
    knapsack.main()
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [len(seconds) for seconds in line["seconds"].values()] == [2, 2]
    assert abs(line["HiGHS is better by"]) < 1e-3
