"""Figures of runs in trackers: tensorboard itself, and a tracker of ours that notes, fails, or can't be started."""

import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.recovering import RECOVERY

import darwinlm
from darwinlm.report.summary import Summary
from darwinlm.runs.finished import read_summary
from darwinlm.runtime import tracking
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import MissingExtraError, RecipeError
from darwinlm.runtime.tracking import TRACKERS, Tracker, check_tracker, plain_settings, start_tracker
from darwinlm.steps.recover.recovery_figures import RecoveryFigures
from darwinlm.steps.search.search_figures import SearchFigures

accelerate = pytest.importorskip("accelerate.tracking", reason="accelerate isn't installed")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Figures by name and step, as tensorboard reads them."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def summary_of(folder: Path) -> Summary:
    return read_summary(folder / "summary.json")


@pytest.mark.filterwarnings("ignore")  # of tensorboard's imports
def test_search_and_training_are_in_tensorboard(
    tiny_llama: Path, tiny_text_file: Path, tmp_path: Path, command
) -> None:
    run, recovered = tmp_path / "half", tmp_path / "recovered"
    settings = [word for assignment in SETTINGS for word in ("--set", assignment)]
    line = ("prune", tiny_llama, "--keep", "60%", "--text", tiny_text_file, "--out", run, *settings)
    command(*line, "--track", "tensorboard").succeeded()
    folder = run / "tensorboard" / tracking.PROJECT
    assert {path.parent for path in folder.rglob("*") if path.is_file()} == {folder}, "one run"
    found = scalars(folder)
    search = summary_of(run).of(SearchFigures)
    assert search is not None
    assert found["search/kl"] == pytest.approx({entry.number: entry.kl for entry in search.history})
    assert [*found["search/uniform_kl"].values()] == pytest.approx([search.uniform_kl] * len(search.history))
    saved = summary_of(run).saved
    assert found["models/searched and refit/kl"][0] == pytest.approx(saved.kl)
    assert found["models/dense/params"][0] == summary_of(run).dense.params

    training = [word for assignment in RECOVERY for word in ("--set", assignment)]
    line = ("recover", run, "--text", tiny_text_file, "--out", recovered, *training)
    command(*line, "--track", "tensorboard").succeeded()
    found = scalars(recovered / "tensorboard" / tracking.PROJECT)
    log = summary_of(recovered).of(RecoveryFigures).log
    assert [*found["recovery/loss"].values()] == pytest.approx([point.loss for point in log if point.loss is not None])
    assert 0 in found["recovery/eval_kl"], "before the training"
    for folder in (run, recovered):
        written = b"".join(path.read_bytes() for path in (folder / "tensorboard").rglob("*") if path.is_file())
        assert b"budget.keep" in written, "the settings"
        assert str(tmp_path).encode() not in written, "names of folders stay here"
        assert str(tiny_text_file.parent).encode() not in written
        assert tiny_text_file.read_bytes()[:40] not in written


class Noted:
    """A tracker of accelerate that notes what it gets."""

    name = "wandb"
    main_process_only = True

    def __init__(self, project: str, **options: object) -> None:
        self.project, self.options = project, options
        self.started, self.settings, self.figures, self.finished = False, {}, [], 0
        MADE.append(self)

    def start(self) -> None:
        self.started = True

    def store_init_configuration(self, values: dict) -> None:
        self.settings = values

    @property
    def tracker(self) -> SimpleNamespace:
        """The library's own run."""
        return SimpleNamespace(info=SimpleNamespace(run_id="4b825dc6"), finish=self.figures.append)

    def log(self, values: dict, step: int | None = None) -> None:
        assert not self.main_process_only, "else accelerate would connect processes"
        assert all(re.fullmatch(r"[\w\-. :/]+", name) for name in values), "mlflow refuses other names"
        self.figures.append((values, step))

    def finish(self) -> None:
        self.finished += 1


class Failing(Noted):
    """A tracker whose server is gone."""

    def log(self, values: dict, step: int | None = None) -> None:
        super().log(values, step)
        raise ConnectionError("no route to host\nmore lines")


