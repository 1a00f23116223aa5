"""Models whose layers differ, made once for each file."""

from typing import Any

import pytest
from tests.tiny.cutting import cut
from tests.tiny.models import FAMILIES

BY_PLAN = {
    "no attention first": FAMILIES,
    "nothing first": ("llama", "gemma4_text"),
    "query heads": (
        *("llama", "qwen2", "qwen3", "gemma2", "gemma4_text", "phi3", "smollm3", "exaone4", "glm4"),
        *("qwen3_5_text", "lfm2", "granitemoehybrid"),
    ),
    "experts": (
        *("mixtral", "qwen3_moe", "deepseek_v2", "glm4_moe", "gpt_oss", "gemma4_text_experts"),
        *("granitemoehybrid_experts", "qwen3_5_moe_text"),
    ),
}
"""All families, or those whose attention or mixture has parts of its own."""


@pytest.fixture(
    params=[(family, plan) for plan, names in BY_PLAN.items() for family in names], scope="module", ids=" ".join
)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A family and a plan."""
    return request.param


@pytest.fixture(scope="module")
def pruned(case: tuple[str, str]) -> Any:
    """The smaller model, which never ends a text early."""
    model = cut(*case)
    model.generation_config.eos_token_id = None
    return model
