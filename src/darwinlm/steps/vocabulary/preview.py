"""What a smaller vocabulary takes from each script, before a run: from the tokenizer and a part of the text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.objective.chosen import objective_of
from darwinlm.steps.text.shares import named_parts
from darwinlm.steps.text.sources import read_domains
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.cut_vocabulary import scripts_of
from darwinlm.steps.vocabulary.reader_vocabulary import count_inputs
from darwinlm.steps.vocabulary.scripts import FEW, losses, script_of
from darwinlm.steps.vocabulary.token_choice import ModelTokens
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings

CHARACTERS = 1 << 22
"""Maximum number of characters that are read: seconds."""


def preview(model: Checkpoint, vocabulary: VocabularySettings, text: TextSettings) -> tuple[str, ...]:
    """Clauses that say which scripts lose tokens, or why this isn't known yet; none if all tokens are kept.

    Tokens are chosen by their uses in the text alone, because no weights are read; the run also counts the uses that
    the model expects.

    Args:
        model: A model's configuration, with its tokenizer if it is on this machine.
        vocabulary: How many tokens are kept. With `auto`, the clause names the scripts that go first.
        text: Source of the text.

    Raises ModelError if the vocabulary can't be cut, RecipeError if too few tokens are kept, and as `read_domains`.
    """
    if not vocabulary.cut:
        return ()
    sources = [part.partition("#")[0] for part in named_parts(text.source or "")]
    known = sources and all(Path(source).expanduser().exists() for source in sources)
    if not known or not Path(model.source).expanduser().exists():
        return (
            "the run says which tokens go, by script, before it prunes: a plan can say it of a model and text on this "
            "machine",
        )
    tokens = ModelTokens.of(model)
    if objective_of(model).reads:
        uses = count_inputs(model, tokens, text.source or "", text, CHARACTERS)
    else:
        documents = read_domains(text.source or "", CHARACTERS, seed=text.seed, tokenizer=tokens.tokenizer)
        uses = tokens.count(document for _, document in documents)
    if vocabulary.keep is None:
        return _unused(tokens, uses)
    rows = tokens.choice(uses).rows(tokens.size(vocabulary.keep))
    return tuple(f"vocabulary: {clause}" for clause in losses(scripts_of(tokens, rows)))


def _unused(tokens: ModelTokens, uses: Mapping[int, float]) -> tuple[str, ...]:
    """The scripts of which a text uses no token."""
    by_script: dict[str, list[int]] = {}
    for number in tokens.tree.tokens:
        by_script.setdefault(script_of(tokens.tree.text(number)), []).append(number)
    unused = {
        script: len(numbers)
        for script, numbers in by_script.items()
        if len(numbers) >= FEW and not any(uses.get(number) for number in numbers)
    }
    if not unused:
        return ()
    named = ", ".join(f"{script} ({count:,} tokens)" for script, count in sorted(unused.items(), key=lambda s: -s[1]))
    return (f"vocabulary: the text uses no token of these scripts, which go first: {named}",)