class Closed(Noted):
    """A tracker that needs an account."""

    def start(self) -> None:
        raise ValueError("no API key configured")


MADE: list[Noted] = []


def use(monkeypatch: pytest.MonkeyPatch, kind: type[Noted], name: str = "wandb") -> None:
    """Let our tracker be wandb, or another one."""
    MADE.clear()
    monkeypatch.setitem(accelerate.LOGGER_TYPE_TO_CLASS, name, kind)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: True if asked == name else found(asked))


class Told(Reporter):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_the_sizes_of_a_sweep_are_told_apart(
    tiny_llama: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Noted)
    overrides = {"model": str(tiny_llama), "text.source": str(tiny_text_file), "budget.keep": "80%,60%"}
    recipes = darwinlm.load_recipes(None, SETTINGS, overrides)
    reporter = Told()
    darwinlm.prune_sweep(recipes, tmp_path / "sizes", track="wandb", reporter=reporter)
    (noted,) = MADE
    assert (noted.project, noted.started, noted.finished) == ("darwinlm", True, 1)
    assert reporter.tracker is None
    names = {name for figures, _ in noted.figures for name in figures}
    for size in ("keep-80", "keep-60"):
        assert f"{size}/search/kl" in names
        assert f"{size}/models/searched and refit/perplexity" in names
    assert {step for _, step in noted.figures} == {None}, "its steps would have to rise over all sizes"
    assert noted.settings["text.source"] == tiny_text_file.name
    assert noted.options["settings"]["x_disable_meta"]


