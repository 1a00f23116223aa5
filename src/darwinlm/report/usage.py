"""What people do with a finished run: commands, and code that loads the model."""

from __future__ import annotations

import importlib.util
import json

from darwinlm.report.summary import BudgetFigures, Summary
from darwinlm.report.wording import large_embedding, only_tokens
from darwinlm.runtime.errors import install
from darwinlm.runtime.shell import word
from darwinlm.steps.file.file_figures import BoundedFileFigures
from darwinlm.steps.recover.recovery_figures import RecoveryFigures
from darwinlm.steps.search.search_figures import SearchFigures
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures
from darwinlm.steps.vocabulary.vocabulary_settings import WHOLE_MODEL

_PACKAGES = {"eval": "lm_eval", "gguf": "cyllama"}
"""Extras that next steps need, and the package that shows that each is installed."""


def loading_code(summary: Summary) -> str:
    """Python that loads the saved model and lets it write; it asks for remote code only where the model needs it."""
    if summary.export.gives != "language":
        return _reading_code(summary)
    prompt = summary.prompts[0] if summary.prompts else "Once upon a time"
    # The tokenizer is a plain one, but without an answer AutoTokenizer asks about the code of the configuration.
    remote, plain = (
        (", trust_remote_code=True", ", trust_remote_code=False") if summary.export.custom_code else ("", "")
    )
    auto = "AutoModelForImageTextToText" if summary.export.whole else "AutoModelForCausalLM"
    quoted = json.dumps(prompt, ensure_ascii=False)
    if summary.chat:
        asked = [
            f'messages = [{{"role": "user", "content": {quoted}}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
        shown = 'tokens[0, inputs["input_ids"].shape[1] :]'
    else:
        asked, shown = [f'inputs = tokenizer({quoted}, return_tensors="pt")'], "tokens[0]"
    return "\n".join(
        [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f"folder = {json.dumps(summary.export.folder)}",
            f"tokenizer = AutoTokenizer.from_pretrained(folder{plain})",
            f'model = {auto}.from_pretrained(folder, dtype="auto"{remote})',
            *asked,
            "tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)",
            f"print(tokenizer.decode({shown}, skip_special_tokens=True))",
        ]
    )


def _reading_code(summary: Summary) -> str:
    """Python that loads a model which reads texts one by one, and gives it some."""
    remote = ", trust_remote_code=True" if summary.export.custom_code else ""
    folder = json.dumps(summary.export.folder)
    if summary.export.gives == "states":
        return "\n".join(
            [
                "from sentence_transformers import SentenceTransformer",
                "",
                f"model = SentenceTransformer({folder}{remote})",
                'embeddings = model.encode(["a text", "another text"])',
                "print(model.similarity(embeddings, embeddings))",
            ]
        )
    return "\n".join(
        [
            "from sentence_transformers import CrossEncoder",
            "",
            f"model = CrossEncoder({folder}{remote})",
            'print(model.predict([("a query", "a text"), ("a query", "another text")]))',
        ]
    )


def next_steps(
    summary: Summary, run: str, stem: str, model: str | None, *, on_this_machine: bool = False
) -> list[tuple[str, str]]:
    """What people do with a finished run: each wish and the command that fulfils it.

    Paths of new files and folders begin with `stem`. `model` is the dense one; None where it has no name that others
    know. A wish names the extra that it needs; `on_this_machine`, on this machine, how to install it if it isn't.
    """
    kind = _file_type(summary)
    run, recovered, gguf = (word(path) for path in (run, f"{stem}-recovered", f"{stem}.gguf"))
    against = f" --against {word(model)}" if model else ""
    wish, tokens = "train it, which gains the most quality (needs a GPU; on a CPU try --tokens 1M)", "300M"
    if summary.export.gives != "language":
        search = summary.of(SearchFigures)
        first = search is not None and search.first is not None
        gains = "the first layers of a reranker need it" if first else "narrower layers gained little in our comparison"
        wish, tokens = f"train it (minutes on one core for a 135M); {gains}", "160k"
    train = [(wish, f"darwinlm recover {run} --tokens {tokens} --text TEXT --out {recovered}")]
    if summary.of(RecoveryFigures) is not None or only_tokens(summary):  # which has nothing to learn from the original
        train = []
    bounded = summary.of(BoundedFileFigures)
    file = (
        f"write a file for llama.cpp{_needs('gguf', on_this_machine=on_this_machine)}",
        f"darwinlm export {run} --quant {kind} --out {gguf}",
    )
    if bounded is not None:
        file = ("run the file that keeps the bound, in llama.cpp", f"llama-cli -m {run}/{word(bounded.file)}")
    if summary.export.gives != "language":
        return [
            *train,
            *([file] if summary.file is not None else []),
            ("publish it", f"hf upload OWNER/NAME {run}/model"),
        ]
    return [
        (f"talk to it{' beside the dense model' if model else ''}", f"darwinlm chat {run}{against}"),
        *train,
        *_fewer_tokens(summary, model, stem),
        (
            f"measure it on benchmarks{_needs('eval', on_this_machine=on_this_machine)}",
            f"darwinlm evaluate {run} --suite quick",
        ),
        file,
        ("publish it", f"hf upload OWNER/NAME {run}/model"),
    ]


def _file_type(summary: Summary) -> str:
    """The type of a GGUF file to write: the largest that keeps a bound on the file, or is smaller than what came in."""
    file, budget = summary.file, summary.budget
    if file is not None and budget is not None and budget.kind == "file":
        return next((kind for kind, n_bytes in file.predicted.items() if n_bytes <= budget.upper), file.smaller)
    return file.smaller if file is not None and file.bytes is not None else "q8_0"


def _fewer_tokens(summary: Summary, model: str | None, stem: str) -> list[tuple[str, str]]:
    """How to cut the vocabulary too, if it is large and was not cut. A bound on the whole model stays as it is."""
    large = large_embedding(summary.dense.params, summary.dense.block_params)
    budget = summary.budget
    if not (model and budget and large) or summary.of(VocabularyFigures) is not None:
        return []
    if budget.kind in WHOLE_MODEL:
        wish = "cut its vocabulary too, which leaves more of the same budget to its blocks"
        size = f"--{budget.kind} {_bound(budget)} --vocab auto"
    else:
        wish = f"cut its vocabulary too: {large}"
        size = f"--keep {budget.block_params / budget.dense_block_params:.1%} --vocab 50%"
    out = word(f"{stem}-vocab")
    return [(wish, f"darwinlm prune {word(model)} {size} --text TEXT --out {out}")]


_MILLIONS = {"params": "M", "latency": "ms"}
"""A million of what a bound counts; the others count bytes."""


def _bound(budget: BudgetFigures) -> str:
    """The value of a bound on the whole model, as its option takes it."""
    if budget.kind == "speedup":
        return f"{budget.dense / budget.upper:.4g}x"
    return f"{budget.upper / 1e6:.10g}{_MILLIONS.get(budget.kind, 'MB')}"


def _needs(extra: str, *, on_this_machine: bool) -> str:
    if not on_this_machine:
        return f" (needs darwinlm[{extra}])"
    return "" if importlib.util.find_spec(_PACKAGES[extra]) else f" (first: {install(extra)})"
