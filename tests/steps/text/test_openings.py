"""Openings: the last tokens of sequences begin texts of their own, which are read as if nothing preceded them."""

import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint, tiny_text
from tests.tiny.models import FAMILIES
from tests.tiny.stages import result, run_stages
from tests.tiny.tokenizer import tiny_tokenizer

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.objective.next_token import LANGUAGE
from darwinlm.model.walk import items
from darwinlm.model.walk.decoder import Decoder
from darwinlm.steps.text.openings import are_useful, with_openings


def random_tokens(*shape):
    return torch.randint(5, 250, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("length", "share", "first"),
    [
        (512, 0.0625, [0, 480, 488, 496, 504]),
        (128, 0.0625, [0, 120]),
        (64, 0.25, [0, 48, 56]),
        (64, 0.0625, []),
        (512, 0.0, []),
    ],
)
def test_a_share_of_each_sequence_begins_texts(length, share, first):
    tokens = random_tokens(3, length)
    found = with_openings(tokens, share)
    assert torch.equal(items.ids(found), tokens), "the text stays"
    assert [row.nonzero().flatten().tolist() for row in found < 0] == [first] * 3


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_opening_is_read_alone_where_they_are_useful(family, tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path, family))
    if not are_useful(checkpoint.family, tiny_tokenizer()):
        assert checkpoint.family.mixer or checkpoint.family.attention.sinks
        return
    tokens = random_tokens(2, 64)
    decoder = Decoder(checkpoint.load(torch.float32), checkpoint.family)
    streams = [*decoder.through([with_openings(tokens, 0.25)])]
    expected = [
        *decoder.through([tokens[:, :48]]),
        *decoder.through([tokens[:, 48:56]]),
        *decoder.through([tokens[:, 56:]]),
    ]
    torch.testing.assert_close(streams[0], torch.cat(expected, 1), rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_loss_is_that_of_texts_alone(tmp_path):
    """The first token of an opening isn't predicted from the text before it."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path))
    decoder = Decoder(checkpoint.load(torch.float32), checkpoint.family)
    tokens = random_tokens(2, 64)
    parts = [tokens[:, :56], tokens[:, 56:]]
    hidden = [next(iter(decoder.through([part]))).detach() for part in parts]
    whole = torch.cat(hidden, 1).flatten(0, 1)
    found = LANGUAGE.sensitivity(decoder, whole, with_openings(tokens, 0.125)).view(2, 64, -1)
    alone = [
        LANGUAGE.sensitivity(decoder, one.flatten(0, 1), part).view(2, part.shape[1], -1)
        for one, part in zip(hidden, parts, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(alone, 1))


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_text_of_the_pruning_and_of_the_search_has_openings(adds_bos, make_run, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    tiny_tokenizer(add_bos=adds_bos).save_pretrained(folder)
    text = tiny_text(tmp_path / "text.txt", documents=400)
    made = result(make_run(folder, tmp_path / "out", "text.sequence_length=128", text=text), "text")
    opened = {purpose for purpose, part in made.items() if items.is_marked(part.tokens)}
    assert opened == (set() if adds_bos else {"calibration", "fitness"})


def test_a_model_is_pruned_with_openings(make_run, tmp_path, tiny_llama):
    text = tiny_text(tmp_path / "text.txt", documents=400)
    run = make_run(tiny_llama, tmp_path / "out", "text.sequence_length=128", "refit.tokens=1024", text=text)
    made = run_stages(run, "report")
    assert items.is_marked(made.text["calibration"].tokens)
    assert 0 < made.report.saved.kl < 10
