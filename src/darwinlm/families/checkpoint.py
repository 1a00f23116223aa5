"""A dense (or already pruned) model on disk: configuration, tokenizer, and tensors read one at a time.

Hub ids are downloaded to the hub's own cache, GGUF files are dequantised once into a folder; from then on everything
reads a local folder of safetensors shards, so no stage needs more of the weights in memory than it uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from darwinlm.artifact import digest_of, file_digest
from darwinlm.errors import CheckpointError, ModelError, first_line
from darwinlm.families.family import PREFIX, Family, families, family_of
from darwinlm.families.layout import Parts, tensor_parts
from darwinlm.families.pruned import pruned_classes
from darwinlm.families.sentence_piece import check_sentence_piece

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A local folder with config.json, safetensors shards and a tokenizer.

    Attributes:
        folder: where the files lie.
        config: its transformers configuration.
        family: how its architecture is described.
        source: what the user called it.
    """

    folder: Path
    config: Any
    family: Family
    source: str

    @classmethod
    def open(cls, folder: Path, source: str | None = None, *, allow_remote_code: bool = False) -> Checkpoint:
        """Open a folder.

        Raises:
            ModelError: the folder holds no readable model or wants to run its own code.
            FamilyError: its architecture isn't known.
            CheckpointError: shards are missing or reach outside the folder.
        """
        checkpoint = cls.describe(folder, source, allow_remote_code=allow_remote_code)
        missing = [shard for shard in sorted(set(checkpoint.shards.values())) if not (folder / shard).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}: fetch the model again")
        checkpoint._check_tensors()
        return checkpoint

    @classmethod
    def describe(cls, folder: Path, source: str | None = None, *, allow_remote_code: bool = False) -> Checkpoint:
        """Read a folder's configuration alone; whether it holds weights isn't asked. Raises as `open`."""
        path = folder / "config.json"
        if not path.is_file():
            raise ModelError(f"{folder} holds no model: there is no config.json in it")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} isn't JSON ({error}): fetch the model again") from error
        model_type = str(plain.get("model_type", "")) if isinstance(plain, dict) else ""
        if not model_type:
            raise CheckpointError(f"{path} names no model_type: this isn't a transformers model")
        config = _read_config(folder, model_type, own_code="auto_map" in plain, allow_remote_code=allow_remote_code)
        return cls(folder, config, family_of(config), source or str(folder))

    def _check_tensors(self) -> None:
        """Compare names and shapes in the shards' headers with what the configuration asks for."""
        model = self.skeleton()
        tied = getattr(model, "_tied_weights_keys", None) or {}
        shards = {shard: _shapes_in(self.folder / shard) for shard in sorted(set(self.shards.values()))}
        stored = {name: shards[shard][name] for name, shard in self.shards.items() if name in shards[shard]}
        parts = {name: parts for name, parts in self.tensors.items() if all(part in stored for part in parts.flat())}
        found = {name: part.shape(stored.__getitem__) for name, part in parts.items()}
        for name, tensor in model.state_dict().items():
            if name not in found:
                if name in tied and getattr(self.config, "tie_word_embeddings", False):
                    continue
                raise CheckpointError(
                    f"{self.folder} lacks the tensor {name}, which its config.json asks for: fetch the model again"
                )
            if found[name] != tuple(tensor.shape):
                raise CheckpointError(
                    f"{self.folder}: the tensor {name} is {_sizes(found[name])}, but config.json asks for "
                    f"{_sizes(tuple(tensor.shape))}: fetch the model again"
                )

    @cached_property
    def shards(self) -> dict[str, str]:
        """Name of the shard that holds each tensor."""
        index = self.folder / INDEX
        if index.is_file():
            try:
                shards = {
                    str(k): str(v) for k, v in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
                }
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index} is damaged ({error}): fetch the model again") from error
            for shard in set(shards.values()):
                if Path(shard).name != shard:
                    raise CheckpointError(f"{index} points outside its folder ({shard}): don't trust this model")
            return shards
        single = self.folder / SINGLE
        if not single.is_file():
            raise CheckpointError(
                f"{self.folder} holds no safetensors weights ({SINGLE} or {INDEX}): save the model as safetensors"
            )
        return dict.fromkeys(_names_in(single), SINGLE)

    @cached_property
    def tensors(self) -> dict[str, Parts]:
        """What is stored for each tensor of the model, by the model's name for it."""
        return tensor_parts(self.family, self.shards)

    @cached_property
    def digest(self) -> str:
        """Hash of the configuration and of all weights."""
        files = {shard: file_digest(self.folder / shard) for shard in sorted(set(self.shards.values()))}
        return digest_of({"config": self.plain_config(), "files": files})

    def plain_config(self) -> dict[str, Any]:
        """The configuration without what says where it lies or who wrote it."""
        tree: dict[str, Any] = self.config.to_dict()
        return {name: value for name, value in tree.items() if name not in ("_name_or_path", "transformers_version")}

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return int(self.config.num_hidden_layers)

    def block_prefix(self, block: int) -> str:
        """Start of the tensor names of one block, with the dot."""
        return f"{self.family.layers}.{block}."

    def read(self, prefix: str = "", *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Read all tensors whose name in the model starts with `prefix`, which is cut off.

        Args:
            prefix: start of the names.
            dtype: what they are turned into; None keeps their own.

        Raises:
            CheckpointError: a shard is damaged.
        """
        wanted = {name: parts for name, parts in self.tensors.items() if name.startswith(prefix)}
        by_shard: dict[str, list[str]] = {}
        for parts in wanted.values():
            for name in parts.flat():
                by_shard.setdefault(self.shards[name], []).append(name)
        stored: dict[str, torch.Tensor] = {}
        for shard, names in by_shard.items():
            try:
                with safe_open(self.folder / shard, framework="pt") as stream:
                    stored |= {name: stream.get_tensor(name) for name in names}
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder / shard} is damaged ({error}): fetch the model again") from error
        found = {}
        for name, parts in wanted.items():
            tensor = parts.join(stored.__getitem__)
            for part in parts.flat():
                del stored[part]
            found[name.removeprefix(prefix)] = tensor if dtype is None else tensor.to(dtype)
        return found

    def rows(self, name: str, index: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """Some rows of one tensor; the others aren't read.

        Raises:
            CheckpointError: a shard is damaged.
        """
        shard = self.folder / self.shards[name]
        try:
            with safe_open(shard, framework="pt") as stream:
                rows: torch.Tensor = stream.get_tensor(name).index_select(0, index).to(dtype)
                return rows
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{shard} is damaged ({error}): fetch the model again") from error

    def names_outside_blocks(self) -> Iterator[str]:
        """Names of the tensors that belong to no block: embedding, final norm, head."""
        return (name for name in self.tensors if not name.startswith(self.family.layers + "."))

    @property
    def dtype(self) -> torch.dtype:
        """Element type that the configuration states, float32 where it states none."""
        return getattr(self.config, "dtype", None) or torch.float32

    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            ModelError: the folder holds none that can be read.
            CheckpointError: transformers would read it as one of another kind.
        """
        try:
            found = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:
            raise no_tokenizer(self.folder, error) from error
        check_sentence_piece(self.folder, found)
        return found

    def load(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """The whole model, ready for inference.

        Raises:
            CheckpointError: the weights don't fit the configuration.
        """
        try:
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, local_files_only=True)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"can't load the weights in {self.folder}: {first_line(error)}") from error
        return model.eval().requires_grad_(requires_grad=False).to(device)

    def skeleton(self) -> Any:
        """The model without weights: every parameter on the meta device, buffers that aren't saved in place."""
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(self.config)
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError, KeyError, StrictDataclassError) as error:
            raise CheckpointError(f"{self.folder / 'config.json'} makes no model: {first_line(error)}") from error
        for module in model.modules():
            own = {f"{name}" for name, _ in module.named_buffers(recurse=False)}
            if own & module._non_persistent_buffers_set:
                for name in own:
                    module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
                model._init_weights(module)
        model.tie_weights()
        return model.eval().requires_grad_(requires_grad=False)


