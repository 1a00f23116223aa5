"""Text, options and recipes that can't be used: one clear message, status 2, and nothing half-written."""

import re

import pytest
import typer
from tests.tiny.damage import assert_nothing_half_written

from darwinlm.cli.app import app
from darwinlm.cli.words import WORDS


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("none.txt", None, ["there is no such file or folder"]),
        ("short.txt", b"the river", ["less than a sequence of", "give more text, or lower text.sequence_length"]),
        ("binary.txt", bytes(range(256)) * 40, ["can't be read as UTF-8 text"]),
    ],
)
def test_text_that_cannot_be_used(prune, tmp_path, name, content, parts):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    prune(text=tmp_path / name).refused(name, *parts)
    assert not (tmp_path / "out").exists()


def test_the_first_of_several_texts_is_read_too(prune, command, finished_llama, tiny_text_file, tmp_path):
    missing = "Text source 'none.txt': there is no such file or folder"
    prune("--text", tiny_text_file, text="none.txt").refused(missing)
    texts = ("--text", "none.txt", "--text", tiny_text_file)
    command("recover", finished_llama, "--out", tmp_path / "more", *texts, "--tokens", 64).refused(missing)


def test_text_from_the_hub_without_a_network(prune):
    pytest.importorskip("datasets")
    prune(text="hf:own/er").refused("hf:own/er", "local text")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--keep 50", ["budget.keep: must be from 1 to 100 %; did you mean 50%?"]),
        ("--recipe none.yaml", ["none.yaml", "No such file"]),
        ("--set text.sequence_length=512", ["text.sequence_length is 512", "allows 256 tokens"]),
        ("--set compute.device=abacus", ["compute.device: 'abacus' is not a device"]),
        ("--until prune", ["--until prune: there is no such stage; the stages are own_text, vocabulary, text"]),
        ("--frobnicate", ["--frobnicate"]),
        ("--set generations=3", ["unknown field 'generations': did you mean search.generations?"]),
        ("--set seed=3", ["unknown field 'seed': did you mean text.seed or search.seed?"]),
        ("--set serch.seed=3", ["unknown field 'serch': did you mean 'search'?"]),
        ("--set search.seed 2", ["put = between a setting and its value: --set search.seed=2"]),
        ("--set search.seed", ["--set takes section.field=value, not 'search.seed': put = before the value"]),
        ("--answers ,", ["text.answers: must be two words such as yes,no", "(it is ',')"]),
        ("units.mlp_multiple=8 search.seed=1", ["give settings as --set units.mlp_multiple=8 --set search.seed=1"]),
    ],
)
def test_options_that_cannot_be_used(prune, tmp_path, options, parts):
    prune(*options.split()).refused(*parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--set search.seed=1"],
            "'--set search.seed=1' is a single word: write an option and its value as two, --set",
        ),
        (["--text a b.txt"], "is a single word: write an option and its value as two, --text 'a b.txt'"),
        (["--set", "search.seed=1 text.seed=2"], "holds several settings: give each its own --set, such as --set text"),
        (["--set", "search.seed", "a b"], "put = between a setting and its value: --set 'search.seed=a b'"),
    ],
)
def test_quotes_around_too_much(prune, command, tiny_llama, words, message):
    prune(*words).refused(message)
    command("plan", tiny_llama, *words).refused(message)


def test_a_value_may_hold_spaces_and_equality_signs(prune):
    prune("--set", "text.template=a {document} b=c x.y=z").refused("text.template is for models that judge pairs")


def test_a_budget_below_the_smallest_model(prune, tmp_path):
    prune("--keep", "0.75%").refused("budget.keep: must be from 1 to 100 %")
    prune("--params", "10").refused("less than the smallest model that the units allow")
    assert_nothing_half_written(tmp_path / "out")
    assert prune("--keep", "50%", "--until", "text").code == 0, "the same output folder goes on"


@pytest.mark.parametrize(
    "words",
    ["prune model --set", "prune model --keep", "prune model --recipe", "prune model --out", "prune a b", "frob"],
)
def test_a_line_that_cannot_be_read(command, words):
    command(*words.split()).refused(words.split()[-1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("prune model --size 75%", "No such option: --size; use --keep"),
        ("plan model --gpu h100", "use --device"),
        ("demo --gpu", "use --set compute.device=cuda"),
        ("demo --keep 75%", "--keep is an option of darwinlm prune, darwinlm plan"),
        ("demo --text t", "No such option: --text; use --set text.source=TEXT"),
        ("recover model --preset quick", "No such option: --preset; use --set preset=NAME"),
        (
            "chat model --text t",
            "--text is an option of darwinlm prune, darwinlm recover, darwinlm evaluate, darwinlm plan",
        ),
        ("--text t prune", "--text is an option of darwinlm prune, darwinlm recover, darwinlm evaluate, darwinlm plan"),
        ("prune model --keep 75% --keep=50%", "'--keep': it is given more than once: give it once"),
        ("prune model --keep half", "budget.keep: must be a share such as 50% or 0.5 (it is 'half')"),
        ("prune model --vocab 200%", "vocabulary.keep: must be at most 100 % (it is '200%')"),
        ("chat model --prompt hi", "use a pipe: echo 'hi' | darwinlm chat MODEL"),
        ("compress model", "No such command 'compress'; use prune"),
        ("eval model", "Did you mean 'evaluate'?"),
        ("prune model --keeep 75%", "(Possible options: --help, --keep, --speedup)"),
    ],
)
def test_the_message_names_our_word(command, words, said):
    command(*words.split()).refused(said)


def test_words_lead_to_what_there_is():
    commands = typer.main.get_command(app).commands
    options = {option for each in commands.values() for parameter in each.params for option in parameter.opts}
    for ours, typed in WORDS:
        first = re.split("[ ,]", ours)[0]
        assert first in {*commands, *options, "--help", "--version", "the", "a"}, ours
        assert commands.keys().isdisjoint(typed.split()), typed


def test_a_command_without_settings_is_not_told_of_set(command):
    ended = command("show", "model", "search.seed=1")
    ended.refused("search.seed=1")
    assert "--set" not in ended.err


def test_no_command_shows_the_help(command):
    ended = command()
    assert (ended.code in {0, 2}, ended.err) == (True, ""), "the help, and no error beside it"
    assert ended.out.strip() == command("--help").out.strip()


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
