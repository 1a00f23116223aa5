"""How many simple questions the demo's two models answer: the last step of the demo, which no other run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.runtime.sections import AnyRecipe
from darwinlm.runtime.step import Cost, Step, Task

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.runtime.run import Run
    from darwinlm.steps.workload import Workload

QUESTIONS = Path(__file__).with_name("simple_questions.jsonl")
"""50 questions on facts, sums and words, each with its answer."""
SHOWN = ("What is the capital of France?", "What is 2 + 2?", "What is the opposite of hot?")
"""The first question of each kind. Both models' answers are shown, right or wrong."""
PROMPT_TOKENS = 40
"""Tokens of a question in the model's chat template."""
FILE = "answers.json"


@dataclass(frozen=True)
class Answer:
    """Answers of both models to a question, and whether they are right."""

    question: str
    original: str
    smaller: str
    original_right: bool
    smaller_right: bool


@dataclass(frozen=True)
class Answers:
    """Answers to all questions."""

    answers: Sequence[Answer]

    @property
    def original_right(self) -> int:
        """Right answers of the original."""
        return sum(answer.original_right for answer in self.answers)

    @property
    def smaller_right(self) -> int:
        """Right answers of the smaller model."""
        return sum(answer.smaller_right for answer in self.answers)

    @property
    def shown(self) -> list[Answer]:
        """The answers to `SHOWN`."""
        return [answer for answer in self.answers if answer.question in SHOWN]


@dataclass(frozen=True, eq=False)
class SimpleQuestions(Step[Answers]):
    """Answers of both models, in float32: then rounding doesn't decide what the original says."""

    name = "questions"
    title = "simple questions"
    writes = "answers of both models to simple questions"
    together = True

    original: Checkpoint
    smaller: Checkpoint

    def key(self, task: Task) -> Mapping[str, object]:
        """The questions."""
        from darwinlm.runtime.artifact import file_digest

        return {"questions": file_digest(QUESTIONS), "device": task.context.device.type}

    def work(self, task: Task) -> None:
        """Ask both models."""
        import torch

        from darwinlm.evaluation.measures.question_file import read_questions
        from darwinlm.evaluation.measures.questions import judged, rendered
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.chats.code import continued

        questions = read_questions(QUESTIONS)
        longest = max(question.longest for question in questions)
        found: list[list[tuple[str, bool]]] = []
        for number, checkpoint in enumerate((self.original, self.smaller), 1):
            model, tokenizer = checkpoint.load(torch.float32, task.context.device), checkpoint.tokenizer()
            prompts = [rendered(question, tokenizer, QUESTIONS.name) for question in questions]
            answers = continued(model, tokenizer, [prompt.tokens(tokenizer) for prompt in prompts], longest)
            asked = zip(questions, prompts, answers, strict=True)
            found.append([(answer.strip(), judged(question, prompt, answer)) for question, prompt, answer in asked])
            task.context.reporter.advance(number, 2)
        rows = [
            {"question": question.text, "original": old, "smaller": new, "original_right": was, "smaller_right": right}
            for question, (old, was), (new, right) in zip(questions, *found, strict=True)
        ]
        parallel.in_main(write_json, task.folder / FILE, {"answers": rows})

    def read(self, task: Task) -> Answers:
        """The answers."""
        from darwinlm.runtime.artifact import read_as

        return read_as(task.folder / FILE, Answers)

    @classmethod
    def cost(cls, load: Workload) -> Cost:
        """Two whole models that read all questions, and write the answers to all of them at once."""
        from darwinlm.evaluation.measures.question_file import read_questions
        from darwinlm.steps.workload import ALONE, TOGETHER

        sizes, questions = load.sizes, read_questions(QUESTIONS)
        n, longest = len(questions), max(question.longest for question in questions)
        in_float32 = 4 / sizes.size
        alone = sizes.operations(longest * (ALONE + TOGETHER * n), 1 + sizes.kept, heads=2)
        work = sizes.operations(n * PROMPT_TOKENS * in_float32, 1 + sizes.kept, heads=2) + alone
        mapped = load.mapped(sizes.params, sizes.stored)
        return Cost(work, load.writing(n, PROMPT_TOKENS + longest), scratch=mapped, alone=alone)


def ask(run: Run[AnyRecipe]) -> Answers:
    """Ask the original and the smaller model of a finished run. Raises CheckpointError, MeasureError."""
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.export.step import MODEL
    from darwinlm.steps.source.whole_model import open_model

    original = open_model(run.context, run.recipe.model)
    return run(SimpleQuestions(original, Checkpoint.open(run.context.folder / MODEL)))
