"""Models that read as GGUF files: what the real llama.cpp gives is what sentence-transformers gives."""

import json
from dataclasses import replace

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm
from tests.tiny.llama_cpp import exported
from tests.tiny.pruned import plain_checkpoint, word_tokenizer
from tests.tiny.readers import embedder_for_engines, narrowed, scorer_for_engines
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.formats.gguf import pooled_outputs
from darwinlm.formats.gguf.engine import ENGINES, POOLING
from darwinlm.formats.gguf.file_sizes import predicted_sizes
from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.formats.gguf.score_basis import ScoreBasis
from darwinlm.formats.opened import open_model
from darwinlm.formats.resolve import describe_model, resolve_model
from darwinlm.formats.transformers.saved import RECORD
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import families
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import CheckpointError, EngineError, ExportError, MissingExtraError

pytest.importorskip("llama_cpp_py_sync", reason="llama.cpp with pooling comes with the extra reading")

TEXTS = ["river stone bridge", "light winter garden and a long way to the harbour", "silver", "music in the forest"]
PAIRS = [("river stone", text) for text in TEXTS] + [("garden", text) for text in TEXTS]
UNEQUAL = {0: (2, 1, 96), 1: (4, 2, 40)}
RERANK = "tokenizer.chat_template.rerank"


def outputs(file, texts, *, written=False):
    """What llama.cpp gives for texts, with the tokens of its own tokenizer, all in one batch."""
    with EngineProcess(POOLING, file, exact=True, context=512) as engine:
        return torch.from_numpy(engine.outputs([engine.tokenize(text, written=written) for text in texts]))


def scores(file):
    """The score of every pair, in the file's template as a server fills it in."""
    template = read_header(file).keys[RERANK]
    filled = [template.replace("{query}", query).replace("{document}", text) for query, text in PAIRS]
    return outputs(file, filled, written=True)[:, 0]


def predicted(folder, activation):
    model = CrossEncoder(str(folder), device="cpu", trust_remote_code=True)
    return torch.from_numpy(model.predict(PAIRS, activation_fn=activation))


def templated(folder):
    """Let a scorer read pairs in a template."""
    text = {"template": "query: {query}\nstory: {document} fits:"}
    (folder / RECORD).write_text(json.dumps({"recipe": {"text": text}}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "query: {{ messages[-2].content }}\nstory: {{ messages[-1].content }} fits:"  # for sentence-transformers
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "unequal"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma", "mistral", "qwen3"])
def test_a_reranker_gives_its_score(tmp_path, model_type, unequal):
    """As it is, or as a probability in the one architecture that has a matrix for scores."""
    if model_type == "gemma" and unequal:
        pytest.skip("llama.cpp has no sizes per layer for Gemma")
    more = {"sliding_window": None} if model_type == "mistral" else {}
    folder = templated(scorer_for_engines(tmp_path / "dense", model_type, **more))
    if unequal:
        folder = narrowed(folder, tmp_path / "narrow", UNEQUAL)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    (row,) = report["comparisons"]
    assert (row["unit"], row["same"], row["same_top"]) == ("texts", "same place in order", 1.0)
    assert row["relative"] < 1e-3
    softmax = model_type == "qwen3" and not unequal
    assert any("b11739" in note for note in report["notes"]) != softmax
    found, wanted = (
        scores(tmp_path / "m.gguf"),
        predicted(folder, torch.nn.Sigmoid() if softmax else torch.nn.Identity()),
    )
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("pooling", ["lasttoken", "mean", "cls"])
def test_an_embedder_pools_as_its_folder(tmp_path, model_type, pooling):
    folder = plain_embedder(tmp_path, model_type, pooling)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert [(row["unit"], row["same"]) for row in report["comparisons"]] == [("texts", "same nearest text")]
    assert report["comparisons"][0]["relative"] < 1e-3
    model = SentenceTransformer(str(folder), device="cpu")
    assert model[1].pooling_mode == pooling
    wanted = torch.from_numpy(model.encode(TEXTS))
    assert (torch.nn.functional.normalize(outputs(tmp_path / "m.gguf", TEXTS)) - wanted).abs().max() < 1e-4


def plain_embedder(tmp_path, model_type="qwen3", pooling="lasttoken", prompts=None, **overrides):
    """An embedder that reads plain texts."""
    folder = embedder_for_engines(tmp_path, model_type, pooling, **overrides)
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"prompts": prompts or {}}))
    (folder / "chat_template.jinja").unlink()
    settings = folder / "sentence_bert_config.json"
    plain = json.loads(settings.read_text())
    plain["modality_config"].pop("message", None)
    settings.write_text(json.dumps(plain))
    return folder


