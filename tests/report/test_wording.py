"""Figures and model card: the same words everywhere, and safe for any name."""

import ast
import json
import math
import shutil

import pytest
from huggingface_hub import ModelCard
from tests.tiny.summaries import NASTY, VOCABULARY, changed, front_matter, made, plain, recovered, searched, told

from darwinlm.report import wording
from darwinlm.report.card import model_card
from darwinlm.report.usage import loading_code
from darwinlm.runtime import amounts, published


def test_what_was_gained_and_lost():
    assert wording.gains(made(searched())) == [
        ("size", "81.3 M of 134.5 M parameters (49.9 % of the block parameters), 163 MB of weights instead of 269 MB"),
        ("loss", "KL 0.871 nats per token, where 0 means the same predictions"),
        ("speed", "prompt speed ×2.1, decode speed ×1.8"),
    ]


def test_a_smaller_vocabulary_says_what_it_costs_and_what_kl_is_relative_to():
    lines = dict(wording.gains(made(told(searched(), vocabulary=VOCABULARY))))
    assert lines["tokens"].endswith("10.0 % more tokens; this alone raises its bits per byte from 1.125 to 1.250")
    assert "KL 0.871 nats per token to the original with the smaller vocabulary, where 0 means" in lines["loss"]


@pytest.mark.parametrize(
    ("model", "inside", "name"),
    [
        ("/tmp/model.gguf", "Qwen2.5 0.5B Instruct", "Qwen2.5 0.5B Instruct"),
        ("/tmp/qwen2.5-0.5b-instruct-Q8_0.gguf", "Qwen2.5 0.5B Instruct", "qwen2.5-0.5b-instruct"),
        ("/tmp/model.gguf", None, "model"),
        ("owner/name", "Another", "name"),
    ],
)
def test_a_file_without_its_models_name_is_called_by_its_metadata(model, inside, name):
    summary = made(changed(searched(), model=model, origin={"name": inside}))
    assert wording.title(summary).startswith(f"{name} with half of its")
    assert f"\n# {name} with half" in model_card(summary).replace("\\", "")


def bounded(tree, kind="file", upper=75e6):
    return changed(tree, budget={"kind": kind, "keep": None, "unit": "bytes", "upper": upper})


def test_a_model_that_lost_much_has_advice():
    lost = "a model that lost this much answers many questions wrongly; to lose less, "
    vocabulary, train = "cut the vocabulary in place of some blocks ", "train it (darwinlm recover)"
    assert dict(wording.told(made(searched())))["advice"] == f"{lost}{vocabulary}(--vocab 50%), and {train}"
    assert wording.advice(made(bounded(searched()))) == f"{lost}{vocabulary}(--vocab auto), and {train}"
    assert wording.advice(made(bounded(recovered()))).endswith("(--vocab auto), and train it for longer")
    little = searched()
    for model in little["models"].values():
        model["metrics"]["kl"] = 0.1
    assert wording.told(made(little)) == wording.gains(made(little))
    file = {"model": "m", "file": "model-q2_k.gguf", "tokens": 9}
    file["saved"] = {"quantisation": "q2_k", "bytes": 70_000_000, "kl": 0.9}
    assert "train it" in wording.advice(made(told(little, file=file))), "the file lost much"


COMPUTED = "computed from the sizes: prompt speed ×2.0, decode speed ×1.7"


@pytest.mark.parametrize(
    ("rate", "spread", "words"),
    [
        (200.0, 0.01, "prompt speed ×2.0"),
        (80.0, 0.05, "prompt speed ×0.8"),
        (130.0, 0.2, f"no difference beyond the noise of the measurement on this machine; {COMPUTED}"),
        (101.0, 0.01, f"no difference beyond the noise of the measurement on this machine; {COMPUTED}"),
        (200.0, None, f"timed once, which tells no difference; {COMPUTED}"),
        (None, None, "not measured"),
    ],
)
def test_the_line_of_speed_claims_what_was_measured(rate, spread, words):
    summary = plain()
    for model in summary["models"].values():
        model["metrics"].update(speed_spread=spread, tokens_per_second=rate and 100.0, decode_tokens_per_second=None)
    summary["models"][made(summary).saved_key]["metrics"]["tokens_per_second"] = rate
    assert wording.faster(made(summary)) == words


def test_the_computed_speed_of_a_model_that_reads_has_no_decoding():
    summary = plain()
    for model in summary["models"].values():
        model["reading"] = {"texts": 64}
        model["metrics"].update(speed_spread=0.2, tokens_per_second=100.0, decode_tokens_per_second=None)
    assert wording.faster(made(summary)).endswith("; computed from the sizes: prompt speed ×2.0")


