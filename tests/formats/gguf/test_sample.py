"""Random models, pruned at random: the same logits in memory, in transformers and in llama.cpp, or a clear refusal.

`SAMPLE=200 SAMPLE_SEED=7` takes more than the 12 of a run of the suite, or those of another seed.
"""

import os
import random
import re
from typing import Any

import pytest
import torch
from tests.formats.gguf.test_gguf_families import EQUAL
from tests.tiny.llama_cpp import TEXT
from tests.tiny.pruned import plain_checkpoint
from tests.tiny.stages import run_stages
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import BudgetError, ExportError, RecipeError

SEED = int(os.environ.get("SAMPLE_SEED", "0"))
NUMBERS = range(int(os.environ.get("SAMPLE", "12")))
ROUNDED = "gpt_oss with exact bounds"
"""A case that llama.cpp rounds by design."""
SHORT = sorted(name for name, (*_, more) in EQUAL.items() if more.get("num_hidden_layers", 3) < 10 and name != ROUNDED)
"""Cases of a few layers."""
FAST = (
    "text.calibration_tokens=512",
    "refit.tokens=0",
    "search.generations=1",
    "search.offspring=2",
    "search.rounds=[{tokens: 64, survivors: 1}]",
    "budget.tolerance=0.1",
)


REFUSALS = "search.layers is equal|set units.experts|raise the budget|smallest|llama.cpp"
"""What the messages of refusals hold: a setting, another budget, the engine."""


@pytest.fixture
def engine_here() -> None:
    """Engines keep a process of their own: in an unknown model, llama.cpp may end it."""


def drawn(number: int) -> tuple[str, list[str], str]:
    """A family's case, settings, and the share to keep."""
    rng = random.Random(f"{SEED} {number}")
    settings = [
        f"units.attention={rng.choice(['lattice', 'kv_group', 'query_head'])}",
        f"units.experts={rng.choice(['both', 'whole', 'width'])}",
        f"units.mlp_multiple={rng.choice([8, 32])}",
        f"search.layers={rng.choice(['auto', 'equal', 'unequal'])}",
        f"search.seed={number}",
    ]
    if rng.random() < 1 / 3:
        settings.append(f"vocabulary={rng.choice(['90%', '95%'])}")
    return rng.choice(SHORT), settings, f"{rng.randint(35, 95)}%"


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """[t, v]."""
    found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_a_model_computes_the_same_everywhere_or_is_refused(number, make_run, tmp_path) -> None:
    case, settings, keep = drawn(number)
    model_type, _, overrides = EQUAL[case]
    said = f"SAMPLE_SEED={SEED}, number {number}: {case}, {keep}, {settings}"
    dense = plain_checkpoint(tmp_path / "dense", model_type, **overrides)
    refusal = ""
    try:
        found = run_stages(make_run(dense, tmp_path / "run", *FAST, *settings, keep=keep), "export")
    except (RecipeError, BudgetError) as error:
        refusal = str(error)
    if refusal:
        assert re.search(REFUSALS, refusal), f"{said}: {refusal}"
        return
    folder, file = tmp_path / "run" / "model", tmp_path / "m.gguf"
    ids = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    theirs = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), ids)
    torch.testing.assert_close(logits(found.stitch.model(), ids), theirs, rtol=0, atol=1e-4, msg=lambda m: said + m)
    try:
        export_model(folder, file, quantisation="f32")
    except ExportError as error:
        refusal = str(error)
    if refusal:
        assert re.search(REFUSALS, refusal), f"{said}: {refusal}"
        assert not file.exists(), said
        return
    with EngineProcess("llama.cpp", file, exact=True, context=512) as engine:
        assert engine.tokenize(TEXT) == ids, said
        there = torch.from_numpy(engine.logits(ids))
    assert (there - theirs).abs().max() < 2e-3 * theirs.abs().max(), said
