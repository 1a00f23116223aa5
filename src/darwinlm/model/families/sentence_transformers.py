"""Folders of sentence-transformers: the modules around a model, which are kept as they are.

`modules.json` lists the modules in order, each with a folder of its own: the model, then pooling, normalisation, or
dense layers. `config_sentence_transformers.json` holds prompts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from darwinlm.model.families.files import check_link
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import load_json, shorten

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = ("sentence_bert_config.json", "sentence_transformer_config.json")
"""Settings of the module that is the model: the length of its inputs."""
PACKAGE = "sentence_transformers."
BEHIND = frozenset({"Dense", "Dropout", "LayerNorm", "Normalize"})
"""Modules that may follow the pooling: they are kept as they are."""
POOLINGS = {
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
"""Fields of a pooling's settings, as releases before 5.4 write them."""

LOGIT_SCORE = "LogitScore"
"""Module of a language model that answers, which names the tokens of its answers."""
MOST_MODULES = 64
INPUT_WIDTHS = {
    "Pooling": ("embedding_dimension", "word_embedding_dimension"),
    "Dense": ("in_features",),
    "LayerNorm": ("dimension",),
}
"""Fields with the number of inputs, as newer and older releases name them."""


@dataclass(frozen=True)
class Module:
    """A module of a folder: the end of its class's name, and its settings."""

    kind: str
    folder: Path

    def settings(self) -> JsonObject:
        """Its config.json; empty without one. Raises CheckpointError."""
        path = self.folder / "config.json"
        return _read(path) if path.is_file() else {}


def is_sentence_transformer(folder: Path) -> bool:
    """Whether a folder lists modules."""
    return (folder / MODULES).is_file()


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder of sentence-transformers gives scores of pairs."""
    path = folder / SETTINGS
    if path.is_file() and _read(path).get("model_type") == "CrossEncoder":
        return True
    return any(module.kind == LOGIT_SCORE for module in modules_of(folder))


def modules_of(folder: Path) -> list[Module]:
    """The modules of a folder in order; empty for a plain model.

    Raises CheckpointError if the list is damaged, or a module is code of its own or lies outside of the folder.
    """
    path = folder / MODULES
    if not path.is_file():
        return []
    listed = _parsed(path)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise CheckpointError(f"{path} isn't a list of modules: fetch the model again")
    if len(listed) > MOST_MODULES:
        raise CheckpointError(f"{path} lists {len(listed):,} modules, which no model has: fetch the model again")
    modules = []
    for entry in listed:
        kind, place = str(entry.get("type", "")), entry.get("path", "")
        if not isinstance(place, str) or "\0" in place:
            raise CheckpointError(f"{path}: {shorten(repr(place))} is no path of a module: fetch the model again")
        if not kind.startswith(PACKAGE):
            raise CheckpointError(
                f"{path}: the module {shorten(kind)} is code of its own, which never runs here: use a model whose "
                "modules are those of sentence-transformers"
            )
        inside = (folder / place).resolve()
        if not inside.is_relative_to(folder.resolve()):
            raise CheckpointError(f"{path}: a module lies outside of the model's folder ({shorten(place)}): remove it")
        if inside != folder.resolve() and not inside.is_dir() and kind.rpartition(".")[2] != "Normalize":
            raise CheckpointError(f"{folder} lacks the folder {shorten(place)} that {MODULES} names: fetch it again")
        modules.append(Module(kind.rpartition(".")[2], folder / place))
    return modules


def model_inside(folder: Path) -> Path | None:
    """The folder of the model among the modules, if it is apart from the others, as older releases keep it."""
    modules = modules_of(folder)
    return modules[0].folder if modules and modules[0].folder.resolve() != folder.resolve() else None


def pooling_of(folder: Path) -> str | None:
    """Which tokens an embedding comes from: `lasttoken`, `mean`, or `cls`; None if the folder lists no modules.

    Raises CheckpointError for other ways to pool, and for modules that would change what is pooled.
    """
    modules = modules_of(folder)
    if not modules:
        return None
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not BEHIND.issuperset(kinds[2:]):
        raise CheckpointError(
            f"{folder / MODULES} lists {shorten(', '.join(kinds), 200)}; known are a Transformer, a Pooling, and "
            f"behind them {', '.join(sorted(BEHIND))}: use a model of these modules"
        )
    found = modules[1]
    settings = found.settings()
    if not any(name in settings for name in INPUT_WIDTHS["Pooling"]):
        raise CheckpointError(
            f"{found.folder / 'config.json'} is missing or doesn't say how many numbers are pooled "
            f"({INPUT_WIDTHS['Pooling'][0]}): fetch the model again"
        )
    mode = settings.get("pooling_mode")
    if "pooling_mode" not in settings:
        modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value]
        mode = "+".join(POOLINGS.get(name, name.removeprefix("pooling_mode_")) for name in modes) or "mean"
    if isinstance(mode, list):
        mode = "+".join(map(str, mode))
    if mode not in POOLINGS.values():
        raise CheckpointError(
            f"{found.folder / 'config.json'}: the pooling '{shorten(mode)}' isn't known here; known are "
            f"{', '.join(POOLINGS.values())}"
        )
    if settings.get("include_prompt") is False and mode != "lasttoken" and any(prompts_of(folder)[0].values()):
        raise CheckpointError(
            f"{found.folder / 'config.json'}: a pooling without the tokens of the prompt (include_prompt is false) "
            "isn't known here: use a model that pools them too"
        )
    return str(mode)


def check_widths(folder: Path, width: int) -> None:
    """Refuse modules that don't fit a model whose residual stream has this width. Raises CheckpointError."""
    for module in modules_of(folder):
        names, settings = INPUT_WIDTHS.get(module.kind, ()), module.settings()
        name = next((name for name in names if name in settings), None)
        if names and name is None:
            raise CheckpointError(
                f"{module.folder / 'config.json'} is missing or doesn't say how many numbers the module {module.kind} "
                f"takes ({names[0]}): fetch the model again"
            )
        if name is not None and settings[name] != width:
            raise CheckpointError(
                f"{module.folder / 'config.json'}: the module {module.kind} takes {shorten(repr(settings[name]))} "
                f"numbers, but gets {width}: it belongs to another model, so fetch the model again"
            )
        if module.kind == "Dense" and isinstance(settings.get("out_features"), int):
            width = int(str(settings["out_features"]))


