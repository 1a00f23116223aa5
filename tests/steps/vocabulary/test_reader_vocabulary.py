"""Models that read texts one by one, with a smaller vocabulary."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch
from tests.model.families.test_sentence_transformers import reranker
from tests.reading.test_readers import READING
from tests.tiny.checkpoint import WORDS
from tests.tiny.readers import tiny_embedder, tiny_pairs, tiny_scorer
from tests.tiny.vocabulary import TOKENS, byte_level, fast, wordy_checkpoint

import darwinlm
from darwinlm.formats.opened import Opened
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk import items
from darwinlm.report.wording import loss, only_tokens
from darwinlm.runtime.errors import DataError, ModelError, RecipeError
from darwinlm.steps.text.encoder import ItemEncoder
from darwinlm.steps.text.item_sequences import in_order, items_of
from darwinlm.steps.text.reading import answer_tokens
from darwinlm.steps.text.samples import Sample
from darwinlm.steps.vocabulary.vocabulary_figures import GivenFigures, VocabularyFigures

SIZE = 384


def pairs_of(path, words, queries=40):
    """Queries, each with a text that has its first word and a text that has not."""
    rng = random.Random(0)
    lines = []
    for number in range(queries):
        query, *others = rng.sample(words, 6)
        lines += [
            {"query": f"{query} {number}", "document": " ".join([query, *others[:4]]), "label": 1},
            {"query": f"{query} {number}", "document": " ".join(others), "label": 0},
        ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def wordy():
    """A tokenizer with more tokens than the texts need."""
    return fast(byte_level())


def cut(model, text, out, keep=0.6, **more):
    return darwinlm.prune(model, out, text=text, keep=keep, vocab=SIZE, assignments=READING, **more)


def test_a_scorer_gives_the_same_for_texts_whose_tokens_are_kept(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    dense = tiny_scorer(tmp_path / "dense", tokenizer=wordy(), vocab_size=512, pad_token_id=2)
    result = cut(dense, pairs_of(tmp_path / "pairs.jsonl", WORDS[:16]), tmp_path / "run", keep=1.0)
    figures = result.summary.of(VocabularyFigures)
    assert figures.tokens == SIZE == json.loads((result.model / "config.json").read_text())["vocab_size"]
    assert figures.params == figures.dense_params - (512 - SIZE) * 48
    assert figures.affected == 0
    assert figures.given.values["distance"] == pytest.approx(0, abs=1e-6)
    assert figures.given.score.name == "nDCG@10"
    assert figures.given.score.difference == pytest.approx(0, abs=1e-9)
    scores = []
    for folder in (dense, result.model):
        tokenizer, model = (
            AutoTokenizer.from_pretrained(folder),
            AutoModelForSequenceClassification.from_pretrained(folder),
        )
        scores.append(model(**tokenizer(" ".join(WORDS[:3]), " ".join(WORDS[5:8]), return_tensors="pt")).logits)
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)


def test_an_embedder_tells_what_removed_tokens_cost(tmp_path, command):
    from sentence_transformers import SentenceTransformer

    dense = tiny_embedder(tmp_path / "dense", "qwen3", tokenizer=wordy(), vocab_size=512)
    pairs = tiny_pairs(tmp_path / "pairs.jsonl", queries=160)
    result = darwinlm.prune(dense, tmp_path / "run", text=pairs, keep=0.6, vocab=320, assignments=READING)
    summary = result.summary
    figures = summary.of(VocabularyFigures)
    assert figures.affected > 0
    assert figures.longer > 0
    assert figures.given.values["distance"] > 0
    assert 0 < figures.given.values["cosine"] < 1
    assert figures.bits_per_byte is None
    page = result.report.read_text()
    assert "compared with all tokens: nDCG@10" in page
    assert "bits per byte" not in page
    embedder = SentenceTransformer(str(result.model), device="cpu", trust_remote_code=True)
    assert embedder.encode(["river stone"]).shape == (1, 48)
    assert len(embedder.tokenizer) == 320
    trained = darwinlm.recover(tmp_path / "run", tmp_path / "recovered", tokens=3200).summary
    assert trained.models["before"].metrics["distance"] == pytest.approx(summary.saved.metrics["distance"], rel=1e-4)
    measured = command("evaluate", tmp_path / "run", "--against", dense, "--text", pairs)
    assert "cut to the same tokens" in measured.out
    assert "nDCG@10" in measured.out


def test_a_language_model_that_answers_keeps_its_answers(tmp_path, command):
    """Answers have new numbers, and scores of whole texts stay the same."""
    dense = wordy_checkpoint(tmp_path / "dense")
    pairs = pairs_of(tmp_path / "pairs.jsonl", WORDS[:16])
    result = cut(dense, pairs, tmp_path / "run", keep=1.0, answers=",".join(WORDS[20:22]))
    figures = result.summary.of(VocabularyFigures)
    assert figures.given.values["distance"] == pytest.approx(0, abs=1e-6)
    assert figures.given.values["same_label"] == 1
    kept = answer_tokens(",".join(WORDS[20:22]), Checkpoint.open(result.model).tokenizer())
    assert len(kept) == 2
    measured = command("evaluate", tmp_path / "run", "--against", dense, "--text", pairs)
    assert "cut to the same tokens" in measured.out
    assert re.search(r"same label as dense +100\.0", measured.out)


def test_the_answers_that_a_folder_names_get_their_new_numbers(tmp_path):
    dense = wordy_checkpoint(tmp_path / "dense")
    tokenizer = Checkpoint.open(dense).tokenizer()
    answers = {name: TOKENS - 4 - place for place, name in enumerate(("true_token_id", "false_token_id"))}
    words = tokenizer.convert_ids_to_tokens([*answers.values()])
    reranker(dense, **answers)
    result = cut(dense, pairs_of(tmp_path / "pairs.jsonl", WORDS[:16]), tmp_path / "run", keep=1.0)
    named = json.loads((result.model / "1_LogitScore" / "config.json").read_text())
    assert named != answers
    small = Checkpoint.open(result.model).tokenizer()
    assert small.convert_ids_to_tokens([named[name] for name in answers]) == words
    assert not (tmp_path / "run" / "stages" / "database").exists()  # all blocks are kept
    page = result.report.read_text()
    assert "all of it from the smaller vocabulary, since all blocks are kept" in page
    assert "darwinlm recover" not in page, "there is nothing to distil"


@pytest.mark.parametrize(
    ("vocab", "message"),
    [("auto", r"--vocab auto compares bits per byte .* such as --vocab 50%"), (1e6, r"1,000,000 tokens requested")],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, vocab, message):
    dense = tiny_scorer(tmp_path / "dense", tokenizer=wordy(), vocab_size=512, pad_token_id=2)
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(RecipeError, match=message):
        darwinlm.prune(dense, tmp_path / "run", text=pairs, params="20k", vocab=vocab, assignments=READING)
    assert not any((tmp_path / "run").rglob("model"))


def test_first_layers_with_fewer_tokens_did_not_lose_all_by_the_tokens(tmp_path):
    dense = tiny_scorer(tmp_path / "dense", tokenizer=wordy(), vocab_size=512, pad_token_id=2)
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    summary = cut(dense, pairs, tmp_path / "run", keep=0.5, layers="first").summary
    assert not only_tokens(summary)
    assert "compared with the smaller vocabulary alone, which has nDCG@10" in loss(summary)


def test_a_model_that_answers_with_tokens_that_are_gone_is_refused(tmp_path):
    """As where --against is another model than the one that was pruned."""
    checkpoint = replace(Checkpoint.open(wordy_checkpoint(tmp_path / "dense")), answers=(300, 301))
    opened = Opened("dense", checkpoint.tokenizer(), checkpoint=checkpoint, work=tmp_path)
    with pytest.raises(ModelError, match=r"dense answers with tokens that the smaller model lacks: --against must be"):
        opened.cut([*range(300)])
    assert not (tmp_path / "cut").exists()
    opened.cut([*range(200), 301, 300])
    assert opened.checkpoint.answers == (201, 200)


def test_outputs_without_a_score_are_told_by_their_distance():
    assert GivenFigures(texts=3, values={"distance": 0.25}).words == "distance to dense 0.25"


def test_too_few_texts_are_refused(tmp_path):
    dense = tiny_scorer(tmp_path / "dense", tokenizer=wordy(), vocab_size=512, pad_token_id=2)
    with pytest.raises(DataError, match=r"too few texts or pairs to choose tokens"):
        cut(dense, tiny_pairs(tmp_path / "pairs.jsonl", queries=1), tmp_path / "run")


def test_a_plan_says_which_scripts_lose_tokens(tmp_path, command):
    dense = tiny_scorer(tmp_path / "dense", tokenizer=wordy(), vocab_size=512, pad_token_id=2)
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    planned = command(
        "plan", dense, "--text", pairs, "--vocab", SIZE, "--keep", "60%", "--set", "text.sequence_length=64"
    )
    assert re.search(r"vocabulary: Latin: \d+ of 229 tokens go", planned.out)


def test_items_stay_in_their_order():
    encoder = ItemEncoder(wordy(), 12, apart=True)
    groups = {}
    samples = [Sample(f"{WORDS[n]} {n % 3}", " ".join(WORDS[: n + 1]), float(n)) for n in range(7)]
    given = [item for sample in samples for item in items_of(sample, encoder, groups)]
    tokens = in_order(given, 16)
    at = items.places(tokens)
    read = items.ids(tokens)
    found = [
        read[row, first : last + 1].tolist() for row, first, last in zip(*(at.sequence, at.first, at.last), strict=True)
    ]
    assert found == [item.tokens for item in given]
    assert {len(row) for row in tokens.tolist()} == {16}
