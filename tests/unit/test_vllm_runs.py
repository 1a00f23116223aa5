"""Which layers vLLM gives an attention, without vLLM."""

import importlib
import sys
import types

import pytest


@pytest.fixture
def present_runs(monkeypatch):
    """The module imports vLLM; the function doesn't need it."""
    names = ["vllm", "vllm.model_executor", "vllm.model_executor.models", "vllm.model_executor.models.transformers"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    last = sys.modules[names[-1]]
    last.base = types.SimpleNamespace()
    last.TransformersForCausalLM = type("TransformersForCausalLM", (), {})
    last.TransformersMoEForCausalLM = type("TransformersMoEForCausalLM", (), {})
    monkeypatch.delitem(sys.modules, "darwinlm.engines.vllm_model", raising=False)
    yield importlib.import_module("darwinlm.engines.vllm_model").present_runs
    sys.modules.pop("darwinlm.engines.vllm_model", None)


@pytest.mark.parametrize(
    ("present", "bounds", "runs"),
    [
        ("111", (0, 3), [(0, 3)]),
        ("011", (0, 3), [(1, 3)]),
        ("101101", (0, 6), [(0, 1), (2, 4), (5, 6)]),
        ("101101", (1, 5), [(2, 4)]),
        ("000", (0, 3), []),
        ("110", (0, 3), [(0, 2)]),
    ],
)
def test_runs_of_layers_with_attention(present_runs, present, bounds, runs):
    assert list(present_runs([flag == "1" for flag in present], *bounds)) == runs
