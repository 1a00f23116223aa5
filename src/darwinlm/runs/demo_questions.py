"""How many simple questions the demo's two models answer: their answers to three would depend on the three."""

from __future__ import annotations

from pathlib import Path

from darwinlm.evaluation.measures.measured import measure_model
from darwinlm.evaluation.measures.questions import FileMeasure
from darwinlm.evaluation.measures.score_store import ScoreStore
from darwinlm.evaluation.measures.scored_model import ScoredModel
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.run import Run
from darwinlm.runtime.sections import AnyRecipe
from darwinlm.steps.export.step import MODEL
from darwinlm.steps.source.whole_model import open_model

QUESTIONS = Path(__file__).with_name("simple_questions.jsonl")
"""50 questions on facts, sums and words, each with its answer."""


def count_answers(run: Run[AnyRecipe]) -> tuple[int, int, int]:
    """Right answers of the original and of the smaller model of a finished run, and the number of questions.

    Raises MeasureError, CheckpointError.
    """
    context, measure = run.context, FileMeasure(QUESTIONS, run_code=False)
    models = [open_model(context, run.recipe.model), Checkpoint.open(context.folder / MODEL)]
    dense, small = (ScoredModel(checkpoint, context.dtype, context.device) for checkpoint in models)
    context.reporter.say(f"asking both models {len(measure.questions)} simple questions")
    score = measure_model([measure], small, dense, ScoreStore())[0]
    assert score.dense is not None, "the original is scored too"
    return int(sum(score.dense)), int(sum(score.scores)), len(score.scores)
