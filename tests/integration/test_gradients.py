"""Output gradients that go back block by block, against automatic differentiation of the whole model."""

import pytest
import torch
from tests.tiny.checkpoint import stream_over, tiny_checkpoint
from tests.tiny.stages import run_stages

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.streaming.gradients import output_gradients
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.outputs import output_projection

LENGTH = 24
TOKENS = torch.randint(3, 250, (5, LENGTH), generator=torch.Generator().manual_seed(0))


def second_moments(checkpoint: Checkpoint) -> dict[tuple[int, str], torch.Tensor]:
    """E[g gᵀ] of the gradient of the summed loss at every module's output, from the model as transformers loads it.

    In front of a norm, the gradient is that of the norm's output before the gain.
    """
    model = checkpoint.load(torch.float32)
    outputs: dict[tuple[int, str], torch.Tensor] = {}
    gains: dict[tuple[int, str], torch.Tensor] = {}
    for block, layer in enumerate(model.get_submodule(checkpoint.family.layers)):
        for kind in checkpoint.family.kinds:
            projection = output_projection(layer, checkpoint.family, kind)
            projection.weight.requires_grad_(True)
            norm = checkpoint.family.module(kind).post_norm
            last = projection if norm is None else getattr(layer, norm)
            gains[block, kind] = torch.ones(()) if norm is None else last(torch.ones(projection.out_features)).detach()
            last.register_forward_hook(lambda _, __, out, key=(block, kind): outputs.__setitem__(key, out))
    logits = model(input_ids=TOKENS, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum")
    found = torch.autograd.grad(loss, list(outputs.values()))
    moments = {}
    for key, gradient in zip(outputs, found, strict=True):
        g = gradient.flatten(0, 1) * gains[key]
        moments[key] = g.T @ g / TOKENS.numel()
    return moments


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2", "qwen2"])
@pytest.mark.parametrize("place", ["file", "device"])
def test_gradients_are_those_of_the_whole_model(model_type, place, tiny_folder, tmp_path):
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    memory = HiddenMemory(tmp_path, place)
    stream = stream_over(checkpoint, TOKENS, 2 * LENGTH, memory=memory)
    assert stream.hidden.place == place
    expected = second_moments(checkpoint)
    seen = []
    for block, moments in output_gradients(stream, TOKENS, memory):
        for kind, S in moments.items():
            torch.testing.assert_close(S, expected[block, kind], rtol=1e-3, atol=1e-5 * float(S.abs().max()))
            seen.append((block, kind))
    assert set(seen) == set(expected)
    assert [block for block, _ in seen] == sorted((block for block, _ in seen), reverse=True)
    assert list(tmp_path.iterdir()) == [], "nothing stays on the disk"


def test_the_loss_decides_what_goes_first_and_not_what_remains(tmp_path, make_run):
    """An output that the loss can't feel costs nothing: channels that only feed it go first."""
    folder = tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)
    plain, weighted = (
        run_stages(make_run(folder, tmp_path / gradients, f"database.metric={gradients}"), "database").database
        for gradients in ("output", "loss")
    )
    assert not (tmp_path / "output" / "stages" / "gradients").exists()
    assert weighted.stage.key["settings"]["database.metric"] == "loss"
    level = plain.reader.modules[1].levels[6]
    assert not torch.equal(*(found.reader.columns(0, "mlp", level) for found in (plain, weighted)))
    assert plain.reader.error(0, "mlp", level) < weighted.reader.error(0, "mlp", level) < 1
