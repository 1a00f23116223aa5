"""Configurations of checkpoints: config.json, checked and opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from darwinlm.families.bounds import check_config
from darwinlm.families.family import PREFIX, families, family_of
from darwinlm.families.loading import UNUSABLE, remote_code
from darwinlm.families.pruned import pruned_classes
from darwinlm.runtime.errors import CheckpointError, first_line
from darwinlm.runtime.limits import load_json, shorten


def open_config(folder: Path, model_type: str, *, own_code: bool, allow_remote_code: bool) -> Any:
    """The configuration of transformers for a folder, from the model type in its config.json.

    If that refers to code of the checkpoint (`own_code`), it isn't used for known families.

    Raises:
        RemoteCodeError: The code is needed and may not run.
        FamilyError: The architecture isn't known.
        CheckpointError: The file is damaged.
    """
    family = families().get(model_type.removeprefix(PREFIX))
    if family is not None:
        # Use transformers' classes for known families; Phi-3 checkpoints still contain older code.
        own_code = False
        if model_type.startswith(PREFIX):
            pruned_classes(*family.class_names)
    elif model_type in CONFIG_MAPPING:
        own_code = False  # the model is refused, with a reason from its configuration
    if own_code and not allow_remote_code:
        raise remote_code(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=own_code, local_files_only=True)
    except UNUSABLE as error:
        if "does not recognize this architecture" in str(error):
            family_of(type("Unknown", (), {"model_type": model_type}))
        raise CheckpointError(f"can't read {folder / 'config.json'}: {first_line(error)}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read and check a config.json. Raises CheckpointError if it is damaged, or has unrealistic numbers."""
    try:
        plain = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} isn't JSON ({shorten(error)}): fetch the model again") from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path} names no model_type: it holds a {type(plain).__name__}, not a mapping")
    check_config(plain, path)
    beside = path.parent / "generation_config.json"
    if beside.is_file():
        try:
            check_config(_mapping(load_json(beside)), beside)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{beside} is damaged ({shorten(error)}): remove it or fetch it again") from error
    return plain


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a mapping")  # noqa: TRY004 - of a file, not a type
    return value