def test_an_embedder_of_unequal_layers(tmp_path):
    folder = narrowed(plain_embedder(tmp_path, tie_word_embeddings=False), tmp_path / "narrow", UNEQUAL)
    report = exported(folder, tmp_path / "m.gguf", quantisation="q8_0")
    assert report["details"]["architecture"] == "openelm"
    assert [row["right"] for row in report["comparisons"]] == [
        "its f32 file in llama.cpp",
        "its q8_0 file in llama.cpp",
    ]


def test_prompts_are_the_callers(tmp_path):
    folder = plain_embedder(tmp_path, prompts={"query": "river: ", "document": "stone: "})
    report = exported(folder, tmp_path / "m.gguf")
    assert report["notes"] == [
        "a server adds no prompts: put 'river: ' in front of queries and 'stone: ' in front of texts"
    ]


def test_a_chat_template_is_the_callers(tmp_path):
    report = exported(embedder_for_engines(tmp_path, "qwen3"), tmp_path / "m.gguf")
    assert report["notes"] == [
        "the model reads texts in its chat template, which a server doesn't apply: send it '{document}'"
    ]


def test_pairs_without_a_template_are_joined_as_a_server_joins_them(tmp_path):
    folder = scorer_for_engines(tmp_path / "model")
    exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert RERANK not in read_header(tmp_path / "m.gguf").keys


def test_pairs_with_tokens_around_are_joined_as_a_server_joins_them(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    exported(scorer_for_engines(tmp_path / "model", tokenizer=tokenizer), tmp_path / "m.gguf", quantisation="f32")
    header = read_header(tmp_path / "m.gguf")
    assert RERANK not in header.keys
    assert [header.keys[f"tokenizer.ggml.add_{token}_token"] for token in ("bos", "eos")] == [True, True]


def test_pairs_that_no_template_makes_are_said(tmp_path):
    folder = scorer_for_engines(tmp_path / "model", "qwen3")
    text = {"template": "query: {query} {query}\nstory: {document}"}
    (folder / RECORD).write_text(json.dumps({"recipe": {"text": text}}))
    assert exported(folder, tmp_path / "m.gguf", quantisation="f32")["notes"] == [
        "no template makes the pairs that the model reads, so a server's /rerank would score other texts: "
        "llama-server's /embeddings takes finished texts, and tokens"
    ]


def judge(folder, model_type, **overrides):
    """A language model that answers `a` or `b`, which its record says."""
    folder = plain_checkpoint(folder, model_type, **overrides)
    text = {"answers": "a,b", "template": "query: {query}\nstory: {document} fits:"}
    (folder / RECORD).write_text(json.dumps({"recipe": {"text": text}}))
    return folder


LONG = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256}
LONGER = {
    "helium": {"hidden_size": 128},
    "mistral": {"sliding_window": None},
    "ministral3": {"rope_parameters": {**LONG, "llama_4_scaling_beta": 0.1}},
}
"""What lets a tiny model read texts as long as these, or be as wide as its heads."""
SCORING = [key for key, family in families().items() if family.gguf is not None and family.gguf.scores]


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
@pytest.mark.parametrize("model_type", SCORING)
def test_a_language_model_that_judges_pairs(tmp_path, model_type, tied):
    """Its file gives the probability of the first answer, or by how much more likely that is."""
    folder = judge(tmp_path / "model", model_type, tie_word_embeddings=tied, **LONGER.get(model_type, {}))
    exported(folder, tmp_path / "m.gguf", quantisation="f32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = tokenizer.convert_tokens_to_ids(["a", "b"])
    texts = [f"query: {query}\nstory: {text} fits:" for query, text in PAIRS]
    with torch.no_grad():
        logits = torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0, -1, answers] for text in texts])
    wanted = logits.softmax(1)[:, 0] if model_type == "qwen3" else logits[:, 0] - logits[:, 1]
    assert (scores(tmp_path / "m.gguf") - wanted).abs().max() < 3e-3 * wanted.abs().max()


def test_a_judge_without_scores_in_llama_cpp_is_a_language_model(tmp_path):
    report = exported(judge(tmp_path / "model", "smollm3"), tmp_path / "m.gguf", quantisation="f32")
    assert report["comparisons"][0]["same"] == "same next token"
    assert report["notes"] == [
        "llama.cpp gives no score in the architecture smollm3: the file is one of a language model, whose "
        "probabilities of its answers tell the score"
    ]
    assert not read_header(tmp_path / "m.gguf").pooling


@pytest.mark.parametrize("quantisation", ["bf16", "q8_0", "q4_k_m"])
def test_a_quantised_reranker(tmp_path, quantisation):
    report = exported(scorer_for_engines(tmp_path / "model", "qwen3"), tmp_path / "m.gguf", quantisation=quantisation)
    assert report["comparisons"][-1]["right"] == f"its {quantisation} file in llama.cpp"
    assert read_header(tmp_path / "m.gguf").tensors["cls.output.weight"] == (2, 64)


