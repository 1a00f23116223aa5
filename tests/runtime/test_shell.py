"""Paths in commands that are printed arrive in a program as they are, and as no option."""

import subprocess

import pytest

from darwinlm.runtime.shell import word


@pytest.mark.parametrize(
    ("path", "arrives"),
    [
        ("runs/half", "runs/half"),
        ("-half", "./-half"),
        ("--out", "./--out"),
        ("two words", "two words"),
        ("it's $HOME", "it's $HOME"),
        ('-a "b" `c`;\nd', './-a "b" `c`;\nd'),
    ],
)
def test_a_path_is_one_word_of_a_command(path, arrives):
    said = subprocess.run(["sh", "-c", f"printf %s {word(path)}"], capture_output=True, text=True, check=True)
    assert said.stdout == arrives