def test_trackio_gets_neither_the_account_nor_figures_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It puts the name of the account among the settings, and logs the use of the processor and of the GPU."""
    use(monkeypatch, Noted, "trackio")
    start_tracker("trackio", tmp_path / "half", {"text": {"seed": 3}}, print)
    options = {"resume": "allow", "auto_log_cpu": False, "auto_log_gpu": False}
    assert MADE[0].options == {**options, "name": MADE[0].options["name"]}
    assert re.fullmatch("half-[0-9a-f]{8}", MADE[0].options["name"])
    assert MADE[0].settings == {"text.seed": 3, "_Username": "darwinlm"}


def test_the_same_settings_again_continue_the_trackers_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, field in (("wandb", "id"), ("trackio", "name"), ("mlflow", "run_id")):
        use(monkeypatch, Noted, name)
        for folder, seed in (("half", 3), ("half", 3), ("half", 4), ("half", 4), ("other", 4)):
            start_tracker(name, tmp_path / name / folder, {"text": {"seed": seed}}, print)
        begun, again, changed, changed_again, other = (made.options.get(field) for made in MADE)
        if name == "mlflow":
            assert (begun, changed, other) == (None, None, None), "its server names runs"
            assert again == changed_again == "4b825dc6"
        else:
            assert begun == again
            assert changed == changed_again
            assert len({begun, changed, other}) == 3


def test_a_trackers_run_that_is_gone_can_be_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, Noted, "mlflow")
    start_tracker("mlflow", tmp_path, {}, print)
    monkeypatch.setattr(Noted, "start", lambda self: 1 / 0)
    with pytest.raises(RecipeError, match=r"if its run was deleted there, delete .*tracked\.json"):
        start_tracker("mlflow", tmp_path, {}, print)


def models_sent() -> list[str]:
    """Names of the figures of measured models that our trackers got."""
    return sorted(name for noted in MADE for figures, _ in noted.figures for name in figures if "models/" in name)


def test_a_finished_run_tells_its_figures_once(
    tiny_llama: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Noted)

    def sweep(sizes: str) -> None:
        overrides = {"model": str(tiny_llama), "text.source": str(tiny_text_file), "budget.keep": sizes}
        recipes = darwinlm.load_recipes(None, SETTINGS, overrides)
        darwinlm.prune_sweep(recipes, tmp_path / "sizes", track="wandb", reporter=Told())

    sweep("80%,60%")
    first = models_sent()
    assert first
    sweep("80%,60%")
    assert models_sent() == first
    sweep("80%,60%,70%")
    added = [name for name in models_sent() if name.startswith("keep-70/")]
    assert added
    assert models_sent() == sorted(first + added)


def test_figures_that_changed_or_were_not_received_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def send(kl: float, kind: type[Noted] = Noted, name: str = "wandb") -> int:
        use(monkeypatch, kind, name)
        start_tracker(name, tmp_path, {}, print).log_result("models/dense", {"kl": kl})
        return len(MADE[0].figures)

    assert (send(1.0, Failing), send(1.0), send(1.0), send(2.0), send(2.0)) == (1, 1, 0, 1, 0)
    assert send(2.0, name="trackio") == 1, "another tracker has none yet"


def test_a_deleted_folder_of_tensorboard_gets_all_figures_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Folder(Noted):
        tracker = SimpleNamespace(add_hparams=lambda *_, **__: None)

        def start(self) -> None:
            (tmp_path / "tensorboard").mkdir(exist_ok=True)

    def send() -> int:
        use(monkeypatch, Folder, "tensorboard")
        start_tracker("tensorboard", tmp_path, {}, print).log_result("models/dense", {"kl": 1.0})
        return len(MADE[0].figures)

    assert (send(), send()) == (1, 0)
    (tmp_path / "tensorboard").rmdir()
    assert send() == 1


def test_passwords_in_a_trackers_address_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, Noted, "mlflow")
    said: list[str] = []
    tracker = start_tracker("mlflow", tmp_path, {}, said.append)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no answer from https://anna:secret@tracker.example/api")

    for name in ("log", "finish"):
        monkeypatch.setattr(MADE[0], name, fail)
    tracker.log("search", 0, {"kl": 1.0})
    tracker.finish()
    monkeypatch.setattr(Noted, "start", fail)
    with pytest.raises(RecipeError, match="no answer from https://tracker") as raised:
        start_tracker("mlflow", tmp_path, {}, said.append)
    assert len(said) == 2
    assert all("https://tracker.example/api" in words for words in said)
    assert "secret" not in " ".join([*said, str(raised.value)])


class Interrupted(Noted):
    """A tracker during whose first figure the user interrupts the run."""

    def log(self, values: dict, step: int | None = None) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_interrupted_run_is_not_finished_in_its_tracker(
    name: str, tiny_llama: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Interrupted, name)
    ended: list[object] = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(end_run=ended.append))
    library = SimpleNamespace(info=SimpleNamespace(run_id="1"), finish=lambda exit_code: ended.extend([exit_code]))
    monkeypatch.setattr(Interrupted, "tracker", library)
    with pytest.raises(KeyboardInterrupt):
        darwinlm.prune(
            tiny_llama, tmp_path / "run", keep=0.6, text=tiny_text_file, assignments=SETTINGS, track=name,
            reporter=Told(),
        )  # fmt: skip
    assert ended == [{"mlflow": "FAILED", "wandb": 1}[name]]
    assert MADE[0].finished == 1


def test_a_tracker_that_fails_does_not_end_the_run(
    tiny_llama: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Failing)
    reporter = Told()
    result = darwinlm.prune(
        tiny_llama,
        tmp_path / "run",
        keep=0.6,
        text=tiny_text_file,
        assignments=SETTINGS,
        track="wandb",
        reporter=reporter,
    )
    assert result.summary.saved.kl is not None
    assert reporter.said.count("--track wandb failed, and the run goes on without it: no route to host") == 1
    assert len(MADE[0].figures) == 1


def test_a_tracker_that_cannot_be_started_ends_the_run_before_any_work(
    tiny_llama: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command
) -> None:
    use(monkeypatch, Closed)
    line = ("prune", tiny_llama, "--keep", "60%", "--text", tiny_text_file, "--out", tmp_path / "run")
    command(*line, "--track", "wandb").refused("--track wandb can't be started (no API key configured): set wandb up")
    assert not (tmp_path / "run" / "stages").exists()


def test_a_missing_library_is_told_before_any_work(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for line in (
        ("prune", tiny_llama, "--keep", "60%", "--out", tmp_path / "run"),
        ("prune", tiny_llama, "--keep", "80%,60%", "--out", tmp_path / "run"),
        ("recover", tmp_path, "--out", tmp_path / "run"),
    ):
        command(*line, "--track", "mlflow").refused("--track mlflow needs the package 'mlflow': pip install")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(RecipeError, match="there is no such tracker: did you mean 'tensorboard'"):
        check_tracker("tensorbord")
    with pytest.raises(RecipeError, match="trackers are wandb, trackio, tensorboard, mlflow"):
        check_tracker("comet")
    check_tracker(None)


def test_every_tracker_has_an_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(TRACKERS) <= set(project["optional-dependencies"])
    assert set(TRACKERS) <= set(accelerate.LOGGER_TYPE_TO_CLASS)


def test_figures_that_are_not_finite_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, Noted)
    tracker = start_tracker("wandb", tmp_path, {}, print)
    tracker.log("search", 3, {"kl": float("nan"), "evaluations": 4, "loss": float("inf")})
    assert MADE[0].figures == [({"search/evaluations": 4}, None)]


def test_a_tracker_that_cannot_be_closed_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, Noted)
    said: list[str] = []
    tracker: Tracker = start_tracker("wandb", tmp_path, {}, said.append)
    monkeypatch.setattr(MADE[0], "finish", lambda: json.loads("{"))
    tracker.finish()
    assert said[0].startswith("--track wandb could not be closed: ")


def test_what_a_tracker_only_warns_of_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trackio writes in a thread of its own, and commands ignore warnings of libraries."""
    use(monkeypatch, Noted, "trackio")
    warnings.filterwarnings("ignore")
    filters, said = list(warnings.filters), []
    tracker = start_tracker("trackio", tmp_path, {}, said.append)

    def warned(by: str, kind: type[Warning]) -> None:
        warnings.warn_explicit(
            f"a batch of {by} could not be persisted", kind, f"/lib/{by}/run.py", 3, module=f"{by}.run"
        )

    for by, kind in (("trackio", UserWarning), ("trackio", FutureWarning), ("torch", UserWarning)):
        monkeypatch.setattr(MADE[0], "log", lambda *_, by=by, kind=kind, **__: warned(by, kind))
        tracker.log("search", 0, {"kl": 1.0})
    tracker.finish()
    assert said == ["--track trackio warns: a batch of trackio could not be persisted"]
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("error", [SystemExit(), MemoryError()])
def test_a_tracker_that_ends_the_process_or_says_nothing_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    use(monkeypatch, Noted)
    said: list[str] = []
    tracker = start_tracker("wandb", tmp_path, {}, said.append)

    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("log", "finish"):
        monkeypatch.setattr(MADE[0], name, fail)
    tracker.log("search", 0, {"kl": 1.0})
    tracker.finish()
    name = type(error).__name__
    assert said == [
        f"--track wandb failed, and the run goes on without it: {name}",
        f"--track wandb could not be closed: {name}",
    ]
    monkeypatch.setattr(Noted, "start", fail)
    with pytest.raises(RecipeError, match=rf"--track wandb can't be started \({name}\): set wandb up"):
        start_tracker("wandb", tmp_path, {}, said.append)


def test_settings_have_no_folders_and_no_text() -> None:
    settings = {
        "model": "/home/someone/models/Llama",
        "text": {
            "source": "/home/someone/secret/a.txt,hf:owner/name,~/b",
            "seed": 3,
            "answers": "our yes,our no",
            "template": "Our {query}",
        },
        "search": {"rounds": [{"tokens": 512}, {"tokens": 1024}], "method": {"name": "gradient"}},
        "script": "C:\\Users\\someone\\own.py",
        "compute": {"dtype": "float32", "fast": True},
    }
    assert plain_settings(settings) == {
        "model": "Llama",
        "text.source": "a.txt,hf:owner/name,b",
        "text.seed": 3,
        "search.rounds.0.tokens": 512,
        "search.rounds.1.tokens": 1024,
        "search.method.name": "gradient",
        "script": "own.py",
        "compute.dtype": "float32",
        "compute.fast": True,
    }


def test_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else True)
    with pytest.raises(MissingExtraError, match=r"'accelerate': pip install .*\[trackio\]"):
        check_tracker("trackio")
