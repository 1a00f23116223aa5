"""Make a published model again from its record, and compare the files: `darwinlm reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darwinlm.export.hf import RECORD
from darwinlm.recipe.load import parse_recipe
from darwinlm.report.summary import FILE, read_summary
from darwinlm.report.wording import hub_id
from darwinlm.runs.prune import prune
from darwinlm.runs.verify import Finding
from darwinlm.runtime.artifact import KEY, STAGES, model_folder, read_record, what_changed
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError, RecipeError, first_line
from darwinlm.stages.search import SEARCH


def read_source(source: str) -> dict[str, Any]:
    """The record of a run's folder, of a published model's folder, or of a model on the hub. Raises ArtifactError."""
    folder = Path(source).expanduser()
    path = model_folder(folder) / RECORD
    if not folder.exists() and hub_id(source):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(source, RECORD))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ArtifactError(f"{source}: the hub gives no {RECORD} ({first_line(error)})") from error
    if not path.is_file():
        raise ArtifactError(f"{source} holds no {RECORD}: give a run, or a model that darwinlm prune made")
    record, search = read_record(path), folder / STAGES / SEARCH.name / KEY
    if search.is_file() and read_record(search).get("inputs", {}).get("neighbour") is not None:
        raise ArtifactError(
            f"the search of {source} began from a larger size's result: repeat the command that made all sizes, in "
            "another folder"
        )
    if (folder / FILE).is_file():  # where the folders of local files are known
        record["recipe"] = read_summary(folder / FILE).recipe
    return record


def reproduce(
    source: str,
    out: str | Path,
    *,
    model: str | None = None,
    text: str | None = None,
    reporter: Reporter | None = None,
) -> list[Finding]:
    """Make a model again, and compare each file with the recorded hash.

    `model` and `text` say where the original model and the text lie on this machine. Equal hashes need the same
    versions, number of threads and kind of processor.

    Raises:
        ArtifactError: There is no record, or it is damaged.
        DarwinLMError: As `darwinlm.prune`.
    """
    record = read_source(source)
    tree, files = record.get("recipe"), record.get("files")
    if not isinstance(tree, dict) or not isinstance(files, dict) or not files:
        raise ArtifactError(f"{source}: its record has no recipe or no hashes. Give a run's folder.")
    recipe = parse_recipe(tree, f"the record of {source}")
    if recipe.time is not None or recipe.search.minutes is not None:
        raise RecipeError(
            f"{source} was made under a time limit, so another run gives another model: prune again without a limit"
        )
    made = prune(model, out, text=text, recipe=recipe, reporter=reporter)
    return [Finding(name, what_changed(made.model / name, str(digest))) for name, digest in sorted(files.items())]