FIGURES = {
    amounts.count: {820: "820", 999_999: "1.0 M", 53_101_440: "53.1 M", 1_235_814_400: "1.24 B", None: "–"},
    amounts.size: {52_000: "52 kB", 2_471_645_608: "2.47 GB", None: "–"},
    amounts.perplexity: {4.312: "4.31", 9.999: "10.0", 999.96: "1,000", 2.5e7: "2e7", math.inf: "∞", math.nan: "–"},
    amounts.nats: {0.87149: "0.871", math.inf: "∞"},
    amounts.rate: {1234.5: "1,234", math.nan: "–"},
    amounts.duration: {
        0.04: "0.0 s",
        59.97: "1 min",
        4350: "1 h 12 min",
        3599.9: "1 h",
        2533: "42 min",
        math.nan: "–",
        math.inf: "–",
    },
    published.short_source: {
        "/home/someone/models/tiny.gguf": "tiny.gguf",
        "hf:owner/name:config": "hf:owner/name:config",
        "/data/boolq/none/validation#question+passage": "validation#question+passage",
        "CLIENT/texts": "texts",
        "hf:owner/name,../CLIENT/a.txt": "hf:owner/name and a.txt",
        None: "unnamed",
    },
    published.short_model: {
        "owner/name@main": "owner/name@main",
        "../CLIENT/model": "model",
        "~/models/tiny.gguf": "tiny.gguf",
    },
    published.hub_id: {"owner/name": "owner/name", "./models/tiny": None, "models/tiny.gguf": None},
    amounts.factor: {
        **{(18, 10): "1.8", (10, 10): "1.0", (9, 10): "0.9", (0.947, 1): "0.9"},
        **{(1, 30): "0.033", (99.9, 10): "10", (None, 1): "", (1, 0): ""},
    },
    wording.plain_name: {
        "HuggingFaceTB/SmolLM2-135M@main": "SmolLM2-135M",
        "/models/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct",
        "C:\\models\\tiny-f16.GGUF": "tiny",
        "./tiny\nerror: no such file\u2028": "tiny error: no such file",
    },
}


@pytest.mark.parametrize(
    ("write", "given", "said"), [(write, *case) for write, cases in FIGURES.items() for case in cases.items()]
)
def test_figures_and_names_for_people(write, given, said):
    assert (write(*given) if isinstance(given, tuple) else write(given)) == said


def test_card_of_a_searched_model():
    fields, body = front_matter(model_card(made(searched())))
    ((index,), text) = fields.pop("model-index"), {"type": "HuggingFaceFW/fineweb-edu"}
    assert index["name"] == "SmolLM2-135M with half of its block parameters"
    (result,) = index["results"]
    assert result["dataset"] == text | {"name": "hf:HuggingFaceFW/fineweb-edu"}
    assert result["task"] == {"type": "text-generation"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"perplexity": 48.36, "kl": 0.871}
    assert fields == {
        "language": ["en"],
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["darwinlm", "pruning", "structured-pruning", "custom_code"],
        "datasets": ["HuggingFaceFW/fineweb-edu"],
    }
    for expected in (
        "# SmolLM2-135M with half of its block parameters",
        "This is `HuggingFaceTB/SmolLM2-135M`, physically smaller: nothing is masked. Its blocks differ in size",
        "- speed: prompt speed ×2.1, decode speed ×1.8",
        "| **searched + refit** | **81.3 M** |",
        "8 attention and 1 MLP sub-layers of 30 blocks are gone",
        "2502.07780",
    ):
        assert expected in body, expected


def test_card_of_a_plain_model_with_images_and_a_licence_of_its_own():
    tree = told(plain() | {"origin": {"license_name": "ours"}}, export={"whole": True})
    fields, body = front_matter(model_card(made(tree)))
    assert "custom_code" not in fields["tags"]
    assert (fields["license"], fields["pipeline_tag"]) == ("other", "image-text-to-text")
    assert "AutoModelForImageTextToText" in body


def test_results_in_the_card_are_read_by_the_hub(tmp_path):
    """With the library's own reader; a text that is a file is named without its folder."""
    tree = searched()
    tree["steps"]["text"]["source"] = "/home/someone/secret/text.txt"
    tree["models"]["refit"]["metrics"].update(perplexity=math.inf, agreement=0.123456789)
    card = ModelCard(model_card(made(tree)))
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {"kl": 0.871, "agreement": 0.12346}
    assert (found["kl"].dataset_name, found["kl"].dataset_type) == ("text.txt", "text")
    for figures in tree["models"].values():
        figures["metrics"].update(perplexity=None, kl=None, agreement=None)
    assert "model-index" not in model_card(made(tree))


def test_card_keeps_paths_and_markup_out():
    summary = searched()
    del summary["origin"]
    summary["model"] = "/home/someone/secret/we`ird\n.gguf"
    summary["steps"]["text"]["source"] = "/home/someone/secret/<b>_text_.txt"
    card = model_card(made(summary))
    fields, body = front_matter(card)
    assert "base_model" not in fields
    assert "datasets" not in fields
    assert "secret" not in card
    assert "`we'ird .gguf`" in body
    assert "\\<b\\>\\_text\\_.txt" in body


@pytest.mark.parametrize("prompt", ["plain", "with \"both\" 'quotes'", "back\\slash\nand newline", "naïve 🙂", NASTY])
@pytest.mark.parametrize("chat", [False, True])
def test_loading_code_is_python(prompt, chat):
    summary = searched() | {"chat": chat}
    summary["prompts"] = [prompt]
    code = loading_code(made(summary))
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert prompt in strings


@pytest.mark.parametrize("chat", [False, True])
def test_loading_code_asks_as_the_model_expects(chat, tiny_llama, tmp_path, capsys):
    """A chat model's card gave the question without its chat template."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    if chat:
        (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    summary = searched() | {"chat": chat, "prompts": ["the river"]}
    code = loading_code(made(summary))
    given = json.dumps(made(summary).export.folder)
    assert given in code
    exec(code.replace(given, repr(str(folder))), names := {})
    text = names["tokenizer"].decode(names["inputs"]["input_ids"][0], skip_special_tokens=True)
    assert ("[user]" in text) == chat
    assert "river" in text
    assert capsys.readouterr().out
