"""A dense or pruned model on disk: configuration, tokenizer, and tensors that are read one at a time.

Hub ids are downloaded to the hub's cache, and GGUF files are dequantised once into a folder. So all stages read a local
folder of safetensors shards, and none loads more weights than it uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from darwinlm.model.families.config import open_config, read_config
from darwinlm.model.families.empty_model import empty_model
from darwinlm.model.families.encoders import POOLER, check_encoder, set_separator
from darwinlm.model.families.ending import ending_of, name_without_head, with_ending
from darwinlm.model.families.family import Family, family_of
from darwinlm.model.families.files import (
    CARD,
    GENERATION,
    LICENCES,
    PROCESSORS,
    WEIGHTS,
    check_files,
    is_named,
    model_files,
)
from darwinlm.model.families.generation import generation_of, left_behind
from darwinlm.model.families.loading import check_finite, load_tokenizer, tokenizer_digest
from darwinlm.model.families.origin import origin_of
from darwinlm.model.families.quantised import WeightFormat, formats_of
from darwinlm.model.families.sentence_transformers import (
    carried_files,
    longest_input,
    messages_of,
    model_inside,
    pooling_of,
    prompts_of,
)
from darwinlm.model.families.shard_reading import Empty, in_memory
from darwinlm.model.families.stored import Stored, matches
from darwinlm.model.families.stored_checks import check_tensors
from darwinlm.model.families.stored_parts import Parts, tensor_parts
from darwinlm.model.families.whole import load_whole, text_config, text_name, text_type
from darwinlm.runtime.artifact import digest_of, file_digests, what_changed
from darwinlm.runtime.errors import CheckpointError, ModelError, first_line
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import shorten
from darwinlm.runtime.reads import note

if TYPE_CHECKING:
    from pydantic import JsonValue
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER = "tokenizer"
READING = "prompts and longest input"
GENERATION_SETTINGS = "generation settings"
CARRIED = "carried files"
"""Parts of a model that don't enter its digest."""
FURTHER = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""Settings that count the blocks which predict further tokens."""


@dataclass(frozen=True)
class Checkpoint:
    """A local folder with config.json, safetensors shards and a tokenizer.

    `source` is the name of the model as the user gave it. If `config` is that of a text part, `whole_config` is that of
    the whole model. Quantised weights are in one of `formats`, as `quantisation` says; they are read as floats.
    `answers` are the tokens with which a language model that judges texts answers, the one that means yes first.
    """

    folder: Path
    config: PreTrainedConfig
    family: Family
    source: str
    whole_config: PreTrainedConfig | None = None
    formats: tuple[WeightFormat, ...] = ()
    quantisation: JsonValue = None
    answers: tuple[int, ...] = ()

    @classmethod
    def open(cls, folder: Path, source: str | None = None) -> Checkpoint:
        """Open a folder.

        Raises:
            ModelError: The folder holds no readable model.
            FamilyError: Its architecture isn't known.
            CheckpointError: Shards are missing or reach outside the folder.
        """
        checkpoint = cls.describe(folder, source)
        missing = [shard for shard in sorted(set(checkpoint.stored.shards.values())) if not (folder / shard).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}: fetch the model again")
        check_tensors(checkpoint)
        return checkpoint

    @classmethod
    def describe(cls, folder: Path, source: str | None = None) -> Checkpoint:
        """Read only the configuration of a folder, without checking for weights. Raises as `open`."""
        path = folder / "config.json"
        if not path.is_file():
            inside = folder / "model"
            hint = f"; give {inside}, the model of this run" if (inside / "config.json").is_file() else ""
            if (apart := model_inside(folder)) is not None:
                hint = f" but {apart.name}: load it with a current sentence-transformers, and save it again"
            raise ModelError(f"{folder} holds no model: there is no config.json in it{hint}")
        check_files(folder)
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} holds an adapter of another model: merge the two first, and give the result")
        plain = read_config(path)
        generation_of(folder)
        model_type = plain.get("model_type", "")
        if not model_type or not isinstance(model_type, str):
            raise CheckpointError(f"{path} names no model_type: this isn't a transformers model")
        has_other_parts = text_type(plain, path) is not None
        config, whole_config = open_config(folder, model_type), None
        if not getattr(config, "is_causal", True):
            raise ModelError(
                f"{path}: the attention is bidirectional (is_causal is false), but only models in which a token looks "
                "back can be pruned: use another model"
            )
        if has_other_parts:
            config, whole_config = text_config(config), config
        family, ending = family_of(config), "language" if has_other_parts else ending_of(plain, folder)
        if family.bidirectional:
            check_encoder(family, ending, plain, path)
            set_separator(config, family, ending, folder)
        family = with_ending(family, ending)
        formats = formats_of(plain, path)
        if formats and whole_config is not None:
            raise CheckpointError(
                f"{path}: a quantised {whole_config.model_type} model can't be read: use the one that it was made from"
            )
        if formats:
            del config.quantization_config  # a saved model is none
        quantisation = plain.get("quantization_config")
        checkpoint = cls(folder, config, family, source or str(folder), whole_config, formats, quantisation)
        checkpoint.note_files()
        return checkpoint

    @property
    def tied(self) -> dict[str, str]:
        """Tensors that are another one, by name, if the configuration ties them."""
        tied = getattr(self.config, "tie_word_embeddings", False)
        return (getattr(self.outline, "_tied_weights_keys", None) or {}) if tied else {}

    def check_carried(self) -> None:
        """Read early what the last stages read of a model: its origin and the parts around its language model.

        Raises CheckpointError if they are damaged.
        """
        origin_of(self.folder, self.source)
        if self.whole_config is not None:
            load_whole(self.folder, self.dtype)

    def check_embeddings(self) -> None:
        """Refuse values outside the blocks that aren't finite, also in rows of tokens that calibration doesn't use.

        Raises:
            CheckpointError: A value isn't finite; the message names the tensor.
        """
        for name in self.names_outside_blocks():
            check_finite({name: self.read(name)[""]}, self.folder)

    @cached_property
    def stored(self) -> Stored:
        """The tensors of its shards."""
        return Stored(self.folder, self.formats)

    @cached_property
    def tensors(self) -> dict[str, Parts]:
        """Stored parts of each tensor of the model, by its name in the model."""
        unused, further = self.ignored, {*self.further}
        names = (*self.stored.plain, *self.stored.packed)
        stored = (name for name in names if name not in further and not matches(name, unused))
        if self.family.ending == "states":
            return tensor_parts(self.family, stored, name_without_head)
        if self.whole_config is None:
            return tensor_parts(self.family, stored)
        return tensor_parts(self.family, stored, text_name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the model that is stored, from the headers of its shards. Raises CheckpointError."""
        stored = self.stored.shapes()
        parts = {name: parts for name, parts in self.tensors.items() if all(part in stored for part in parts.flat())}
        return {name: part.shape(stored.__getitem__) for name, part in parts.items()}

    @cached_property
    def further(self) -> tuple[str, ...]:
        """Stored tensors that predict further tokens (multi-token prediction); no class of a causal model has them."""
        count = getattr(self.config, FURTHER[0], None)
        last = self.n_blocks + (count if isinstance(count, int) else 0)
        block = re.compile(rf"{re.escape(self.family.layers)}\.(\d{{1,9}})\.")
        unused = self.ignored

        def is_further(name: str) -> bool:
            number = int(match[1]) if (match := block.match(name)) else -1
            beyond = number >= self.n_blocks and (number < last or matches(name, unused))
            return beyond or re.search(r"(^|\.)mtp", name) is not None

        return tuple(name for name in (*self.stored.plain, *self.stored.packed) if is_further(name))

    @property
    def left_out(self) -> str:
        """The parts of the stored model that are neither read nor saved, as a clause; empty if there are none."""
        count, settings = len(self.further), left_behind(self.folder)
        parts = [f"multi-token prediction ({count} tensor{'s' if count > 1 else ''})"] if count else []
        if settings:
            parts.append(
                f"the generation setting{'s' if len(settings) > 1 else ''} {shorten(', '.join(settings), 200)}"
            )
        verb = "are" if len(parts) > 1 or len(settings) > 1 else "is"
        return f"{' and '.join(parts)} {verb} left out" if parts else ""

    @cached_property
    def exact(self) -> tuple[str, ...]:
        """Parts of the names of tensors that stay in float32, whatever the type of the others."""
        listed = getattr(self.outline, "_keep_in_fp32_modules_strict", None) or ()
        return tuple(map(re.escape, (*listed, *self.family.exact)))

    @property
    def ignored(self) -> tuple[str, ...]:
        """Patterns of the names of stored tensors that the model's class ignores."""
        return tuple(getattr(self.outline, "_keys_to_ignore_on_load_unexpected", None) or ())

    def cast(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor in an element type; scores of experts stay in float32 where the family asks for it."""
        return tensor.to(torch.float32 if matches(name, self.exact) else dtype)

    @cached_property
    def digest(self) -> str:
        """Hash of the configuration, of all weights, and of what the model gives: its answers or its pooling."""
        quantised = {"quantisation": self.quantisation} if self.formats else {}
        gives: JsonObject = {"answers": list(self.answers)} if self.answers else {}
        if self.family.ending == "states" and (pooling := pooling_of(self.folder)) is not None:
            gives["pooling"] = pooling
        return digest_of({"config": self.plain_config(), "files": self.weight_digests, **quantised, **gives})

    @cached_property
    def weight_digests(self) -> dict[str, str]:
        """Hashes of the shards by name."""
        return self._digests_of(sorted(set(self.stored.shards.values())))

    @cached_property
    def accompanying_digests(self) -> dict[str, str]:
        """Hashes of the configuration, the tokenizer and the other files beside the weights, by name."""
        beside = [name for name, _ in model_files(self.folder) if not is_named(name, (CARD, *WEIGHTS))]
        return self._digests_of(dict.fromkeys((*beside, *(name for name, _ in carried_files(self.folder)))))

    def _digests_of(self, names: Iterable[str]) -> dict[str, str]:
        paths = {name: self.folder / name for name in names}
        digests = file_digests(paths.values())
        return {name: digests[path] for name, path in paths.items()}

    def note_files(self) -> None:
        """Take the hashes of the files beside the weights as they are now, with which `check_unchanged` compares."""
        _ = self.accompanying_digests

    def check_unchanged(self) -> None:
        """Refuse a model of which a file was changed since it was opened.

        Raises CheckpointError: results of a run would be a mixture of two models.
        """
        for name, digest in (self.accompanying_digests | self.weight_digests).items():
            path = self.folder / name
            change = what_changed(path, digest)
            if change:
                raise CheckpointError(
                    f"{path}: {change.replace('after it was written', 'during this run')}, so the results so far may "
                    "be of two models: prune the present one into a new folder"
                )

    def plain_config(self) -> JsonObject:
        """The configuration without its path and version, for JSON: infinite numbers are words."""
        tree: JsonObject = json.loads(json.dumps(self.config.to_dict()), parse_constant=str)
        return {name: value for name, value in tree.items() if name not in ("_name_or_path", "transformers_version")}

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return int(self.config.num_hidden_layers)

    def block_prefix(self, block: int) -> str:
        """Prefix of the tensor names of a block, including the dot."""
        return f"{self.family.layers}.{block}."

    def read(
        self, prefix: str = "", *, dtype: torch.dtype | None = None, mapped: bool = True, empty: Empty = in_memory
    ) -> dict[str, torch.Tensor]:
        """Read all tensors whose name in the model starts with `prefix`; it is removed from the names.

        Without a `dtype`, the stored one is kept; quantised weights have the configuration's. Tensors that aren't
        `mapped` are read into those that `empty` makes; of mapped ones, a disk that vanishes ends the process. Raises
        CheckpointError if a shard is damaged, or has gone.
        """
        selected = {name: parts for name, parts in self.tensors.items() if name.startswith(prefix)}
        weights = [part for parts in selected.values() for part in parts.flat()]
        weight = self.stored.reader(weights, self.dtype if dtype is None else dtype, None if mapped else empty)
        tensors = {}
        for name, parts in selected.items():
            tensor = parts.join(weight)
            tensors[name.removeprefix(prefix)] = tensor if dtype is None else self.cast(name, tensor, dtype)
        return tensors

    def rows(self, name: str, index: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        """Rows `index`, [n] int64, of a tensor [r, ...]: [n, ...]. Raises CheckpointError if a shard is damaged."""
        (stored,) = self.tensors[name].flat()
        if stored in self.stored.packed:
            return self.read(name, dtype=dtype)[""].index_select(0, index)
        return self.stored.rows(stored, index).to(dtype)

    def names_outside_blocks(self) -> Iterator[str]:
        """Names of the tensors that belong to no block: embedding, final norm, head."""
        return (name for name in self.tensors if not name.startswith(self.family.layers + "."))

    @property
    def dtype(self) -> torch.dtype:
        """Element type in the configuration; float32 if it has none."""
        dtype = getattr(self.config, "dtype", None) or torch.float32
        return getattr(torch, dtype) if isinstance(dtype, str) else dtype  # that of a GGUF header is a name

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with its chat template.

        Raises:
            ModelError: The folder has no readable tokenizer.
            CheckpointError: Transformers would read it as a tokenizer of another kind.
        """
        note(self, TOKENIZER)
        return load_tokenizer(self.folder, self.whole_config or self.config)

    @property
    def carried(self) -> Path:
        """The folder, to carry its licences, generation settings and processors of images along."""
        note(self, CARRIED)
        return self.folder

    def part(self, name: str) -> str:
        """What identifies a part that isn't in the digest: the tokenizer, the generation settings, the carried files.

        A tokenizer is what it makes of text and chats, whatever files it comes from. Of a model that reads, what it
        puts in front of texts and where it truncates them is a part too.
        """
        if name == TOKENIZER:
            return self._tokenizer_digest
        if name == READING:
            return digest_of([*prompts_of(self.folder), self.longest_input, repr(messages_of(self.folder))])
        patterns = (GENERATION,) if name == GENERATION_SETTINGS else (GENERATION, *PROCESSORS, *LICENCES)
        modules = () if name == GENERATION_SETTINGS else {file for file, _ in carried_files(self.folder)}
        return digest_of(
            {
                file: digest
                for file, digest in self.accompanying_digests.items()
                if file in modules or is_named(file, patterns)
            }
        )

    def prompts(self) -> tuple[dict[str, str], str | None]:
        """Prompts of a model that reads, by name, and the name of the default one. Raises CheckpointError."""
        note(self, READING)
        return prompts_of(self.folder)

    @cached_property
    def longest_input(self) -> int | None:
        """Most tokens of an input of a model that reads, as its files say; None if they don't. Raises CheckpointError.

        Releases of sentence-transformers before 5.4 write it beside the model, later ones into the tokenizer.
        """
        if (longest := longest_input(self.folder)) is not None:
            return longest
        longest = load_tokenizer(self.folder, self.whole_config or self.config).model_max_length
        return longest if isinstance(longest, int) and 1 < longest < VERY_LARGE_INTEGER else None

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(load_tokenizer(self.folder, self.whole_config or self.config))

    def load(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        weights: Callable[[int], dict[str, torch.Tensor]] | None = None,
        keep: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
        on_block: Callable[[torch.nn.Module], object] = lambda block: None,
    ) -> PreTrainedModel:
        """The whole model, in evaluation mode, read as every stage reads it.

        One block is read at a time, so that for a GPU main memory never holds more than one. Weights in their stored
        type stay in the checkpoint's mapped files. `weights` gives the weights of a block by their names in it; by
        default, they are the checkpoint's. `keep` returns the tensor that the model is to hold for one that was read.
        `on_block` is called with every block once it has its weights; it may shard them before the next one is read.

        Raises:
            CheckpointError: The weights don't fit the configuration, or aren't finite.
        """
        model, device = self.skeleton(dtype), torch.device(device)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if not buffer.is_meta:
                    module._buffers[name] = buffer.to(device)
        blocks = {self.block_prefix(block): block for block in range(self.n_blocks)}
        for prefix in (*self.names_outside_blocks(), *blocks):
            read = self.read(prefix) if weights is None or prefix not in blocks else weights(blocks[prefix])
            tensors = {prefix + name: self.cast(prefix + name, tensor, dtype) for name, tensor in read.items()}
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            check_finite(tensors, self.folder)
            tensors = {name: keep(tensor) for name, tensor in tensors.items()}
            try:
                model.load_state_dict(tensors, strict=False, assign=True)
            except RuntimeError as error:
                raise CheckpointError(f"can't load the weights in {self.folder}: {first_line(error)}") from error
            if prefix in blocks:
                del read, tensors
                on_block(model.get_submodule(prefix.removesuffix(".")))
        model.tie_weights()
        missing = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
        if missing:
            raise CheckpointError(f"{self.folder} lacks the tensor {missing[0]}: fetch the model again")
        model.generation_config = generation_of(self.folder) or GenerationConfig(do_sample=False)
        return model.eval().requires_grad_(requires_grad=False)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of saved tensors that aren't parameters, such as a router's correction of scores."""
        model = self.outline
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        return sum(int(tensor.nbytes) for name, tensor in model.state_dict().items() if name not in parameters)

    @cached_property
    def outline(self) -> PreTrainedModel:
        """A `skeleton` to look at, made once; nothing may change it."""
        return self.skeleton()

    def skeleton(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The model with parameters on the meta device, and with the buffers that aren't saved.

        `dtype` is that of its forward passes: Gemma's scale of embeddings is rounded to it. By default, it is the
        configuration's. Raises CheckpointError if the configuration describes no valid model.
        """
        model = empty_model(self.config, self.family.ending, self.folder, dtype)
        if getattr(model, POOLER, None) is not None and not self._has_pooler:
            setattr(model, POOLER, None)
        return model

    @cached_property
    def _has_pooler(self) -> bool:
        """Whether the weights of a pooler are stored, or none are at hand; many embedders are saved without theirs."""
        stored = self.stored.plain if any(self.folder.glob(WEIGHTS[0])) else []
        return not stored or any(name.startswith(f"{POOLER}.") for name in stored)


class Outline(Checkpoint):
    """A model whose weights aren't at hand: its tensors are those of its class in transformers."""

    @cached_property
    def tensors(self) -> dict[str, Parts]:
        """See `Checkpoint.tensors`."""
        return {name: Parts(((name,),), stacked=False) for name in self.shapes()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the model."""
        return {name: tuple(tensor.shape) for name, tensor in self.outline.state_dict().items()}
