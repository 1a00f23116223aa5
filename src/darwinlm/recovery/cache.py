"""The dense model's most likely tokens, stored once for all trainings on the same text.

A shard holds some sequences. Its name is a digest of all inputs: the tokens, the dense model, the element type, k and
the temperature. So different epochs, seeds and smaller models share shards, and so do longer trainings on text with the
same beginning. A shard of other inputs is never used.

Letters: b sequences, t tokens, k of the vocabulary. A token takes k · (2 + 2) + 4 bytes, or k · (2 + 4) + 4 if the
vocabulary has more than 65,536 tokens. Rounding a log-probability to float16 changes the probability by less than
0.4 % if it is above 10⁻⁷.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from darwinlm.recovery.model import dense_top
from darwinlm.runtime import amounts, parallel
from darwinlm.runtime.artifact import check_room, digest_of, write_tensors
from darwinlm.runtime.errors import ArtifactError

STORED = ("top_log_p", "top_places", "top_log_rest")
"""Keys of a batch besides its tokens, in the order of `TopK`'s fields."""
TOP_K = 64
"""Tokens stored at each position, as in the measured trainings (docs/results.md)."""
SHARD_TOKENS = 1 << 16
_SMALL_VOCABULARY = 1 << 16
_LEAST = -6e4


class CachedText(Dataset[dict[str, Tensor]]):
    """Training text with the dense model's log-probabilities, stored by `cached_text`.

    `shards` are files in the order of the sequences, each of `shard_sequences` sequences.
    """

    def __init__(self, text: Dataset[dict[str, Tensor]], shards: list[Path], shard_sequences: int) -> None:
        self.text = text
        self.shard_sequences = shard_sequences
        self._shards: list[Any] = [safe_open(path, framework="pt") for path in shards]

    def __len__(self) -> int:
        return len(cast(Sized, self.text))

    def __getitem__(self, sequence: int) -> dict[str, Tensor]:
        """`input_ids` [t], and `top_log_p` [t, k] float16, `top_places` [t, k] int64, `top_log_rest` [t] float32."""
        shard, row = divmod(sequence, self.shard_sequences)
        item = dict(self.text[sequence])
        for name in STORED:
            item[name] = self._shards[shard].get_slice(name)[row]
        item["top_places"] = item["top_places"].to(torch.int64)
        return item


