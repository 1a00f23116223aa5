"""Encoders through the whole pipeline, on tiny random models: every family whose tokens see those behind them."""

import copy
import json
from functools import partial
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.families.test_without_package import run_elsewhere
from tests.reading.test_readers import READING, pruned
from tests.tiny.cutting import Kept, cut_and_masked, near, tokens
from tests.tiny.masked import assert_equal_logits, logits, masked
from tests.tiny.models import ENCODERS, layers_of, randomised, tiny_config, tiny_model
from tests.tiny.readers import tiny_embedder, tiny_pairs, tiny_scorer
from tests.tiny.stages import run_stages
from tests.tiny.tokenizer import tiny_tokenizer
from tests.tiny.whole import Whole
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, BertTokenizer

import darwinlm
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.ending import scores_of
from darwinlm.model.families.family import class_prefix, families
from darwinlm.model.families.modeling_darwinlm import modeling_source
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.surgery.depth import can_lose_blocks, in_family_class
from darwinlm.model.surgery.padding import stock_config
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.items import segments, sequence_of
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import ExportError, ModelError, RecipeError
from darwinlm.steps.recover.trained_model import streams_of
from darwinlm.steps.stitch.stitch import stitch


@pytest.fixture(scope="module", params=[name for name in ENCODERS if name != "roberta"])
def family(request: pytest.FixtureRequest) -> str:
    """A family of encoders; RoBERTa has the description of XLM-RoBERTa."""
    return request.param


@pytest.fixture(scope="module")
def embedder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedder(tmp_path_factory.mktemp("encoder"), family, "mean")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", queries=160)


@pytest.fixture(scope="module")
def whole(embedder: Path, make_run, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = make_run(embedder, tmp_path_factory.mktemp("run") / "out", keep="60%")
    return Whole(run, run_stages(run, "export"))


def test_every_described_encoder_is_tested():
    assert set(ENCODERS) == {name for name, family in families().items() if family.bidirectional}


ITEMS = [list(range(10, 31)), [7], list(range(40, 52)), list(range(60, 75))]
"""Texts of which some are longer than the window of local attention."""


@torch.no_grad()
def test_texts_in_one_sequence_are_read_as_if_each_were_alone(embedder):
    """In every walk: of a model in memory, of a streamed one, and of one that is trained."""
    checkpoint = Checkpoint.open(embedder)
    model = checkpoint.load(torch.float32)
    rows = [sequence_of(ITEMS[:2], incomplete=[90, 91]), sequence_of(ITEMS[2:], incomplete=[])]
    length = max(map(len, rows))
    sequences = torch.tensor([row + [-1 - 90 - (1 << 40)] * (length - len(row)) for row in rows])
    alone = [model(input_ids=torch.tensor([item])).last_hidden_state[0] for item in ITEMS]
    other = model(input_ids=torch.tensor([ITEMS[0] + ITEMS[1]])).last_hidden_state[0, : len(ITEMS[0])]
    assert (other - alone[0]).abs().max() > 0.1, "without masks, texts would see each other"
    streamed = StreamedDecoder(checkpoint, sequences, dtype=torch.float32, device=torch.device("cpu"))
    found = {"trained": streams_of(model, sequences, marked=True)}
    for name, decoder in {"loaded": Decoder(model, checkpoint.family), "streamed": streamed}.items():
        (states,) = decoder.through([sequences])
        found[name] = decoder.head(states.flatten(0, 1)).view(states.shape)
    for name, states in found.items():
        read = [states[0, :21], states[0, 21:22], states[1, :12], states[1, 12:27]]
        for one, expected in zip(read, alone, strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=2e-5, msg=name)


def test_the_embedding_is_that_of_sentence_transformers(family, embedder, tmp_path):
    """Also of a folder that doesn't say how it pools."""
    from sentence_transformers import SentenceTransformer

    checkpoint = Checkpoint.open(embedder)
    ids = tiny_tokenizer()("river stone")["input_ids"]
    tiny_model(family).save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    for folder in (embedder, tmp_path / "plain"):
        expected = SentenceTransformer(str(folder), device="cpu").encode(["river stone"], convert_to_tensor=True)
        sequence = torch.tensor([sequence_of([ids])])
        model = checkpoint.load(torch.float32)
        states = streams_of(model, sequence, marked=True)
        found = objective_of(Checkpoint.open(folder)).outputs(lambda rows: rows, states, sequence)
        cosine = torch.nn.functional.cosine_similarity(found, expected)
        assert float(cosine) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("plan", ["no attention first", "nothing first"])
def test_layers_that_differ_equal_the_masked_dense_model_and_are_saved(family, plan, tmp_path):
    small, reference = cut_and_masked(family, plan)
    assert type(small) is not type(reference)
    near(logits(small, tokens()), logits(reference, tokens()), small)
    small.save_pretrained(tmp_path)
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    again = copy.deepcopy(again)  # rounding depends on the alignment of weights, which mapped files don't keep
    assert type(again) is type(small)
    assert again._no_split_modules == {type(block).__name__ for block in layers_of(again)}
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again, tokens()), logits(small, tokens()))
    stored = json.loads((tmp_path / "config.json").read_text())
    prefix = class_prefix(family)
    parts = ("Config", "Model", "ForSequenceClassification") if family in SCORERS else ("Config", "Model")
    names = {f"Auto{'Model' if part.startswith('For') else ''}{part}": part for part in parts}
    assert stored["auto_map"] == {auto: f"modeling_darwinlm.Darwin{prefix}{part}" for auto, part in names.items()}
    assert (tmp_path / "modeling_darwinlm.py").read_text() == modeling_source(families()[family].definition())


