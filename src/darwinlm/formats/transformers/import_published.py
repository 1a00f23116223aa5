"""The paper's published checkpoints: layers of their own sizes, which their configuration doesn't describe.

The sizes of every layer are read from the shapes of its weights, which don't change. Code in the checkpoint never runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from darwinlm.formats.format import check_target
from darwinlm.formats.logits_check import ExportReport
from darwinlm.formats.transformers.transformers_format import TRANSFORMERS, write_folder
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.config import read_config
from darwinlm.model.families.family import PREFIX, Family, families
from darwinlm.model.families.shapes import head_dim
from darwinlm.model.families.stored import Stored, is_buffer
from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.surgery.layer_table import ATTENTION_HEADS, KV_HEADS, layer_table
from darwinlm.model.surgery.smaller_config import smaller_config
from darwinlm.runtime.errors import CheckpointError, ModelError, first_line
from darwinlm.runtime.limits import shorten
from darwinlm.runtime.lock import hold_target

SHARING = ("first", "spread")
"""How query heads share KV heads if their number isn't a multiple. `first`: each has the KV head that it would have
if the last query heads had been removed. `spread`: they are shared out as evenly as possible."""
SIZES = ("hidden_size", ATTENTION_HEADS, "num_hidden_layers")
OF_THEIR_CLASS = ("model_type", "architectures", "auto_map", "per_layer_config", "transformers_version")
LAYER = re.compile(r"model\.layers\.\d+\.(.+)")
WEIGHTS = frozenset(f"self_attn.{name}_proj.weight" for name in "qkvo") | {
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    *(f"{name}_layernorm.weight" for name in ("input", "post_attention")),
}
BIASES = frozenset(f"self_attn.{name}_proj.bias" for name in "qkv")
OTHERS = "only the published DarwinLM models (Llama and Qwen2, with layers of different sizes) can be imported"

Shapes = Mapping[str, tuple[int, ...]]


def import_model(
    folder: Path,
    out: Path,
    *,
    sharing: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> ExportReport:
    """Save a published DarwinLM model with a configuration that describes its layers.

    `out` appears by rename, after a check. `sharing` is one of `SHARING`.

    Raises:
        ModelError: There is no model, or not one of these.
        CheckpointError: Its weights are damaged, or don't tell how query heads share KV heads.
        StorageError: The disk is full.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no model at '{folder}': give the folder of a published DarwinLM model")
    check_target(TRANSFORMERS, out, folder, overwrite=overwrite)
    checkpoint = open_published(folder, sharing=sharing)
    say("reading")
    report = ExportReport("import", str(out), details={"family": checkpoint.family.model_type})
    with hold_target(out):
        return write_folder(checkpoint, out, report, say=say)


def open_published(folder: Path, *, sharing: str | None = None) -> Checkpoint:
    """A published checkpoint with the configuration of our class. Raises as `import_model`."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no model: there is no config.json in it")
    raw = read_config(path)
    if str(raw.get("model_type", "")).startswith(PREFIX):
        raise ModelError(f"{folder} is already a darwinlm model and needs no import")
    for name in SIZES:
        if not isinstance(raw.get(name), int):
            raise CheckpointError(f"{path} doesn't give {name}: fetch the model again")
    shapes = Stored(folder).shapes()
    family = _family(folder, shapes)
    plain = {name: value for name, value in raw.items() if name not in OF_THEIR_CLASS}
    plain.setdefault("head_dim", raw["hidden_size"] // raw[ATTENTION_HEADS])
    try:
        config = AutoConfig.for_model(family.model_type, **plain)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(f"{path} describes no {family.model_type} model: {first_line(error)}") from error
    stock = Checkpoint(folder, config, family, str(folder))
    modules = {
        (block, sizes.kind): sizes
        for block in range(stock.n_blocks)
        for sizes in _block_sizes(stock, shapes, block, sharing)
    }
    table = layer_table(family, stock.n_blocks, modules)
    uniform = {name: getattr(config, name) for name in (family.mlp.width, ATTENTION_HEADS, KV_HEADS)}
    model_type = raw.get("model_type")
    equal = all(row == uniform for row in table.values())
    if model_type in families() and (model_type != family.model_type or equal):
        raise ModelError(f"{folder} is a {model_type} model and needs no import: {OTHERS}")
    return replace(stock, config=smaller_config(stock, table))


def _family(folder: Path, shapes: Shapes) -> Family:
    """Qwen2 if queries have biases, else Llama. Raises ModelError if layers hold other tensors."""
    matches = (LAYER.match(name) for name in shapes if not is_buffer(name))
    inside = {match[1] for match in matches if match}
    unknown = inside - WEIGHTS - BIASES
    if unknown or not inside:
        reason = f"its layers hold {shorten(min(unknown))}" if unknown else "it has no layers named model.layers"
        raise ModelError(f"{folder}: {reason}, but {OTHERS}")
    return families()["qwen2" if inside & BIASES else "llama"]


def _block_sizes(stock: Checkpoint, shapes: Shapes, block: int, sharing: str | None) -> tuple[LayerSizes, LayerSizes]:
    """Sizes of the attention and the MLP of a block, from the shapes of its weights. Raises CheckpointError."""
    columns = head_dim(stock.config)

    def size(name: str, axis: int) -> int:
        shape = shapes.get(f"{stock.block_prefix(block)}{name}.weight", (0, 0))
        return shape[axis] if len(shape) == 2 else 0

    query, key, width = size("self_attn.o_proj", 1), size("self_attn.k_proj", 0), size("mlp.down_proj", 1)
    heads, groups = query // columns, key // columns
    if query % columns or key % columns or bool(heads) != bool(groups):
        raise CheckpointError(
            f"{stock.folder}: block {block} has {query} rows of queries and {key} of keys, which aren't whole heads of "
            f"{columns} columns: fetch the model again"
        )
    owners: tuple[int, ...] | None = None
    if heads and heads % groups:
        share = max(1, stock.config.num_attention_heads // stock.config.num_key_value_heads)
        known = {
            "first": tuple(min(head // share, groups - 1) for head in range(heads)),
            "spread": tuple(head * groups // heads for head in range(heads)),
        }
        if sharing not in known:
            raise CheckpointError(
                f"block {block}: {heads} query heads over {groups} KV heads, and their assignment isn't known: give "
                f"--query-groups {' or '.join(SHARING)}, depending on the model's code"
            )
        owners = known[sharing]
    attention = LayerSizes("attention", query, groups=groups, head_dim=columns, even=owners is None, owners=owners)
    return attention, LayerSizes("mlp", width)
