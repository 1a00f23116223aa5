"""Memory and time of a run, before it starts: `darwinlm.plan`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch

from darwinlm.formats.resolve import describe_model
from darwinlm.model.units.space import kept_whole
from darwinlm.pipeline import ORDER, REPORT, steps_of
from darwinlm.planning.measured_speed import measure_speed
from darwinlm.planning.run_plan import Plan, of_each_size, plan_card, plan_here
from darwinlm.planning.speeds import CARDS, Speed
from darwinlm.recipe import BudgetSettings, Recipe, RecipeOptions, load_recipe, options
from darwinlm.recipe.options import option_types
from darwinlm.report.wording import large_embedding
from darwinlm.runs.amount import limit_of
from darwinlm.runtime.amounts import duration
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.compute import resolve_device
from darwinlm.runtime.context import settled
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.limits import shorten, suggestion
from darwinlm.runtime.signatures import spelled_out
from darwinlm.runtime.torch_state import in_usual_state
from darwinlm.steps.budget.layers import choose_layers
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.text.reading import check_reader, with_answers
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.text.text_source import check_source, given_source
from darwinlm.steps.vocabulary.preview import preview
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings


@in_usual_state
@spelled_out(option_types())
def plan(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    processes: int = 1,
    until: str = REPORT,
    recipe: Recipe | str | Path | None = None,
    assignments: Iterable[str] = (),
    **given: Unpack[RecipeOptions],
) -> Plan:
    """Predict what each stage of a run takes, from the model's configuration alone.

    Args:
        model: Hub id, folder or GGUF file.
        device: A device here, which is measured: "auto", "cpu", "cuda" ...; or a card such as "h100".
        processes: Number of processes.
        until: Last stage.
        recipe: Recipe, path of a recipe, or name of a bundled one.
        assignments: "section.field=value" strings.
        given: Settings by their short names, as for `darwinlm.prune`. `time` chooses the preset on a device here.
            Whether a `text` is there is checked; with `vocab`, a part of it is read to say which tokens go.

    Raises:
        RecipeError, ModelError, FamilyError, DataError: The input is wrong, or this machine has no such device.
    """
    resolved = load_recipe(recipe, assignments, options(model=model, **given))
    if not isinstance(device, str):
        raise RecipeError(f"device {shorten(repr(device))}: must be a name, such as cpu or h100")
    if type(processes) is not int or processes < 1:
        raise RecipeError(f"processes {shorten(repr(processes))}: must be a whole number, 1 or more")
    if until not in ORDER:
        raise RecipeError(f"--until {until}: there is no such stage; the stages are {', '.join(ORDER)}")
    if given.get("text") is not None:
        check_source(given_source(resolved.text))
    planned = _ended(_plan(resolved, device, processes), until)
    vocabulary, settings = resolved.section(VocabularySettings), resolved.section(TextSettings)
    return replace(planned, notes=preview(planned.sizes.checkpoint, vocabulary, settings))


def _ended(plan: Plan, until: str) -> Plan:
    """The plan of a run that ends after a stage."""
    rows = [row for row in plan.rows if row.step not in ORDER or ORDER.index(row.step) <= ORDER.index(until)]
    return replace(plan, rows=rows)


def _plan(resolved: Recipe, device: str, processes: int) -> Plan:
    if resolved.model is None:
        raise RecipeError("no model is given: name a hub id, a folder or a GGUF file")
    if resolved.budget.kind == "file" and not Path(resolved.model).expanduser().exists():
        raise RecipeError(
            "budget.file is planned from the model's tokenizer: give a folder or a GGUF file, or another bound"
        )
    checkpoint = describe_model(resolved.model)
    if Path(resolved.model).expanduser().is_dir():  # its tokenizer lies in it
        checkpoint = with_answers(checkpoint, resolved.section(TextSettings))
        check_reader(checkpoint, resolved)
    if device in CARDS:
        bfloat16 = resolved.compute.model_copy(update={"dtype": "bfloat16"} if resolved.compute.dtype == "auto" else {})
        sizes = RunSizes(checkpoint, resolved.model_copy(update={"compute": bfloat16}), processes)
        return replace(plan_card(steps_of(resolved), sizes, device), limit=resolved.time and 60 * resolved.time)
    try:
        local_device = resolve_device(device)
    except RecipeError as error:
        hint = suggestion(device, CARDS, f"cards are {', '.join(CARDS)}")
        raise RecipeError(f"--device {device}: it isn't here ({error}), and no known card: {hint}") from error
    resolved = resolved.model_copy(update={"compute": settled(resolved.compute, local_device)})
    if resolved.time is None:
        return plan_here(steps_of(resolved), RunSizes(checkpoint, resolved, processes), local_device)
    speed = measure_speed(RunSizes(checkpoint, resolved, processes), local_device)
    limit = limit_of(resolved, checkpoint, local_device, speed, working_time(), processes=processes)
    resolved = load_recipe(resolved, (), {"preset": limit.preset})
    timed = plan_here(steps_of(resolved), RunSizes(checkpoint, resolved, processes), local_device, speed)
    return replace(timed, limit=limit.seconds, preset=limit.preset)


def sweep_seconds(plans: Sequence[Plan]) -> tuple[float, float]:
    """The shortest and the longest time of a sweep over several sizes, which share all stages up to the database."""
    times = [plans[0].seconds(), *(replace(plan, rows=of_each_size(plan.rows)).seconds() for plan in plans[1:])]
    return sum(time[0] for time in times), sum(time[1] for time in times)


def plan_of(sizes: RunSizes, device: torch.device, speed: Speed | None = None) -> Plan:
    """Plan a run of the pipeline on a device of this machine; its speed is measured if it isn't known."""
    return plan_here(steps_of(sizes.recipe), sizes, device, speed)


def _limit_of(plan: Plan) -> str:
    """What a time limit does to a run."""
    if plan.limit is None:
        return ""
    amounts = f"it has the amounts of the preset {plan.preset}" if plan.preset else "that machine chooses the preset"
    return f"the run ends after {duration(plan.limit)} if nothing else runs; {amounts}"


def notes_of(plan: Plan) -> list[str]:
    """What is never cut, whether layers are equal, widths that don't fit, and a large embedding."""
    sizes, recipe, checkpoint = plan.sizes, plan.sizes.recipe, plan.sizes.checkpoint
    budget, has_other_parts = recipe.section(BudgetSettings), checkpoint.whole_config is not None
    uncut = not recipe.section(VocabularySettings).cut and not checkpoint.family.bidirectional
    notes = (
        _limit_of(plan),
        f"budget.{budget.kind} is measured in the run: the sizes are a guess until then" if budget.timed else "",
        kept_whole(sizes.space, checkpoint.family),
        "its parts around the language model are kept, and not counted here" if has_other_parts else "",
        choose_layers(recipe, checkpoint, sizes.space)[1],
        sizes.fitted and "the run chooses the size of the vocabulary: until then, it is counted as a whole here",
        uncut and large_embedding(sizes.params, sizes.blocks),
        *plan.notes,
    )
    return [note for note in notes if note]
