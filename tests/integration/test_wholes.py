"""Models with a vision tower: their text part is pruned, and everything else is as it was."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.families.test_without_package import run_elsewhere
from tests.tiny.damage import edit_weights
from tests.tiny.masked import logits
from tests.tiny.models import tiny_config, tiny_model
from tests.tiny.stages import run_stages
from tests.tiny.tokenizer import tiny_tokenizer
from tests.tiny.vocabulary import byte_level, fast
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.whole import text_name
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.runtime.errors import CheckpointError

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 48,
    "num_position_embeddings": 16,
}
QWEN_TOKENS = {"image_token_id": 299, "video_token_id": 298, "vision_start_token_id": 297, "vision_end_token_id": 296}
GEMMA4_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}
WHOLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 299}),
    "mistral3": ("ministral3", {"vision_config": {**VISION, "head_dim": 8}, "image_token_index": 299}),
    "qwen3_5": ("qwen3_5_text", {"vision_config": QWEN_VISION, **QWEN_TOKENS}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"vision_config": QWEN_VISION, **QWEN_TOKENS}),
    "gemma4": ("gemma4_text", {"vision_config": GEMMA4_VISION, "audio_config": None, "image_token_id": 299}),
}
"""Text part and further settings of every tiny model with a vision tower."""


def tiny_whole(folder: Path, model_type: str, tokenizer: Any = None, **overrides: Any) -> Path:
    """Save a tiny random model with a vision tower and a tokenizer; returns the folder.

    Args:
        folder: Target folder.
        model_type: One of `WHOLES`.
        tokenizer: Its tokenizer; None is one without merges.
        overrides: Settings of the text part that differ.
    """
    text, settings = WHOLES[model_type]
    config = tiny_config(text, **overrides)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(
            model_type, text_config=config, tie_word_embeddings=bool(config.tie_word_embeddings), **settings
        )
    )
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
    alone = tiny_model(text, **overrides)
    whole.model.language_model.load_state_dict(alone.model.state_dict())
    whole.lm_head.load_state_dict(alone.lm_head.state_dict())
    whole.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 16}', encoding="utf-8")
    return folder


ELSEWHERE = """
import shutil
from transformers import AutoModelForImageTextToText

ids, found = torch.tensor(json.loads(sys.argv[1])), []
for place in sys.argv[2:]:
    model = AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=True, dtype=torch.float32).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    model.save_pretrained("again")
    again = AutoModelForImageTextToText.from_pretrained("again", trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, logits)
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    found.append({"logits": logits.tolist(), "made": made.shape})
    shutil.rmtree("again")
