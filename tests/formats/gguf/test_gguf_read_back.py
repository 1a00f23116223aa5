"""GGUF files as models to prune: what is read computes what llama.cpp does with the file, or is refused."""

import json
import os

import pytest
import torch
from tests.formats.gguf.test_gguf_families import CASES as FAMILIES
from tests.formats.gguf.test_gguf_rope import CASES as ROPES
from tests.tiny.pruned import any_checkpoint, plain_checkpoint
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from darwinlm.formats.gguf import file_writer
from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.gguf.in_llama_cpp import open_in_llama_cpp
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.formats.gguf.read import CONVERTED
from darwinlm.formats.gguf.read import _config as config_of
from darwinlm.formats.resolve import describe_model, resolve_model
from darwinlm.model.families.loading import load_tokenizer, tokenizer_digest
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import plan_card, plan_here
from darwinlm.planning.speeds import PassSpeed
from darwinlm.recipe import load_recipe
from darwinlm.runs.exporting import export_model
from darwinlm.runs.plan_model import plan
from darwinlm.runtime.errors import CheckpointError
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.source.whole_model import CONVERSION

pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")

CASES = FAMILIES | ROPES
READ = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3 that turns half of a head", "ministral3",
    "helium", "qwen3_5", "lfm2", "qwen3_5_moe", "yarn, llama", "yarn, its magnitude from two numbers", "yarn, qwen3",
    "linear, llama", "linear, gemma3's full layers", "longrope, llama", "longrope, phi3",
    "longrope, phi3 of which half a head turns", "dynamic",
]  # fmt: skip
"""Those of our exports whose configuration transformers reads."""
IDS = torch.randint(3, 300, (1, 96), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Export a model without a check of the file, whose keys may be changed: written(folder, {"llama.a": 1.0})."""
    monkeypatch.setattr("darwinlm.formats.gguf.checked_file._check", lambda job, path: None)

    def write_keys(writer, *given):
        real(writer, *given)
        for key, value in more.items():
            add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}
            add[type(value)](key, value)

    more, real = {}, file_writer.write_keys
    monkeypatch.setattr(file_writer, "write_keys", write_keys)

    def make(folder, keys=None):
        more.clear()
        more.update(keys or {})
        export_model(folder, tmp_path / "m.gguf", quantisation="f32", overwrite=True)
        return tmp_path / "m.gguf"

    return make


def differs(file, work, ids=IDS):
    """Relative difference of the logits of the model that is read and of the file in llama.cpp."""
    model = resolve_model(str(file), work).load(torch.float32).eval()
    with torch.no_grad():
        ours = model(input_ids=ids).logits[0]
    with EngineProcess("llama.cpp", file, exact=True, context=128) as engine:
        theirs = torch.from_numpy(engine.logits(ids[0].tolist()))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.filterwarnings("ignore")  # transformers finds tiny models' numbers odd
@pytest.mark.parametrize("case", READ)
def test_own_exports_read_back_compute_what_llama_cpp_does(tmp_path, written, case):
    model_type, _, rows, overrides = CASES[case]
    file = written(any_checkpoint(tmp_path / "model", model_type, rows, **overrides))
    # llama.cpp looks gelu up in a table of float16 numbers
    assert differs(file, tmp_path / "work") < (2e-3 if "gemma" in case else 1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", READ[:13])
def test_the_tokenizer_is_the_one_that_transformers_finds_by_itself(tmp_path, written, case, monkeypatch):
    """Although the file isn't parsed for the model's type, which takes transformers seconds."""
    model_type, _, rows, overrides = CASES[case]
    file = written(any_checkpoint(tmp_path / "model", model_type, rows, **overrides))
    (alone := tmp_path / "alone").mkdir()
    (alone / file.name).symlink_to(file)
    expected = load_tokenizer(alone, gguf_file=file.name)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    header = read_header(file)
    read = load_tokenizer(alone, config_of(header), gguf_file=file.name)
    assert type(read) is type(expected)
    assert tokenizer_digest(read) == tokenizer_digest(expected)
    assert read.init_kwargs.keys() == expected.init_kwargs.keys()


@pytest.mark.filterwarnings("ignore")
def test_a_token_that_only_transformers_adds_is_not_the_models(tmp_path, written):
    """<|endoftext|>, to byte-level tokenizers without it, such as Llama 3's: it has no row in the embedding."""
    file = written(plain_checkpoint(tmp_path / "model", "llama"))
    assert "<|endoftext|>" in PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file=file.name).get_vocab()
    checkpoint = resolve_model(str(file), tmp_path / "work")
    assert "<|endoftext|>" not in checkpoint.tokenizer().get_vocab()
    assert len(checkpoint.tokenizer()) == checkpoint.config.vocab_size
    export_model(checkpoint.folder, tmp_path / "again.gguf", quantisation="f32")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [(), ("vocabulary=300",)])
def test_a_file_is_planned_as_the_folder_that_it_is_converted_to(tmp_path, written, more):
    """Its shapes and its tokenizer are in the header."""
    file = written(plain_checkpoint(tmp_path / "model", "llama"))
    folder = resolve_model(str(file), tmp_path / "work").folder
    (text := tmp_path / "text.jsonl").write_text(json.dumps({"text": "Plain words of a text. " * 400}))
    given = ("budget.file=130KB", "units.quantisation=q8_0", "text.calibration_tokens=512", *more)
    plans = [plan(model, text=text, assignments=given) for model in (file, folder)]
    work = [{row.step: row.cost.operations for row in one.rows if row.step != CONVERSION} for one in plans]
    assert work[0] == work[1]
    assert plans[0].sizes.saved_params == plans[1].sizes.saved_params < plans[0].sizes.params
    assert plans[0].notes == plans[1].notes