def prompts_of(folder: Path) -> tuple[dict[str, str], str | None]:
    """Prompts by name, and the name of the default one."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}, None
    settings = _read(path)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise CheckpointError(f"{path}: prompts must be texts by name: correct the file")
    default = settings.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise CheckpointError(f"{path}: there is no prompt {shorten(default)}, which is to be the default: correct it")
    return dict(prompts), default


def longest_input(folder: Path) -> int | None:
    """Most tokens of an input, by the settings of the model's module; None if they don't say.

    Raises CheckpointError if they are damaged, or change texts before they become tokens.
    """
    path, settings = _transformer_settings(folder)
    if settings.get("do_lower_case"):
        raise CheckpointError(f"{path}: texts in lower case (do_lower_case) aren't known here: use another model")
    longest = settings.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise CheckpointError(f"{path}: max_seq_length is {shorten(repr(longest))}, but must be a number of tokens")
    return longest


@dataclass(frozen=True)
class Messages:
    """How texts become messages of the model's chat template.

    Attributes:
        structured: Whether the content of a message is a list of parts, and not a text.
        arguments: Further arguments of the template.
    """

    structured: bool = False
    arguments: JsonObject = field(default_factory=dict)

    def message(self, role: str, text: str) -> dict[str, object]:
        """A message as the template takes it."""
        return {"role": role, "content": [{"type": "text", "text": text}] if self.structured else text}


def messages_of(folder: Path) -> Messages | None:
    """How a folder puts its inputs in its chat template; None if the model reads plain texts.

    Folders of releases before 5.4 don't say so, and are of models that read plain texts.
    """
    _, settings = _transformer_settings(folder)
    read = settings.get("modality_config")
    if not isinstance(read, dict) or "message" not in read:
        return None
    how, processing = read["message"], settings.get("processing_kwargs")
    given = processing.get("chat_template") if isinstance(processing, dict) else None
    arguments = (
        {name: value for name, value in given.items() if name != "restore_suffix"} if isinstance(given, dict) else {}
    )
    return Messages(isinstance(how, dict) and how.get("format") == "structured", arguments)


def _transformer_settings(folder: Path) -> tuple[Path, JsonObject]:
    """Settings of the module that is the model, and their file; empty without any."""
    for module in modules_of(folder)[:1]:
        for path in (module.folder / name for name in TRANSFORMER_SETTINGS):
            if path.is_file():
                return path, _read(path)
    return folder / MODULES, {}


def carried_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of a folder of sentence-transformers beside the model, by their paths in it.

    Raises CheckpointError if one is a link that leads out of the folder, or the list of modules is damaged.
    """
    if not is_sentence_transformer(folder):
        return
    for name in (MODULES, SETTINGS, *TRANSFORMER_SETTINGS):
        if (folder / name).is_file():
            yield name, folder / name
    for module in modules_of(folder):
        if module.folder.resolve() != folder.resolve() and module.folder.is_dir():
            for path in sorted(module.folder.rglob("*")):
                check_link(folder, path)
                if path.is_file():
                    yield path.relative_to(folder).as_posix(), path


def carry_modules(source: Path, target: Path) -> None:
    """Copy what makes a folder one of sentence-transformers. Raises CheckpointError, or OSError."""
    for module in modules_of(source):
        if module.folder.is_dir():  # also if it is empty
            (target / module.folder.relative_to(source)).mkdir(parents=True, exist_ok=True)
    for name, path in carried_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _parsed(path: Path) -> object:
    try:
        return load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} isn't JSON ({shorten(error)}): fetch the model again") from error


def _read(path: Path) -> JsonObject:
    settings = _parsed(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} isn't a mapping: fetch the model again")
    return settings


def answers_in(folder: Path) -> tuple[int, ...]:
    """Tokens of the answers yes and no of a language model that is a reranker; empty for other models.

    Raises CheckpointError if the folder of a reranker doesn't name both.
    """
    for module in modules_of(folder):
        if module.kind == LOGIT_SCORE:
            settings = module.settings()
            tokens = [settings.get(name) for name in ("true_token_id", "false_token_id")]
            if not all(type(token) is int and token >= 0 for token in tokens):
                raise CheckpointError(
                    f"{module.folder / 'config.json'} doesn't name a token for yes and one for no (true_token_id, "
                    "false_token_id): give the answers, such as --answers yes,no"
                )
            return tuple(int(str(token)) for token in tokens)
    return ()