assert not any(module.partition(".")[0] == "darwinlm" for module in sys.modules)
print(json.dumps(found))
"""
IMAGES = {
    "gemma3": {"pixel_values": (1, 3, 16, 16)},
    "mistral3": {"pixel_values": (1, 3, 16, 16)},
    "qwen3_5": {"pixel_values": (16, 96)},
    "qwen3_5_moe": {"pixel_values": (16, 96)},
    "gemma4": {"pixel_values": (1, 16, 48)},
}
GRID = {"image_grid_thw": [[1, 4, 4]]}
PLACES = [[[row, column] for row in range(4) for column in range(4)]]
SIZES = {
    "mistral3": {"image_sizes": [[16, 16]]},
    "qwen3_5": GRID,
    "qwen3_5_moe": GRID,
    "gemma4": {"image_position_ids": PLACES},
}


@pytest.fixture(scope="module")
def finish(make_run, tmp_path_factory) -> Callable[[str], tuple[str, Path, Path]]:
    """Model type, folder of the original and output folder of a run on it, made once."""

    @cache
    def made(model_type: str) -> tuple[str, Path, Path]:
        folder = tmp_path_factory.mktemp("whole")
        source = tiny_whole(folder / "source", model_type)
        keep = "50%" if model_type == "qwen3_5_moe" else "60%"  # at 60 %, its layers stay equal
        run_stages(make_run(source, folder / "out", keep=keep), "report")
        return model_type, source, folder / "out"

    return made


@pytest.fixture(scope="module", params=WHOLES)
def finished(request: pytest.FixtureRequest, finish) -> tuple[str, Path, Path]:
    return finish(request.param)


def loaded(folder: Path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_text_part_is_smaller_and_the_rest_unchanged(finished):
    model_type, source, out = finished
    dense, pruned = loaded(source), loaded(out / "model")
    assert isinstance(pruned, type(dense))
    assert pruned.config.text_config.model_type == f"darwinlm_{WHOLES[model_type][0]}"
    others = {name: weight for name, weight in dense.state_dict().items() if not is_text(name)}
    assert others
    state = pruned.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in others.items())
    assert {name for name in state if not is_text(name)} == set(others)
    summary = json.loads((out / "summary.json").read_text())
    assert block_parameters(pruned, "model.language_model.layers") == summary["budget"]["block_params"]
    assert (out / "model" / "preprocessor_config.json").is_file()
    assert "AutoModelForImageTextToText" in (out / "model" / "README.md").read_text()


def is_text(name: str) -> bool:
    return name.startswith(("model.language_model.", "lm_head."))


def test_the_text_part_alone_computes_the_same(finished):
    _, _, out = finished
    ids = torch.randint(3, 290, (2, 12), generator=torch.Generator().manual_seed(0))
    alone = Checkpoint.open(out / "model").load(torch.float32)
    assert torch.equal(logits(loaded(out / "model"), ids), logits(alone, ids))


def test_images_are_seen(finished):
    """The pruned model runs on an image, which changes its logits."""
    model_type, _, out = finished
    model = loaded(out / "model")
    ids = torch.tensor([[5, *[299] * 4, 6, 7]])
    sizes = {name: torch.tensor(value) for name, value in SIZES.get(model_type, {}).items()}
    seen = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        pixels = {name: torch.randn(shape, generator=generator) for name, shape in IMAGES[model_type].items()}
        kinds = {} if model_type in ("gemma3", "mistral3") else {"mm_token_type_ids": (ids == 299).int()}
        kinds |= {"token_type_ids": (ids == 299).int()} if model_type == "gemma3" else {}
        with torch.no_grad():
            seen.append(model(input_ids=ids, **pixels, **sizes, **kinds).logits)
    assert (seen[0] - seen[1]).abs().max() > 1e-4


def test_they_load_where_the_package_is_not_installed(finish, tmp_path):
    models = [finish(model_type)[2] / "model" for model_type in WHOLES]
    ids = torch.randint(3, 290, (2, 12), generator=torch.Generator().manual_seed(0))
    found = run_elsewhere(ELSEWHERE, [json.dumps(ids.tolist()), *map(str, models)], tmp_path)
    for one, model in zip(found, models, strict=True):
        assert torch.equal(torch.tensor(one["logits"]), logits(loaded(model), ids))
        assert one["made"] == [2, 16]


@pytest.mark.parametrize("model_type", ["gemma4", "qwen3_5"])
def test_a_smaller_vocabulary_keeps_the_tokens_of_images(make_run, tmp_path, model_type):
    """And per-layer embeddings (Gemma 4) are cut with the others."""
    rows = {"vocab_size_per_layer_input": 512} if model_type == "gemma4" else {}
    source = tiny_whole(tmp_path / "source", model_type, fast(byte_level()), vocab_size=512, **rows)
    run_stages(make_run(source, tmp_path / "out", "vocabulary=75%"), "report")
    dense, pruned = loaded(source), loaded(tmp_path / "out" / "model")
    config = pruned.config
    assert config.text_config.vocab_size == pruned.lm_head.out_features == 384
    if model_type == "gemma4":
        assert pruned.model.language_model.embed_tokens_per_layer.num_embeddings == 384
        assert config.text_config.vocab_size_per_layer_input == 384
    before, after = (AutoTokenizer.from_pretrained(each) for each in (source, tmp_path / "out" / "model"))
    image, was = config.image_token_id, dense.config.image_token_id
    assert image != was
    assert after.convert_ids_to_tokens(image) == before.convert_ids_to_tokens(was)
    assert torch.equal(pruned.get_input_embeddings().weight[image], dense.get_input_embeddings().weight[was])
    ids = torch.tensor([[5, *[image] * 4, 6]])
    sizes = {name: torch.tensor(value) for name, value in SIZES[model_type].items()}
    pixels = {name: torch.randn(shape) for name, shape in IMAGES[model_type].items()}
    kinds = {"mm_token_type_ids": (ids == image).int()}
    with torch.no_grad():
        assert pruned(input_ids=ids, **pixels, **sizes, **kinds).logits.isfinite().all()


@pytest.mark.parametrize("text", [None, {}, {"model_type": 7}])
def test_a_configuration_without_a_text_part_is_refused(tmp_path, text):
    folder = tiny_whole(tmp_path / "source", "gemma3")
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(plain | {"text_config": text}))
    with pytest.raises(CheckpointError, match=r"a gemma3 model has a language model, but text_config doesn't describe"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("how", ["missing", "finite"])
def test_parts_around_the_language_model_are_checked_before_the_work(make_run, tmp_path, how):
    """They are saved again at the end; transformers would fill them up with random numbers."""
    folder = tiny_whole(tmp_path / "source", "gemma3")

    def change(tensors):
        name = next(name for name in tensors if "vision" in name)
        tensors.pop(name) if how == "missing" else tensors[name].view(-1)[0].fill_(float("nan"))

    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match="lacks the tensor" if how == "missing" else "finite"):
        run_stages(make_run(folder, tmp_path / "out"), "report")
    assert not (tmp_path / "out" / "stages").exists()


def test_weights_without_a_text_part_are_refused(tmp_path):
    folder = tiny_whole(tmp_path / "source", "gemma3")
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if text_name(name) is not None])
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.embed_tokens"):
        Checkpoint.open(folder)
