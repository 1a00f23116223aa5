"""Text that benchmarks are measured on is refused, wherever it comes from."""

import pytest

from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.leakage import check_not_evaluation_text


@pytest.mark.parametrize(
    "path",
    [
        "hf_datasets/boolq/none/validation/data.jsonl",
        "sciq/test.jsonl",
        "ARC-Challenge/ARC-Challenge-Test.jsonl",
        "ai2_arc/data.jsonl",
        "train/boolq/validation.jsonl",
        "hendrycks_test/0.jsonl",
        "datasets--allenai--sciq/snapshots/0a/data/test-00000.jsonl",
        "wikitext/test/0.parquet",
    ],
)
def test_local_evaluation_text_is_refused(tmp_path, path):
    file = tmp_path / path
    with pytest.raises(DataError, match="no such file or folder"):
        check_not_evaluation_text(str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(DataError, match=r"looks like evaluation text of .* rename a file"):
        check_not_evaluation_text(str(file))


@pytest.mark.parametrize(
    "path", ["boolq/train/0.jsonl", "evaluation/boolq/train.jsonl", "wikitext.txt", "architecture/test.jsonl"]
)
def test_other_local_text_is_fine(tmp_path, path):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    check_not_evaluation_text(str(file))


def test_folders_and_links_are_looked_through(tmp_path):
    folder = tmp_path / "boolq"
    (folder / "train").mkdir(parents=True)
    (folder / "validation").mkdir()
    (folder / "train" / "0.txt").write_text("a")
    check_not_evaluation_text(str(folder))
    hidden = folder / "validation" / "0.txt"
    hidden.write_text("b")
    with pytest.raises(DataError, match=r"validation/0\.txt looks like evaluation text of a benchmark \(boolq"):
        check_not_evaluation_text(str(folder))
    link = tmp_path / "harmless.txt"
    link.symlink_to(hidden)
    with pytest.raises(DataError, match="evaluation text of a benchmark"):
        check_not_evaluation_text(str(link))


@pytest.mark.parametrize(
    "source",
    [
        "hf:allenai/sciq@test",
        "hf:allenai/ai2_arc:ARC-Easy@validation",
        "hf:someone/suite:hellaswag@validation[:50%]",
        "hf:Salesforce/wikitext:wikitext-2-raw-v1@test",
    ],
)
def test_evaluation_splits_of_the_hub_are_refused(source):
    with pytest.raises(DataError, match="looks like evaluation text"):
        check_not_evaluation_text(source)


@pytest.mark.parametrize(
    "source",
    [
        "hf:HuggingFaceFW/fineweb-edu",
        "hf:cais/mmlu:all@auxiliary_train",
        "hf:Salesforce/wikitext:wikitext-2-raw-v1@validation",
        "hf:someone/novels@test",
    ],
)
def test_other_text_of_the_hub_is_fine(source):
    check_not_evaluation_text(source)