def test_any_allocation_is_the_masked_dense_model_and_weighs_what_was_predicted(whole):
    ids = tokens()
    for allocation in whole.random_allocations(3):
        small = stitch(whole.reader, allocation)
        assert_equal_logits(small, masked(whole.reader, allocation), ids)
        assert block_parameters(small, whole.checkpoint.family.layers) == whole.plan.space.params(allocation)


def test_the_dense_allocation_and_layers_that_are_cut_alike_are_the_familys_own_class(whole):
    dense, alike = (stitch(whole.reader, levels) for levels in (whole.plan.space.dense, whole.cut_alike()))
    assert torch.equal(logits(dense, tokens()), logits(whole.checkpoint.load(torch.float32), tokens()))
    for small in (dense, alike):
        assert type(small).__module__.startswith("transformers.models.")
    assert_equal_logits(alike, masked(whole.reader, whole.cut_alike()), tokens())


def test_equal_layers_with_fewer_heads_are_of_our_class(family, tmp_path):
    """In the family's own class, fewer heads would be larger ones."""
    blocks = [Kept((2, 1), 1 / 2)] * 4
    small, reference = cut_and_masked(family, blocks)
    near(logits(small, tokens()), logits(reference, tokens()), small)
    small.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config.model_type == f"darwinlm_{checkpoint.family.model_type}"
    assert torch.equal(logits(checkpoint.load(torch.float32), tokens()), logits(small, tokens()))
    dense = tiny_config(family)
    stock = stock_config(checkpoint)
    assert (stock.model_type, stock.num_attention_heads) == (dense.model_type, dense.num_attention_heads)


def test_what_was_saved_is_what_was_searched_and_is_pruned_again(whole, make_run, tmp_path):
    folder = whole.run.folder / "model"
    model = AutoModel.from_pretrained(folder)
    counted = block_parameters(model, whole.checkpoint.family.layers)
    assert counted == whole.plan.space.params(whole.search.allocation) <= whole.plan.budget.upper
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"].removeprefix("darwinlm_") == whole.checkpoint.family.model_type
    again = run_stages(make_run(folder, tmp_path / "out", keep="75%"), "stitch")
    assert again.plan.space.params(again.plan.space.dense) == counted
    small = again.stitch.checkpoint.load(torch.float32)
    assert_equal_logits(small, masked(again.database.reader, again.search.allocation), tokens())


def test_a_block_less_is_the_familys_own_class(family, tmp_path):
    """Unless it is the first one of ModernBERT, which has no norm before its attention."""
    tiny_model(family).save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    reader = ModuleReader(Checkpoint.open(tmp_path / "dense"), UnitsSettings())
    any_block = family != "modernbert"
    assert can_lose_blocks(reader.checkpoint) == any_block
    for gone, stock in ((0, any_block), (2, True)):
        levels = tuple(0 if module.block == gone else len(module.levels) - 1 for module in reader.modules)
        small = stitch(reader, levels)
        small.save_pretrained(tmp_path / str(gone))
        left = in_family_class(small, Checkpoint.open(tmp_path / str(gone)))
        assert type(left).__module__.startswith("transformers.models.") == stock
        assert torch.equal(logits(left, tokens()), logits(small, tokens()))


