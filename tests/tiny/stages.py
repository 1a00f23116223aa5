"""Results of a run's stages as attributes."""

from types import SimpleNamespace
from typing import Any

from darwinlm.pipeline import build, fit, make, plan, read_inputs
from darwinlm.runtime.run import Ended, Run


def run_stages(run: Run[Any], until: str) -> SimpleNamespace:
    """Run the stages up to one of them, and return what they gave by name, with models and parts of the text."""
    run.until, found = "latency" if until == "plan" else until, dict[str, Any]()
    try:
        inputs = read_inputs(run)
        found |= vars(inputs) | inputs.text
        problem = None if run.recipe.vocabulary.auto else plan(run, inputs)
        found["plan"] = problem
        found["database"] = build(run, inputs)
        inputs, found["plan"], found["database"] = fit(run, inputs, problem, found["database"])
        found |= vars(inputs) | inputs.text
        found["report"] = make(run, inputs, found["plan"], found["database"])
    except Ended:
        pass
    return SimpleNamespace(**{**run.results, **found})


def result(run: Run[Any], name: str) -> Any:
    """What a stage gave, a model, or a part of the text."""
    return getattr(run_stages(run, "latency" if name in ("dense", "text", "vocabulary") else name), name)
