"""Answers that share a context: the harness's own figures with far fewer tokens run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.benchmarks import QUIET
from tests.tiny.pruned import pruned_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = QUIET


def requests(longest: int) -> list[tuple[Any, list[int], list[int]]]:
    """Questions with answers of one length and of several, equal answers, one-token answers; one that must be cut."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 250, (count,), generator=generator).tolist()

    made: list[tuple[Any, list[int], list[int]]] = []
    for length, answers in ((12, (3, 1, 5)), (30, (1, 1)), (1, (2, 2)), (longest - 3, (2, 6)), (7, (4,)), (9, (0,))):
        context = tokens(length)
        made += [(("question", "answer"), context, tokens(max(1, count))) for count in answers]
    made.append((("question", "answer"), made[0][1], made[0][2]))
    order = torch.randperm(len(made), generator=generator)
    return [made[index] for index in order]


def pair(folder: Path) -> tuple[Any, Any, list[int]]:
    """The harness's model and ours around the same weights, and the tokens that each of their passes takes."""
    from lm_eval.models.huggingface import HFLM

    from darwinlm.evaluation.shared_context import SharedLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    run: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, x, __: run.append(x[0].numel()))
    settings = {"pretrained": model, "tokenizer": tokenizer, "backend": "causal", "batch_size": 8, "max_length": 64}
    return HFLM(**settings), SharedLM(**settings), run


def folder_of(kind: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    if kind != "pruned":
        return tiny_folder(kind)
    # No attention in the first block, no MLP in the second, nothing in the third.
    rows = {0: (0, 0, 64), 1: (2, 1, 0), 2: (0, 0, 0)}
    return pruned_checkpoint(tmp_path / "model", "llama", rows, num_hidden_layers=4)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral", "pruned"])
def test_answers_are_the_harness_own(kind: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    theirs, ours, run = pair(folder_of(kind, tiny_folder, tmp_path))
    asked = requests(64)
    expected = theirs._loglikelihood_tokens(asked, disable_tqdm=True)
    before = sum(run)
    found = ours._loglikelihood_tokens(asked, disable_tqdm=True)
    assert sum(run) - before < before
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
