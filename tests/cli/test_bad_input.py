"""Text, options and recipes that can't be used: one clear message, status 2, and nothing half-written."""

from __future__ import annotations

import pytest
import torch
from tests.tiny.damage import assert_nothing_half_written

# ---------------------------------------------------------------------------------------------------------------- text


def test_text_that_is_not_there(prune, tmp_path):
    prune(text=tmp_path / "none.txt").refused("none.txt", "there is no such file or folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", " \n\n \t\n"])
def test_text_that_is_empty(prune, tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    prune(text=tmp_path / "empty.txt").refused("empty.txt", "there is no text in it")
    assert not (tmp_path / "out").exists()


def test_text_that_is_too_short(prune, tmp_path):
    (tmp_path / "short.txt").write_text("the river runs under the stone")
    prune(text=tmp_path / "short.txt").refused(
        "short.txt", "less than a block of", "give more text, or lower text.sequence_length"
    )
    assert not (tmp_path / "out").exists()


def test_text_that_is_no_text(prune, tmp_path):
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    prune(text=tmp_path / "binary.txt").refused("binary.txt", "isn't UTF-8")


def test_text_of_a_format_that_is_not_known(prune, tmp_path):
    (tmp_path / "text.docx").write_bytes(b"PK")
    prune(text=tmp_path / "text.docx").refused("text.docx", "extension")


def test_a_folder_without_text(prune, tmp_path):
    (tmp_path / "texts").mkdir()
    prune(text=tmp_path / "texts").refused("texts", "no readable file")


def test_text_from_the_hub_without_a_network(prune):
    pytest.importorskip("datasets")
    prune(text="hf:own/er").refused("hf:own/er", "local text")


def test_text_blocks_that_are_longer_than_the_model_allows(prune):
    prune("--set", "text.sequence_length=512", "--set", "text.calibration_tokens=4096").refused(
        "text.sequence_length is 512", "allows 256 tokens"
    )


# -------------------------------------------------------------------------------------------------- options and recipes


@pytest.mark.parametrize("keep", ["0", "-1", "0%", "101%", "1.5", "200"])
def test_a_share_out_of_range(prune, tmp_path, keep):
    prune("--keep", keep).refused("budget.keep: must be above 0 and at most 100 %")
    assert not (tmp_path / "out").exists()


def test_a_share_without_its_sign(prune):
    prune("--keep", "50").refused("did you mean 50%?")


def test_a_share_just_above_everything_gets_no_absurd_hint(prune):
    ended = prune("--keep", "101%")
    assert "1.01%" not in ended.err


def test_a_share_that_is_no_number(prune):
    prune("--keep", "half").refused("budget.keep", "'half'")


def test_a_budget_below_the_smallest_model(prune, tmp_path):
    prune("--keep", "0.1%").refused("less than the smallest model that the units allow", "0.1000%")
    assert_nothing_half_written(tmp_path / "out")
    assert prune("--keep", "50%", "--until", "plan").code == 0, "the same output folder goes on"


def test_units_that_do_not_fit_the_model(prune):
    prune("--set", "units.mlp_multiple=128").refused("units.mlp_multiple is 128", "only 96 channels")


def test_a_misspelt_field_in_a_recipe(prune, tmp_path):
    (tmp_path / "r.yaml").write_text("search:\n  generation: 3\n")
    prune("--recipe", tmp_path / "r.yaml").refused(
        "r.yaml", "unknown field 'search.generation': did you mean 'generations'?"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["a: [", "- a\n", "just words\n"])
def test_a_recipe_that_is_none(prune, tmp_path, content):
    (tmp_path / "r.yaml").write_text(content)
    prune("--recipe", tmp_path / "r.yaml").refused("r.yaml")


def test_a_recipe_that_is_not_there(prune, tmp_path):
    prune("--recipe", tmp_path / "none.yaml").refused("none.yaml", "No such file")


@pytest.mark.parametrize("assignment", ["budget.keep", "=1", "search.generation=3", "search.generations=x", "a=["])
def test_a_wrong_assignment(prune, tmp_path, assignment):
    prune("--set", assignment).refused()
    assert not (tmp_path / "out").exists()


def test_an_option_that_is_not_known(prune, tmp_path):
    prune("--frobnicate").refused("--frobnicate")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--set", "--keep", "--recipe", "--out"])
def test_an_option_without_its_value(command, option):
    command("prune", "model", option).refused(option)


def test_an_argument_too_many(command):
    command("prune", "model", "another").refused("another")


def test_a_command_that_is_not_known(command):
    command("frobnicate").refused("frobnicate")


def test_no_command_shows_the_help(command):
    ended = command()
    assert ended.code in {0, 2}
    assert "prune" in ended.out + ended.err
    assert "error: \n" not in ended.err, "an empty message"


def test_help_is_no_error(command):
    ended = command("prune", "--help")
    assert ended.code == 0
    assert "--keep" in ended.out
    assert ended.err == ""


def test_a_stage_that_is_not_known(prune, tmp_path):
    prune("--until", "prune").refused("--until prune", "database")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(prune, tmp_path):
    prune("--set", "compute.device=cuda").refused("compute.device", "no GPU", "use auto or cpu")
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_none(prune):
    prune("--set", "compute.device=abacus").refused("compute.device: 'abacus' is no device")
