"""The main path in order.

corpus → vocabulary → text → plan → saliency → database → search → stitch → refit → recover → export → chats →
evaluate → file → report

Each name is a stage or a value, declared in `stages/` with its inputs, settings, work and result. A stage is skipped
if its folder is complete for the same inputs, otherwise resumed.
"""

from __future__ import annotations

from functools import partial

from darwinlm.execution.run import Run
from darwinlm.execution.stage import Graph
from darwinlm.stages.chats import CHATS
from darwinlm.stages.corpus import CORPUS, CORPUS_RECOVERY
from darwinlm.stages.database import DATABASE, SALIENCY
from darwinlm.stages.evaluate import EVALUATE, MODELS
from darwinlm.stages.export import EXPORT
from darwinlm.stages.file import FILE
from darwinlm.stages.latency import LATENCY
from darwinlm.stages.model import DENSE, ORIGINAL, SOURCE, TEACHER
from darwinlm.stages.plan import PLAN
from darwinlm.stages.recover import RECOVER
from darwinlm.stages.refit import REFIT
from darwinlm.stages.report import REPORT
from darwinlm.stages.search import SEARCH
from darwinlm.stages.stitch import STITCH
from darwinlm.stages.text import CALIBRATION, EVALUATION, FITNESS, RESERVED, TEXT, TRAINING, VALIDATION
from darwinlm.stages.vocabulary import VOCABULARY

PRUNE = Graph(
    *(SOURCE, ORIGINAL, CORPUS, VOCABULARY, DENSE, TEACHER),
    *(TEXT, CALIBRATION, FITNESS, VALIDATION, EVALUATION, TRAINING, RESERVED),
    *(LATENCY, PLAN, SALIENCY, DATABASE, SEARCH, STITCH, REFIT, CORPUS_RECOVERY, RECOVER, EXPORT),
    *(MODELS, CHATS, EVALUATE, FILE, REPORT),
    given=("neighbour",),
)
"""A whole run; `neighbour` is the allocation of a sweep's neighbouring size."""

open_run = partial(Run, PRUNE)
"""A run of the whole pipeline, with the other arguments of `Run`. Raises as it does."""