ELSEWHERE = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
print(json.dumps(model.encode(["river stone", "light winter garden"]).tolist()))
"""


@pytest.mark.parametrize("layers", ["unequal", "equal", "first"])
def test_a_run_ends_in_a_folder_that_sentence_transformers_loads_elsewhere(layers, family, embedder, pairs, tmp_path):
    """Layers of unequal sizes are trained on too."""
    from sentence_transformers import SentenceTransformer

    keep = 0.3 if layers == "unequal" else 0.6
    result = pruned(embedder, pairs, tmp_path / "run", keep=keep, layers=layers)
    summary = result.summary
    assert summary.saved.block_params <= keep * summary.dense.block_params
    assert -1 < summary.saved.metrics["cosine"] < 1
    kept = {path.relative_to(embedder).as_posix() for path in embedder.rglob("*") if path.is_file()}
    assert kept <= {path.relative_to(result.model).as_posix() for path in result.model.rglob("*") if path.is_file()}
    assert bool(list(result.model.glob("*.py"))) == (layers == "unequal")
    here = SentenceTransformer(str(result.model), device="cpu", trust_remote_code=True)
    vectors = torch.tensor(run_elsewhere(ELSEWHERE, [str(result.model)], tmp_path))
    texts = ["river stone", "light winter garden"]
    torch.testing.assert_close(vectors, torch.tensor(here.encode(texts)), rtol=0, atol=1e-5)
    if layers == "unequal":
        trained = darwinlm.recover(tmp_path / "run", tmp_path / "recovered", tokens=6400).summary
        after, before = trained.saved.metrics["distance"], trained.models["before"].metrics["distance"]
        # Eight steps gain nothing for random weights with norms behind the sums, which are kept then.
        assert after < before if family == "modernbert" else after <= before


@pytest.mark.parametrize("layers", ["unequal", "first"])
def test_half_of_the_layers_are_half_of_the_parameters(layers, pairs, tmp_path):
    """Norms that stay with removed modules go with their block."""
    embedder = tiny_embedder(tmp_path, "bert", "cls")
    summary = pruned(embedder, pairs, tmp_path / "run", keep=0.5, layers=layers).summary
    most = 0.5 * summary.dense.block_params
    assert summary.saved.block_params == most if layers == "first" else summary.saved.block_params <= most


@torch.no_grad()
def test_a_model_saved_without_its_pooler_stays_without(pairs, tmp_path):
    embedder = tiny_embedder(tmp_path, "bert", "cls")
    names = ("model.safetensors", "pooler.dense.weight", "pooler.dense.bias")
    tensors = load_file(embedder / names[0])
    assert all(tensors.pop(name) is not None for name in names[1:])
    save_file(tensors, embedder / names[0], metadata={"format": "pt"})
    result = pruned(embedder, pairs, tmp_path / "run", keep=0.6)
    assert not any(name.startswith("pooler.") for name in load_file(result.model / names[0]))
    assert result.summary.dense.params == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("setting", ["is_decoder", "add_cross_attention"])
def test_a_decoder_of_a_family_of_encoders_is_refused(setting, tmp_path):
    embedder = tiny_embedder(tmp_path, "bert", "cls")
    config = json.loads((embedder / "config.json").read_text())
    (embedder / "config.json").write_text(json.dumps({**config, setting: True}))
    with pytest.raises(ModelError, match=rf"{setting} is true, but of BERT only models in which a token sees all"):
        Checkpoint.open(embedder)


def test_segments_begin_behind_the_first_separator_of_each_item():
    rows = [sequence_of([[1, 9, 8, 9, 7, 9], [1, 5]], incomplete=[9, 4]), sequence_of([[1, 2, 9]], incomplete=[6] * 7)]
    found = segments(torch.tensor(rows), 9).tolist()
    assert found == [[0, 0, 1, 1, 1, 1, 0, 0, 0, 1], [0] * 10]


PAIRS = [("river stone", "light winter garden"), ("a", "the river of the garden"), ("stone", "light")]
SCORED_ELSEWHERE = """
from sentence_transformers import CrossEncoder
model = CrossEncoder(sys.argv[1], device="cpu", trust_remote_code=True)
print(json.dumps(model.predict([("river stone", "light winter garden"), ("stone", "light")]).tolist()))
"""
SCORERS = [name for name, family in families().items() if family.encoder]


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("model_type", SCORERS)
@torch.no_grad()
def test_scores_of_pairs_are_those_of_cross_encoder(model_type, labels, tmp_path):
    from sentence_transformers import CrossEncoder

    folder = tiny_scorer(tmp_path / "dense", model_type, labels)
    checkpoint = Checkpoint.open(folder)
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    expected = torch.tensor(reference.predict(PAIRS)).view(len(PAIRS), -1)
    tokenizer, model = tiny_tokenizer(), checkpoint.load(torch.float32)
    sequence = torch.tensor([sequence_of([tokenizer(*pair)["input_ids"] for pair in PAIRS])])
    objective = objective_of(checkpoint)
    streamed = StreamedDecoder(checkpoint, sequence, dtype=torch.float32, device=torch.device("cpu"))
    (states,) = streamed.through([sequence])
    torch.testing.assert_close(objective.outputs(streamed.head, states, sequence), expected, rtol=0, atol=2e-5)
    trained = streams_of(model, sequence, marked=True)
    found = objective.outputs(partial(scores_of, model), trained, sequence)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def pair_tokenizer() -> BertTokenizer:
    """BERT's tokenizer, which numbers the texts of a pair, with letters for pieces."""
    letters = (*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase))
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters)
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512)


