"""Publish a model on the Hugging Face hub: card, weights, tokenizer and, on request, a GGUF file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from darwinlm.artifact import model_folder
from darwinlm.errors import ExportError, ModelError, first_line

CARD = "README.md"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Upload:
    """An upload to the hub, after all checks that need no network.

    Attributes:
        source: Output folder of a run, or folder of a model.
        repo: Repository on the hub, `owner/name`.
        quantisation: Type of an additional GGUF file; None for no such file.
        update: Whether the repository may already exist.

    Raises:
        ModelError: The folder is no model, or its run isn't finished.
        ExportError: The repository name is invalid, or the type isn't known.
    """

    source: Path
    repo: str
    quantisation: str | None = None
    private: bool = False
    update: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.repo):
            raise ExportError(
                f"'{self.repo}' is not a repository name: give owner/name, made of letters, digits, '.', '_' and '-'"
            )
        if self.quantisation is not None:
            from darwinlm.export.gguf.write import QUANTISATIONS

            if self.quantisation not in QUANTISATIONS:
                raise ExportError(f"--gguf {self.quantisation}: there is no such type; use {', '.join(QUANTISATIONS)}")
        source, folder = self.source, self.folder
        if not source.is_dir():
            raise ModelError(
                f"there is no folder '{source}': give the output folder of a run, or the folder of a model"
            )
        if folder != source and not (source / "summary.json").is_file():
            raise ModelError(f"the run in {source} isn't finished: rerun its command, which resumes it")
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ModelError(f"{source} is not a model: it has no config.json with safetensors beside it")

    @property
    def folder(self) -> Path:
        """Folder of the model. Raises ModelError if its run isn't finished."""
        return model_folder(self.source)

    @property
    def gguf_name(self) -> str:
        """File name of the GGUF file."""
        return f"{self.repo.partition('/')[2]}-{self.quantisation}.gguf"

    def files(self) -> list[tuple[str, int]]:
        """Names and sizes of the files in the model's folder."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return [(str(path.relative_to(self.folder)), path.stat().st_size) for path in paths]


def publish(upload: Upload, say: Callable[[str], None] = lambda message: None) -> str:
    """Create the repository and upload the folder in one commit, after building and checking the GGUF file.

    Returns the address of the model's page. Raises ExportError if there is no token, the hub refuses the upload or
    can't be reached, or the repository exists.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from darwinlm.export.run import export_model

    # Error class of the hub's HTTP client, which differs between releases of huggingface_hub.
    bases: tuple[type, ...] = HfHubHTTPError.__mro__
    transport_error: type[Exception] = next(
        base for base in bases if base.__name__ in ("HTTPError", "RequestException")
    )
    token = get_token()
    if token is None:
        raise ExportError("there is no token for the hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token, library_name="darwinlm")
    with tempfile.TemporaryDirectory(prefix="darwinlm-") as work:
        extra = None
        if upload.quantisation is not None:
            extra = Path(work) / upload.gguf_name
            export_model(upload.folder, extra, to="gguf", quantisation=upload.quantisation, say=say)
        try:
            created = api.create_repo(upload.repo, private=upload.private, exist_ok=upload.update)
            say(f"uploading {len(upload.files()) + (extra is not None)} files to {created}")
            api.upload_folder(repo_id=upload.repo, folder_path=upload.folder, commit_message="Upload a pruned model")
            if extra is not None:
                api.upload_file(
                    repo_id=upload.repo, path_or_fileobj=extra, path_in_repo=extra.name, commit_message="Add GGUF"
                )
        except OfflineModeIsEnabled as error:
            raise ExportError("HF_HUB_OFFLINE is set: unset it to reach the hub") from error
        except HfHubHTTPError as error:
            raise _refused(upload, error) from error
        except ValueError as error:
            raise ExportError(f"the hub refuses the model card: {' '.join(str(error).split())}") from error
        except (OSError, transport_error) as error:
            raise ExportError(f"can't reach the hub ({first_line(error)}): check the network, try again") from error
    return str(created)


def _refused(upload: Upload, error: Exception) -> ExportError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 409:
        return ExportError(f"{upload.repo} exists on the hub: choose another name, or pass --update to add to it")
    if status == 401:
        return ExportError("the hub doesn't accept the token: run `hf auth login`, or set HF_TOKEN to a valid one")
    if status == 403:
        return ExportError(f"the token may not write to {upload.repo}: use one with write access to that owner")
    return ExportError(f"the hub refuses {upload.repo}: {first_line(error)}")