KEYS = {
    "a yarn as converters write it": {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.yarn_beta_fast": 32.0,
    },
    "a linear scaling": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    "no scaling": {"llama.rope.scaling.type": "none"},
}


@pytest.mark.parametrize("case", KEYS)
def test_scalings_of_other_writers(tmp_path, written, case):
    file = written(plain_checkpoint(tmp_path / "model", "llama"), KEYS[case])
    assert differs(file, tmp_path / "work") < 1e-5
    assert differs(written(tmp_path / "model"), tmp_path / "plain") < 1e-5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"llama.attn_logit_softcapping": 20.0}, "llama.attn_logit_softcapping is 20.0"),
        ({"llama.logit_scale": 2.0}, "llama.logit_scale is 2.0"),
        ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window is 64"),
        ({"llama.rope.scaling.yarn_beta_slow": 4.0}, "llama.rope.scaling.yarn_beta_slow is 4.0"),
        ({"llama.rope.scaling.type": "banana", "llama.rope.scaling.factor": 2.0}, "llama.rope.scaling.type is banana"),
        ({"llama.a_key_of_next_year": "on"}, "llama.a_key_of_next_year is on"),
    ],
)
def test_a_key_that_nobody_reads_is_refused(tmp_path, written, keys, said):
    file = written(plain_checkpoint(tmp_path / "model", "llama"), keys)
    with pytest.raises(CheckpointError) as error:
        resolve_model(str(file), tmp_path / "work")
    assert str(error.value) == (
        f"{file}: {said}, but transformers doesn't read it, which makes another model: give the model's original "
        "folder or hub id"
    )
    assert not (tmp_path / "work").exists()


def test_what_lies_beside_a_file_or_here_is_not_read(tmp_path, written, monkeypatch):
    """Neither another tokenizer, nor other settings, nor a file of the same name in the current folder."""
    folder = plain_checkpoint(tmp_path / "model", "llama")
    file = written(folder)
    before = resolve_model(str(file), tmp_path / "before")
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:5]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"model_max_length": 7, "hidden_size": 64, "chat_template": "{{ 1 }}"}')
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m.gguf").write_bytes(b"GGUF, but another one")
    monkeypatch.chdir(tmp_path / "here")
    after = resolve_model(os.path.join("..", "m.gguf"), tmp_path / "after")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (after.folder / name).read_text() == (before.folder / name).read_text(), name
    text = "the river turns slowly"
    theirs = open_in_llama_cpp(file)[1]
    assert theirs(text)["input_ids"] == before.tokenizer()(text)["input_ids"] == after.tokenizer()(text)["input_ids"]


@pytest.fixture
def twice(tmp_path, written, monkeypatch):
    """A file with an embedding and a head of these types, equal but for a change."""

    def make(embedding, head, change=lambda weight: None):
        folder = plain_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=False)
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        change(tensors["lm_head.weight"])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        own, real = {"token_embd.weight": embedding, "output.weight": head}, file_writer._type
        monkeypatch.setattr(file_writer, "_type", lambda name, *given: own.get(name) or real(name, *given))
        return written(folder), tensors["model.embed_tokens.weight"].float()

    return make


@pytest.mark.parametrize(("embedding", "head"), [("Q5_0", "Q8_0"), ("Q8_0", "Q5_0"), ("F32", "F32")])
def test_a_head_that_is_the_embedding_is_read_once(tmp_path, twice, embedding, head):
    file, exact = twice(embedding, head)
    said = []
    model = resolve_model(str(file), tmp_path / "work", say=said.append)
    better, worse = (head, embedding) if (embedding, head) == ("Q5_0", "Q8_0") else (embedding, head)
    assert said == [
        f"the file holds one matrix as embedding and as head: the model shares that of {better}, not {worse}"
    ]
    described = describe_model(str(file))
    assert described.config.tie_word_embeddings
    largest = max(weight.numel() for weight in described.outline.parameters())
    sizes = RunSizes(described, load_recipe(None, ("units.mlp_multiple=8",), {"model": str(file)}))
    planned = {row.step: row.cost.memory for row in plan_here(STEPS, sizes, torch.device("cpu"), PassSpeed(1.0)).rows}
    assert planned["model"]["a tensor in float32"] == CONVERTED * largest
    on_card = {row.step: row.cost for row in plan_card(STEPS, sizes, "h100").rows}
    assert on_card["model"].bytes == 0, "it is converted in main memory"
    assert on_card["model"].disk > 0
    loaded = model.load(torch.float32)
    assert model.config.tie_word_embeddings
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    error = (loaded.get_input_embeddings().weight - exact).norm() / exact.norm()
    assert error < (0.01 if better == "Q8_0" else 1e-3)
    assert differs(file, tmp_path / "work") < (0.25 if worse != better else 0.02)


def other_row(weight):
    weight[17] = -weight[17]


def other_rows(weight):
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("change", [other_row, other_rows])
def test_a_head_of_its_own_stays(tmp_path, twice, change):
    file, _ = twice("Q5_0", "Q8_0", change)
    said = []
    model = resolve_model(str(file), tmp_path / "work", say=said.append)
    assert said == []
    assert not model.config.tie_word_embeddings
    assert differs(file, tmp_path / "work") < 0.02