def _read_config(folder: Path, model_type: str, *, own_code: bool, allow_remote_code: bool) -> Any:
    family = families().get(model_type.removeprefix(PREFIX))
    if family is not None:
        # Families that transformers knows are read by its classes: Phi-3 still carries code from before it did.
        own_code = False
        if model_type.startswith(PREFIX):
            pruned_classes(*family.class_names)
    if own_code and not allow_remote_code:
        raise ModelError(
            f"{folder} wants to run Python code of its own: look at it, then pass --allow-remote-code if you trust it"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=own_code, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, StrictDataclassError) as error:
        if "does not recognize this architecture" in str(error):
            family_of(type("Unknown", (), {"model_type": model_type}))
        raise CheckpointError(f"can't read {folder / 'config.json'}: {first_line(error)}") from error


def _names_in(shard: Path) -> list[str]:
    try:
        with safe_open(shard, framework="pt") as stream:
            return list(stream.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{shard} is damaged ({error}): fetch the model again") from error


def _shapes_in(shard: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(shard, framework="pt") as stream:
            return {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{shard} is damaged ({error}): fetch the model again") from error


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def no_tokenizer(where: Path | str, error: Exception) -> ModelError:
    """What to raise where a model has no tokenizer that can be read."""
    return ModelError(
        f"{where} holds no tokenizer that can be read ({first_line(error)}): put the files of the original model's"
        " tokenizer beside the weights, such as tokenizer.json and tokenizer_config.json"
    )
