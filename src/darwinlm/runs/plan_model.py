"""Memory and time of a run, before it starts: `darwinlm.plan`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import torch

from darwinlm.formats.resolve import describe_model
from darwinlm.model.units.space import kept_whole
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import DEVICES, Plan, plan_card, plan_here
from darwinlm.recipe import BudgetArguments, BudgetSettings, Recipe, load_recipe, options
from darwinlm.report.wording import large_embedding
from darwinlm.runtime.compute import resolve_device
from darwinlm.runtime.context import settled
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.limits import suggestion
from darwinlm.runtime.torch_state import in_usual_state
from darwinlm.steps.budget.layers import choose_layers
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings


@in_usual_state
def plan(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    processes: int = 1,
    ready_for: str | None = None,
    recipe: Recipe | str | Path | None = None,
    assignments: Iterable[str] = (),
    **budget: Unpack[BudgetArguments],
) -> Plan:
    """Predict what each stage of a run takes, from the model's configuration alone.

    Args:
        model: Hub id, folder or GGUF file.
        device: A device here, which is measured: "auto", "cpu", "cuda" ...; or a card such as "h100".
        processes: Number of processes.
        ready_for: Quantisation that will follow.
        recipe: Recipe, path of a recipe, or name of a bundled one.
        assignments: "section.field=value" strings.
        budget: One bound, as for `darwinlm.prune`.

    Raises:
        RecipeError, ModelError, FamilyError: The input is wrong, or this machine has no such device.
    """
    resolved = load_recipe(recipe, assignments, options(model=model, **budget, ready_for=ready_for))
    if resolved.model is None:
        raise RecipeError("no model is given: name a hub id, a folder or a GGUF file")
    if resolved.budget.kind == "file" and not Path(resolved.model).expanduser().is_dir():
        raise RecipeError(
            "budget.file is planned from weights and a tokenizer: give a model's folder, or another bound"
        )
    checkpoint = describe_model(resolved.model)
    if device in DEVICES:
        bfloat16 = resolved.compute.model_copy(update={"dtype": "bfloat16"} if resolved.compute.dtype == "auto" else {})
        sizes = RunSizes(checkpoint, resolved.model_copy(update={"compute": bfloat16}), processes)
        return plan_card(STEPS, sizes, device)
    try:
        local_device = resolve_device(device)
    except RecipeError as error:
        hint = suggestion(device, DEVICES, f"cards are {', '.join(DEVICES)}")
        raise RecipeError(f"--device {device}: it isn't here ({error}), and no known card: {hint}") from error
    resolved = resolved.model_copy(update={"compute": settled(resolved.compute, local_device)})
    return plan_here(STEPS, RunSizes(checkpoint, resolved, processes), local_device)


def plan_of(sizes: RunSizes, device: torch.device, rate: float | None = None) -> Plan:
    """Plan a run of the pipeline on a device of this machine; its rate is measured if it isn't known."""
    return plan_here(STEPS, sizes, device, rate)


def notes_of(plan: Plan) -> list[str]:
    """What is never cut, whether layers are equal, widths that don't fit, and a large embedding."""
    sizes, recipe, checkpoint = plan.sizes, plan.sizes.recipe, plan.sizes.checkpoint
    budget, has_other_parts = recipe.section(BudgetSettings), checkpoint.whole_config is not None
    notes = (
        f"budget.{budget.kind} is measured in the run: the sizes are a guess until then" if budget.timed else "",
        kept_whole(sizes.space, checkpoint.family),
        "its parts around the language model are kept, and not counted here" if has_other_parts else "",
        choose_layers(recipe, checkpoint, sizes.space)[1],
        recipe.section(VocabularySettings).keep is None and large_embedding(sizes.params, sizes.blocks),
    )
    return [note for note in notes if note]
