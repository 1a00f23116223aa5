"""Figures of a run in experiment trackers: wandb, trackio, tensorboard and mlflow, through accelerate's trackers.

A tracker gets figures and settings only. Names of files lose their folders, and what the libraries would collect by
themselves (host, user, command line, printed text) is turned off. The output folder records which run of the tracker
holds its figures, so that the same command goes on with that run.
"""

from __future__ import annotations

import importlib.util
import math
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from darwinlm.runtime.artifact import digest_of, read_as, write_json
from darwinlm.runtime.errors import RecipeError, StorageError, first_line, missing_extra
from darwinlm.runtime.limits import suggestion
from darwinlm.runtime.published import short_source, without_folders

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "darwinlm"
"""Name of the project or experiment in which a tracker lists runs."""
TRACKERS = ("wandb", "trackio", "tensorboard", "mlflow")
"""Names of trackers; each is also that of its library and of our extra."""
COUNTING = frozenset({"tensorboard", "mlflow"})
"""Trackers that take a step for each figure. The others only take steps that rise over the whole run."""
WRITTEN = frozenset({"answers", "template"})
"""Settings that are text of the user, which stays here."""
RECORD = "tracked.json"
"""The file in the output folder that names the tracker's run."""
OWN_SETTINGS = {"trackio": {"_Username": PROJECT}}
"""Settings that a tracker adds by itself, such as the name of the account, and what they are replaced by."""
PLACE = re.compile(r"^(?:[/\\~]|[A-Za-z]:[/\\])")
"""How a path begins that isn't relative."""

WANDB = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": PROJECT,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""Settings of wandb that turn off what it collects besides figures."""

CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
"""Name and password in an address, which errors of libraries repeat."""

ANY = (Exception, SystemExit)
"""Errors of a tracker, of any kind, such as of a network; some libraries end the process where a login is missing."""

Values = Mapping[str, int | float]