@torch.no_grad()
def test_the_texts_of_a_pair_are_numbered_for_bert_in_a_smaller_model_too(pairs, tmp_path):
    from sentence_transformers import CrossEncoder

    tokenizer = pair_tokenizer()
    folder = tiny_scorer(tmp_path / "dense", "bert", tokenizer=tokenizer)
    small = pruned(folder, pairs, tmp_path / "run", keep=0.5, layers="unequal").model
    sequence = torch.tensor([sequence_of([tokenizer(*pair)["input_ids"] for pair in PAIRS])])
    for saved in (folder, small):
        checkpoint = Checkpoint.open(saved)
        reference = CrossEncoder(str(saved), device="cpu", activation_fn=torch.nn.Identity(), trust_remote_code=True)
        expected = torch.tensor(reference.predict(PAIRS)).view(len(PAIRS), -1)
        model = checkpoint.load(torch.float32)
        states = streams_of(model, sequence, marked=True)
        found = objective_of(checkpoint).outputs(partial(scores_of, model), states, sequence)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        model.config.segment_separator = None
        unnumbered = streams_of(model, sequence, marked=True)
        assert (states - unnumbered).abs().max() > 0.01, "the numbers would have no effect"


@pytest.mark.parametrize("layers", ["unequal", "equal", "first"])
@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_a_run_on_a_reranker_ends_in_a_folder_that_cross_encoder_loads_elsewhere(model_type, layers, pairs, tmp_path):
    from sentence_transformers import CrossEncoder

    folder = tiny_scorer(tmp_path / "dense", model_type)
    result = pruned(folder, pairs, tmp_path / "run", keep=0.6, layers=layers)
    summary = result.summary
    assert summary.saved.block_params <= 0.6 * summary.dense.block_params
    assert "score_correlation" in summary.saved.metrics
    assert bool(list(result.model.glob("*.py"))) == (layers == "unequal")
    here = CrossEncoder(str(result.model), device="cpu", trust_remote_code=True)
    assert len(here.model.base_model.encoder.layer) == (2 if layers == "first" else 4)
    found = torch.tensor(run_elsewhere(SCORED_ELSEWHERE, [str(result.model)], tmp_path))
    expected = torch.tensor(here.predict([PAIRS[0], PAIRS[2]]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if layers == "first":  # eight steps change random weights for better or worse
        trained = darwinlm.recover(tmp_path / "run", tmp_path / "recovered", tokens=6400).summary
        assert trained.saved.metrics["distance"] != trained.models["before"].metrics["distance"]


HEADS = {"ForMaskedLM": AutoModelForMaskedLM, "ForSequenceClassification": AutoModelForSequenceClassification}


@pytest.mark.parametrize(
    ("head", "family"),
    [(head, name) for head in HEADS for name in ENCODERS if head == "ForMaskedLM" or name not in SCORERS],
)
def test_an_encoder_with_another_head_is_refused(head, family, pairs, tmp_path, command):
    randomised(lambda: HEADS[head].from_config(tiny_config(family))).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    message = (
        rf"as embedders, .* BERT, RoBERTa and XLM-RoBERTa as rerankers .* names \['\w+{head}'\]: save what AutoModel"
    )
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(tmp_path / "model")
    given = ("--keep", "60%", "--text", pairs, "--out", tmp_path / "run")
    command("prune", tmp_path / "model", *given).refused("encoders such as")


def test_what_is_not_done_for_encoders_is_refused(embedder, pairs, tmp_path):
    for vocab, budget in ((0.5, {"keep": 0.6}), ("auto", {"keep": None, "params": "20k"})):
        with pytest.raises(RecipeError, match=r"--vocab can't cut the tokens of an encoder yet, which .* is: leave it"):
            pruned(embedder, pairs, tmp_path / "run", vocab=vocab, **budget)
    given = (f"model={embedder}", f"text.source={pairs}", "budget.keep=60%", *READING)
    recipe = darwinlm.load_recipe(None, [*given, "units.quantisation=q8_0"])
    with pytest.raises(RecipeError, match=r"--for q8_0 prepares a GGUF file, and none is written of an encoder"):
        darwinlm.prune(recipe=recipe, out=tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists() or not any((tmp_path / "run" / "stages").iterdir())
    with pytest.raises(
        ExportError, match=r"GGUF files of encoders aren't written\. transformers and sentence-transformers run it$"
    ):
        export_model(embedder, tmp_path / "model.gguf")