def cached_text(
    text: Dataset[dict[str, Tensor]],
    teacher: Any,
    folder: Path,
    key: Mapping[str, str],
    *,
    batch_rows: int,
    top_k: int = TOP_K,
    shard_tokens: int = SHARD_TOKENS,
    together: bool = False,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CachedText:
    """Load cached shards of a text, run the dense model on the rest, and check all of them.

    Several processes share the work and the checks. If the dense model's weights are sharded, they run it `together`,
    each as often as the others. An interrupted call leaves complete shards, which the next call uses. Sequences
    are `input_ids` [t] of one length, of which `batch_rows` are run at once. `key` identifies the dense model and its
    element type; the folder may hold shards of other texts and models. `say` gets a message about the size and time of
    the cache before it is built.

    Raises:
        ArtifactError: A shard is damaged or belongs to other inputs, or the folder is a file.
        StorageError: There is too little room, or the disk can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file, but the teacher cache needs a folder: choose another teacher_cache")
    sequences = len(cast(Sized, text))
    length = len(text[0]["input_ids"])
    shard_sequences = max(1, shard_tokens // length)
    parts = [range(start, min(start + shard_sequences, sequences)) for start in range(0, sequences, shard_sequences)]
    with parallel.agree():
        digests = [_digest_of_tokens(_tokens(text, part)) for part in parallel.portion(parts)]
    keys = [{**key, "top_k": top_k, "tokens": digest} for share in parallel.gather(digests) for digest in share]
    paths = [folder / f"top{top_k}_{digest_of(shard)}.safetensors" for shard in keys]
    missing = parallel.broadcast([number for number, path in enumerate(paths) if not path.exists()])
    vocabulary = int(teacher.config.vocab_size)
    size = sum(len(parts[number]) for number in missing) * length * bytes_per_token(vocabulary, top_k)
    with parallel.agree():
        if parallel.is_main():
            shards = f"{len(missing)} of {len(parts)} shards are computed now and take {amounts.size(size)} on disk"
            what = f"teacher cache: top {top_k} of {sequences * length:,} tokens in {folder}"
            say(f"{what}: {shards if missing else 'all there'}")
            check_room(folder, size, "the teacher cache takes", "or choose another folder")
        mine = parallel.mine(missing)
        there = [number for number in range(len(parts)) if number not in set(missing)]
        for number in parallel.mine(there):
            _check(paths[number], keys[number])
    turns, passes = len(mine), 0
    if together:
        turns, passes = -(-len(missing) // parallel.size()), -(-len(parts[0]) // batch_rows)
    with parallel.agree():
        for turn in range(turns):
            number = mine[turn] if turn < len(mine) else missing[0]
            tensors = _tops(teacher, _tokens(text, parts[number]), batch_rows, top_k, passes)
            if turn < len(mine):
                _write(paths[number], tensors, keys[number])
                progress(turn + 1, len(mine))
    return CachedText(text, paths, shard_sequences)


def bytes_per_token(vocabulary: int, top_k: int = TOP_K) -> int:
    """Bytes of a token on disk, without the header of a shard."""
    return min(top_k, vocabulary) * (2 + _places_type(vocabulary).itemsize) + 4


def _places_type(vocabulary: int) -> torch.dtype:
    return torch.uint16 if vocabulary <= _SMALL_VOCABULARY else torch.int32


def _tokens(text: Dataset[dict[str, Tensor]], part: range) -> Tensor:
    return torch.stack([text[sequence]["input_ids"] for sequence in part])


def _digest_of_tokens(tokens: Tensor) -> str:
    shape = json.dumps(list(tokens.shape)).encode()
    return hashlib.blake2b(shape + tokens.to(torch.int64).numpy().tobytes(), digest_size=16).hexdigest()


def _digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in STORED:
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tops(teacher: Any, tokens: Tensor, batch_rows: int, top_k: int, passes: int) -> dict[str, Tensor]:
    """The stored tensors of a shard. The dense model runs at least `passes` times, at the end without use."""
    tops, batches = [], torch.split(tokens, batch_rows)
    for batch in batches:
        top = dense_top(teacher, batch.to(teacher.device), top_k)
        # Log-probabilities below the range of float16 are negligible.
        log_p = top.log_p.clamp_min(_LEAST).to(torch.float16)
        places = top.places.cpu().to(_places_type(int(teacher.config.vocab_size)))
        tops.append((log_p.cpu(), places, top.log_rest.cpu()))
    for _ in range(len(batches), passes):
        dense_top(teacher, batches[-1].to(teacher.device), top_k)
    return {name: torch.cat(of) for name, of in zip(STORED, zip(*tops, strict=True), strict=True)}


def _write(path: Path, tensors: dict[str, Tensor], shard: dict[str, Any]) -> None:
    write_tensors(path, tensors, {"key": json.dumps(shard), "content": _digest_of_tensors(tensors)})


def _check(path: Path, wanted: dict[str, Any]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if json.loads(facts.get("key", "{}")) != wanted:
                raise ArtifactError(
                    f"{path} belongs to another dense model or another text: it isn't a shard of this teacher cache; "
                    "delete it, or choose another recovery.teacher_cache"
                )
            intact = _digest_of_tensors({name: file.get_tensor(name) for name in STORED}) == facts.get("content")
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    if not intact:
        raise _damaged(path, "its contents were changed")


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path}, a shard of the teacher cache, is damaged ({reason}): delete that file and rerun the same "
        "command, which computes it again"
    )