def check_tracker(name: str | None) -> None:
    """Check that a tracker is known and installed, before any work. None asks for none.

    Raises RecipeError if there is no such tracker, MissingExtraError if its library or accelerate isn't installed.
    """
    if name is None:
        return
    if name not in TRACKERS:
        hint = suggestion(name, TRACKERS, f"trackers are {', '.join(TRACKERS)}")
        raise RecipeError(f"--track {name}: there is no such tracker: {hint}")
    for package in (name, "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, name, f"--track {name}")


@dataclass
class Tracker:
    """A tracker in use.

    Attributes:
        part: Part of the run whose figures follow, such as a size of a sweep; empty for the run as a whole.
    """

    name: str
    _given: GeneralTracker
    _say: Callable[[str], None]
    _heard: ExitStack
    _record: Path
    _tracked: _Tracked
    part: str = ""
    _failed: bool = False

    def log(self, stage: str, step: int, figures: Values) -> None:
        """Send figures of a step of a stage. A tracker that fails is no longer used, and the run goes on."""
        if self._failed:
            return
        known = self._named(stage, figures)
        try:
            self._given.log(known, step=step if self.name in COUNTING else None)
        except ANY as error:  # hours of work must not end with it
            self._failed = True
            self._say(f"--track {self.name} failed, and the run goes on without it: {_told(error)}")

    def log_result(self, stage: str, figures: Values) -> None:
        """Send figures of a result, unless the tracker's run has the same ones: a finished run tells them each time.

        Raises StorageError if the record of what was sent can't be written.
        """
        known = self._named(stage, figures)
        place, digest = "/".join(filter(None, (self.part, stage))), digest_of(known)
        if self._failed or self._tracked.told.get(place) == digest:
            return
        self.log(stage, 0, figures)
        if not self._failed:
            self._tracked = replace(self._tracked, told={**self._tracked.told, place: digest})
            write_json(self._record, asdict(self._tracked))

    def _named(self, stage: str, figures: Values) -> Values:
        """Finite figures by the names that they have in the tracker."""
        names = {"/".join(filter(None, (self.part, stage, name))): value for name, value in figures.items()}
        return {_taken(name): value for name, value in names.items() if math.isfinite(value)}

    def finish(self, *, failed: bool = False) -> None:
        """Send what is left, and say if the run was interrupted or has failed, where the tracker shows it."""
        try:
            if failed and self.name == "mlflow":  # else it counts as finished
                importlib.import_module("mlflow").end_run("FAILED")
            elif failed and self.name == "wandb":
                self._given.tracker.finish(exit_code=1)
            self._given.finish()
        except ANY as error:  # the run's own results are there
            self._say(f"--track {self.name} could not be closed: {_told(error)}")
        finally:
            self._heard.close()


@dataclass(frozen=True)
class _Tracked:
    """The run of a tracker that holds the figures of an output folder.

    Attributes:
        settings: Hash of the settings that it was given.
        run: Its id.
        told: Hash of the figures of each result that it has.
    """

    tracker: str
    settings: str
    run: str
    told: dict[str, str] = field(default_factory=dict)


def start_tracker(name: str, folder: Path, settings: Mapping[str, object], say: Callable[[str], None]) -> Tracker:
    """Start a tracker for the run in an output folder, and give it the run's settings.

    An earlier run of the same tracker with the same settings is continued.

    Raises RecipeError if it can't be started, for instance without an account, ArtifactError if the folder's record of
    the earlier run is damaged, StorageError.
    """
    import torch
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    given, record = plain_settings(settings), folder / RECORD
    earlier = read_as(record, _Tracked) if record.is_file() else None
    tracked = _Tracked(name, digest_of(given), secrets.token_hex(4))
    continues = earlier is not None and (earlier.tracker, earlier.settings) == (name, tracked.settings)
    if name == "tensorboard":  # which may be deleted to begin anew
        continues = continues and (folder / name).is_dir()
    if continues and earlier is not None:
        tracked = earlier
    heard = ExitStack()
    heard.enter_context(_warnings_told(name, say))
    threads = torch.get_num_threads()
    PartialState()  # the trackers' own messages need it; it joins the processes that are connected
    torch.set_num_threads(threads)  # which it changes among several processes on CPUs
    try:
        tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[name](
            PROJECT, **_options(name, folder, tracked.run, continues=continues)
        )
        if name != "mlflow":  # before the tracker begins, so that no kill makes it begin twice
            write_json(record, asdict(tracked))
        tracker.main_process_only = False  # only the first process comes here
        tracker.start()
        if name == "tensorboard":  # accelerate would write them as a run of their own, called by the time
            tracker.tracker.add_hparams(given, {}, run_name=".")
        else:
            tracker.store_init_configuration({**given, **OWN_SETTINGS.get(name, {})})
        if name == "mlflow":  # its server names runs
            tracked = replace(tracked, run=tracker.tracker.info.run_id)
            write_json(record, asdict(tracked))
    except StorageError:
        heard.close()
        raise
    except ANY as error:
        heard.close()
        remedy = f"set {name} up, or leave --track out"
        if continues:
            remedy += f"; if its run was deleted there, delete {record}"
        raise RecipeError(f"--track {name} can't be started ({_told(error)}): {remedy}") from error
    return Tracker(name, tracker, say, heard, record, tracked)


@contextmanager
def _warnings_told(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say what a library warns of, such as figures that its own thread couldn't write; commands ignore warnings."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def told(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if name in Path(filename).parts:
                words = first_line(message) if isinstance(message, Warning) else message
                say(f"--track {name} warns: {words}")
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = told
        warnings.filterwarnings("always", category=UserWarning, module=rf"{name}(\.|$)")
        yield


def _options(name: str, folder: Path, run: str, *, continues: bool) -> dict[str, object]:
    """What a library is told: the run is called as its folder, and nothing but what we log is collected."""
    title = folder.resolve().name
    if name == "tensorboard":
        return {"logging_dir": folder / "tensorboard"}
    if name == "mlflow":  # these tags would otherwise name the user and the command's path
        tags = {"mlflow.user": PROJECT, "mlflow.source.name": PROJECT, "mlflow.source.git.commit": ""}
        return {"run_name": title, "tags": tags, **({"run_id": run} if continues else {})}
    if name == "wandb":
        options = {"id": run, "resume": "allow", "dir": str(folder), "save_code": False, "settings": dict(WANDB)}
        return {"name": title, **options}
    # It continues runs by their names, which must therefore differ.
    return {"name": f"{title}-{run}", "resume": "allow", "auto_log_cpu": False, "auto_log_gpu": False}


def _told(error: BaseException) -> str:
    """The first line of a library's error, without passwords."""
    return CREDENTIALS.sub("", first_line(error))


def _taken(name: str) -> str:
    """The name of a figure as every tracker takes it: mlflow refuses the + between steps of a model's name."""
    return name.replace(" + ", " and ")


def plain_settings(settings: Mapping[str, object]) -> dict[str, int | float | str | bool]:
    """Settings of a recipe by their dotted names, without folders, the user's own text, and what is unset."""
    flat: dict[str, int | float | str | bool] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for field, part in value.items():
                if field not in WRITTEN:
                    add(f"{name}.{field}" if name else str(field), part)
        elif isinstance(value, str):
            flat[name] = short_source(value) if PLACE.match(value) else value
        elif isinstance(value, bool | int | float):
            flat[name] = value
        elif isinstance(value, list | tuple):
            for number, part in enumerate(value):
                add(f"{name}.{number}", part)

    add("", without_folders(settings))
    return flat