def refused(folder, out, match, **options):
    with pytest.raises(ExportError, match=match):
        export_model(folder, out, **options)
    assert not out.exists()


def test_several_labels_are_refused(tmp_path):
    folder = scorer_for_engines(tmp_path / "model", labels=3)
    refused(
        folder, tmp_path / "m.gguf", "it has 3 labels, and llama.cpp gives one score. Load its folder with CrossEnc"
    )


def test_an_architecture_without_scores_is_refused(tmp_path):
    folder = scorer_for_engines(tmp_path / "model", "phi3", num_attention_heads=2)
    refused(folder, tmp_path / "m.gguf", "llama.cpp gives no score in its architecture phi3. Load its folder")


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm"])
def test_what_is_behind_the_pooling_is_refused(tmp_path, kind):
    folder = plain_embedder(tmp_path)
    model = SentenceTransformer(str(folder), device="cpu")
    model.append(Dense(64, 16) if kind == "Dense" else LayerNorm(64))
    model.save_pretrained(str(tmp_path / "more"))
    refused(
        tmp_path / "more", tmp_path / "m.gguf", f"llama.cpp runs no module {kind} behind the pooling, and would give"
    )


def test_a_block_with_other_tensors_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("darwinlm.formats.gguf.score_basis.WRITES", ("ffn_down",))
    folder = scorer_for_engines(tmp_path / "model")
    refused(
        folder,
        tmp_path / "m.gguf",
        "a tensor attn_output.weight, with which llama.cpp can't give its score: load its f",
    )


def test_a_wrong_score_is_found(tmp_path, monkeypatch):
    gains = ScoreBasis.last_gains
    monkeypatch.setattr(ScoreBasis, "last_gains", lambda basis: -gains(basis))
    folder = scorer_for_engines(tmp_path / "model")
    message = r"its f32 file in llama.cpp and the model differ by \d.* in the scores \(allowed: 0.002\); nothing was wr"
    refused(folder, tmp_path / "m.gguf", message, quantisation="q8_0")


def test_a_wrong_pooling_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(pooled_outputs.POOLINGS, "lasttoken", "MEAN")
    refused(plain_embedder(tmp_path), tmp_path / "m.gguf", "differ by .* in the embeddings", quantisation="f32")


def test_another_template_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(
        EngineProcess,
        "tokenize",
        lambda engine, text, *, written=False: [7] if written else engine._ask("tokenize", text=text)["result"],
    )
    folder = templated(scorer_for_engines(tmp_path / "model"))
    refused(folder, tmp_path / "m.gguf", "llama.cpp splits a pair into other tokens than transformers, from token 0 on")


def test_the_check_needs_a_package(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, POOLING, replace(ENGINES[POOLING], package="not_installed_here"))
    folder = scorer_for_engines(tmp_path / "model")
    with pytest.raises(MissingExtraError, match=r"checking the file in llama.cpp .* 'not_installed_here'"):
        export_model(folder, tmp_path / "m.gguf")
    report = export_model(folder, tmp_path / "m.gguf", unchecked=True)
    assert report.notes[-1] == "not checked in llama.cpp"


def test_such_a_file_is_no_model_that_writes(tmp_path):
    exported(plain_embedder(tmp_path), tmp_path / "m.gguf")
    message = (
        r"m\.gguf holds a model that gives scores or embeddings \(pooling_type is LAST\), which llama\.cpp's servers"
    )
    for read in (describe_model, lambda file: resolve_model(file, tmp_path / "work"), open_model):
        with pytest.raises(CheckpointError, match=message):
            read(str(tmp_path / "m.gguf"))


def test_a_model_that_writes_pools_nothing(tmp_path):
    exported(plain_checkpoint(tmp_path / "model", "llama"), tmp_path / "m.gguf")
    with EngineProcess(POOLING, tmp_path / "m.gguf") as engine:
        with pytest.raises(ValueError, match="there are no outputs with the pooling 0 of the file"):
            engine.outputs([[1, 2]])
        with pytest.raises(NotImplementedError, match="PoolingLlamaCpp gives no logits"):
            engine.logits([1, 2])
        with pytest.raises(NotImplementedError, match="PoolingLlamaCpp writes no text"):
            engine.generate([1, 2], 3)


def test_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="failed to load the model"), EngineProcess(POOLING, tmp_path / "m.gguf"):
        pass


@pytest.mark.parametrize("quantisation", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "embedder"])
def test_files_have_their_predicted_sizes(tmp_path, kind, quantisation):
    folder = plain_embedder(tmp_path) if kind == "embedder" else scorer_for_engines(tmp_path / "model", kind)
    export_model(folder, tmp_path / "m.gguf", quantisation=quantisation, unchecked=True)
    predicted = predicted_sizes(Checkpoint.open(folder))[quantisation]
    assert predicted == pytest.approx((tmp_path / "m.gguf").stat().st_size, abs=2048)
