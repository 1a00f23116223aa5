"""Commands that torchrun starts in several processes: those that share work, and those that refuse it."""

import pytest


@pytest.mark.parametrize("words", [("export", "model"), ("plan", "model")])
def test_a_command_for_one_process_refuses_two(command, monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    ended = command(*words)
    ended.refused(f"darwinlm {words[0]} runs in one process, but 2 were started: start it without torchrun")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5"])
def test_a_variable_that_is_no_number(command, monkeypatch, name, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    command("prune", "model").refused(f"{name} is {value!r}, which is no number: unset it, or start the processes with")
