"""Inputs of models that read are those that sentence-transformers makes."""

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tests.tiny.readers import tiny_embedder, tiny_scorer
from transformers import AutoTokenizer

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import DataError, ModelError
from darwinlm.steps.text.encoder import ItemEncoder
from darwinlm.steps.text.reading import encoder_of
from darwinlm.steps.text.samples import Sample
from darwinlm.steps.text.text_settings import TextSettings

SHORT = Sample("river stone", "light winter garden")
LONG = Sample("river stone", "paper bridge music silver forest window harbour " * 12)
ROLES = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}answer:"
PARTS = "{% for m in messages %}<{{ m['role'] }}>{{ m.content[0].text }}</>{% endfor %}answer:"
PROMPTED = "{% if add_generation_prompt %}say {% endif %}" + ROLES


def encoder_for(folder, length: int = 512) -> ItemEncoder:
    return encoder_of(Checkpoint.open(folder), TextSettings(source="pairs.jsonl", sequence_length=length))


def saved(folder, template: str | None, **given) -> CrossEncoder:
    """A cross-encoder of sentence-transformers, saved in the folder."""
    bare = tiny_scorer(folder.parent / "bare")
    if template is not None:
        (bare / "chat_template.jinja").write_text(template, encoding="utf-8")
    model = CrossEncoder(str(bare), device="cpu", max_length=64, **given)
    model.save_pretrained(str(folder))
    return model


def inputs(model, given, **more) -> list[int]:
    tokens: torch.Tensor = model.preprocess([given], **more)["input_ids"][0]
    return tokens.tolist()


@pytest.mark.parametrize("sample", [SHORT, LONG])
@pytest.mark.parametrize("template", [None, ROLES, PARTS])
def test_a_pair_is_what_the_cross_encoder_reads(sample, template, tmp_path):
    """Through the chat template, if there is one, also if that knows nothing of queries; at most 64 tokens."""
    model = saved(tmp_path / "model", template)
    found = encoder_for(tmp_path / "model").text(sample)
    assert found == inputs(model, (sample.query, sample.text))
    assert len(found) <= 64
    assert (len(found) == 64) == (sample is LONG)


def test_arguments_of_the_template_are_the_folders(tmp_path):
    model = saved(tmp_path / "model", PROMPTED, prompts={"judge": "weigh: "}, default_prompt_name="judge")
    model[0].processing_kwargs = {"chat_template": {"add_generation_prompt": True}}
    model.save_pretrained(str(tmp_path / "model"))
    encoder = encoder_for(tmp_path / "model")
    assert encoder.text(SHORT) == inputs(model, (SHORT.query, SHORT.text), prompt="weigh: ")
    assert encoder.tokenizer.decode(encoder.text(SHORT)).startswith("say <system>weigh: </><query>river stone</>")


def test_a_plain_folder_joins_pairs_as_its_tokenizer_does(tmp_path):
    """Its chat template is that of the language model that it was made from."""
    folder = tiny_scorer(tmp_path / "plain")
    (folder / "chat_template.jinja").write_text(ROLES, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert encoder_for(folder).text(SHORT) == tokenizer(SHORT.query, SHORT.text)["input_ids"]


@pytest.mark.parametrize("template", [None, ROLES])
def test_queries_and_texts_of_an_embedder_are_what_it_reads(template, tmp_path):
    folder = tiny_embedder(tmp_path)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        settings = folder / "sentence_bert_config.json"
        text = settings.read_text(encoding="utf-8")
        message = '"message": {"method": "forward", "method_output_name": "last_hidden_state", "format": "flat"}, '
        settings.write_text(text.replace('"modality_config": {', '"modality_config": {' + message), encoding="utf-8")
    model, encoder = SentenceTransformer(str(folder), device="cpu"), encoder_for(folder)
    assert ("message" in model[0].modality_config) == (template is not None)
    for sample in (SHORT, LONG):
        assert encoder.query(sample) == inputs(model, sample.query, prompt=model.prompts["query"])
        assert encoder.text(sample) == inputs(model, sample.text)


def test_a_template_that_leaves_the_text_out_is_refused(tmp_path):
    saved(tmp_path / "model", ROLES)
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ModelError, match=r"leaves out the message of the document: .*text\.template"):
        encoder_for(tmp_path / "model").text(SHORT)


def test_a_query_that_leaves_no_room_is_refused(tmp_path):
    saved(tmp_path / "model", ROLES)
    with pytest.raises(DataError, match=r"a query of \d+ tokens with its template doesn't fit into sequences of 64"):
        encoder_for(tmp_path / "model").text(Sample(LONG.text, "light"))
