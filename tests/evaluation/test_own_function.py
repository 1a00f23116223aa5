"""Functions of the caller: lists and generators, and one line for each way in which they fail."""

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import pytest
from tests.tiny.process import forked

from darwinlm.evaluation.measures.imported_files import imported_files
from darwinlm.evaluation.measures.measured import scores_of
from darwinlm.evaluation.measures.named import MeasureRequest
from darwinlm.evaluation.measures.own_function import FunctionMeasure
from darwinlm.evaluation.measures.score_store import ScoreStore
from darwinlm.runtime.errors import MeasureError, RecipeError


@pytest.fixture
def function(tmp_path):
    """Make check.py:score with this body."""

    def make(body: str, seconds: float = 60.0) -> FunctionMeasure:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / "check.py").write_text(f"def score(model, tokenizer):\n{lines}", encoding="utf-8")
        return FunctionMeasure(tmp_path / "check.py", "score", seconds)

    return make


def scores(measure: FunctionMeasure) -> list[float]:
    return list(measure.score("model", "tokenizer"))  # type: ignore[arg-type]


def test_lists_and_generators_are_taken(function):
    assert scores(function("return [1, True, 0.25]")) == [1.0, 1.0, 0.25]
    assert scores(function("yield from (float(len(model)), len(tokenizer))")) == [5.0, 9.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "raise ValueError('no data')",
            r"check\.py:score: before it returned its scores: ValueError: no data \(line 2\)",
        ),
        ("yield 1\nyield 1\n1 / 0", r"check\.py:score: item 3: ZeroDivisionError: division by zero \(line 4\)"),
        ("return [1, float('nan')]", r"item 2 has the score nan: scores must be finite"),
        ("yield float('inf')", r"item 1 has the score inf"),
        ("return [1, 'good', 1]", r"item 2 has the score 'good', not a number"),
        ("return [1, None]", r"item 2 has the score None, not a number"),
        ("return 0.5", r"returned 0\.5: it must return a list with one number for each item"),
        ("return None", r"returned None: it must return a list"),
        ("return 'abc'", r"returned 'abc': it must return a list"),
        ("return []", r"gave no scores"),
        ("return {1.0, 0.0}", r"returned a set, which has no order: it must return a list"),
        ("return [1, 10**400]", r"item 2 has the score inf: scores must be finite"),
        (
            "class Odd:\n    def __float__(self): 1 / 0\n    def __repr__(self): 1 / 0\nreturn [Odd()]",
            r"item 1 has the score <Odd instance at .*>, not a number",
        ),
        (
            "class Odd(Exception):\n    def __str__(self): return 3\nraise Odd",
            r"before it returned its scores: Odd \(line 4\)$",
        ),
        ("return [1e308] * 3", r"item 1 has the score 1e\+308: scores must lie between -1e12 and 1e12"),
        ("while True: yield 1", r"gave more than 100,000 scores: look for an endless loop, or give fewer items"),
        ("import numpy\nreturn numpy.ones((2, 2))", r"item 1 has the score array\(\[1\., 1\.\]\), not a number"),
        ("import sys\nsys.exit(3)", r"before it returned its scores: SystemExit: 3 \(line 3\)"),
        ("raise RuntimeError", r"RuntimeError"),
    ],
)
def test_a_fault_is_one_line_with_the_items_number(function, body, message):
    with pytest.raises(MeasureError, match=message) as caught:
        scores(function(body))
    assert "\n" not in str(caught.value)


def test_what_a_function_changes_in_the_process_is_put_back(function):
    import torch

    def state() -> tuple[object, ...]:
        precision = torch.get_float32_matmul_precision()
        threads, device = torch.get_num_threads(), torch.get_default_device()
        modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled()
        return Path.cwd(), *modes, torch.get_default_dtype(), precision, threads, device

    before = state()
    body = (
        "import os, torch\nos.chdir('/')\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_float32_matmul_precision('medium')\ntorch.set_num_threads(3)\n"
        "torch.set_default_device('meta')\ntorch.set_autocast_enabled('cpu', True)\n"
        "torch.use_deterministic_algorithms(True)\nyield 1"
    )
    assert scores(function(body)) == [1.0]
    assert state() == before


def test_hooks_of_all_modules_are_removed(function):
    """Else all later results would be those of another model, without a word."""
    import torch

    linear = torch.nn.Linear(2, 2)
    expected = linear(torch.ones(2))
    body = (
        "from torch.nn.modules import module\n"
        "module.register_module_forward_hook(lambda m, i, o: 2 * o)\n"
        "module.register_module_forward_pre_hook(lambda m, i: (2 * i[0],))\nyield 1"
    )
    assert scores(function(body)) == [1.0]
    assert torch.equal(linear(torch.ones(2)), expected)


STREAMS = {
    "closed": "sys.stdout.close(); sys.stderr.close()",
    "replaced": "sys.stdout = sys.stderr = io.StringIO()",
    "none": "sys.stdout = sys.stderr = None",
    "closed by number": "os.close(1); os.close(2)",
    "led elsewhere": "os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)",
}


@pytest.mark.parametrize("how", STREAMS)
def test_output_goes_where_it_went_before(how, tmp_path):
    """Else our messages would be lost, or written into the next file that is opened."""
    (tmp_path / "check.py").write_text(
        f"import io, os, sys\ndef score(model, tokenizer):\n    {STREAMS[how]}\n    return [1]\n", encoding="utf-8"
    )
    (tmp_path / "main.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom darwinlm.evaluation.measures.own_function import FunctionMeasure\n"
        "for _ in range(2):\n"
        f"    list(FunctionMeasure(Path({str(tmp_path / 'check.py')!r}), 'score', 60).score(0, 0))\n"
        "print('said')\nprint('told', file=sys.stderr)\n",
        encoding="utf-8",
    )
    done = forked(tmp_path / "main.py")
    assert (done.stdout, done.stderr) == ("said\n", "told\n")


def test_permissions_and_handlers_are_put_back(function):
    def state() -> tuple[object, ...]:
        mask = os.umask(0o077)
        os.umask(mask)
        return mask, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = state()
    body = (
        "import os, signal\nos.umask(0o777)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nyield 1"
    )
    assert scores(function(body)) == [1.0]
    assert state() == before


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("while True: pass", "before it returned its scores"),
        ("yield 1\nwhile True: pass", "item 2"),
        ("class Odd:\n    def __float__(self):\n        while True: pass\nreturn [Odd()]", "item 1"),
        ("while True:\n    try: 1 / 0\n    except: pass", "before it returned its scores"),
        (
            "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: time.sleep(0)",
            "before it returned its scores",
        ),
    ],
)
def test_an_endless_loop_ends(function, body, where):
    begun = time.monotonic()
    with pytest.raises(MeasureError, match=rf"{where}: not finished after .*endless loop.*--measure-time"):
        scores(function(body, 0.2))
    assert time.monotonic() - begun < 60


@pytest.fixture
def interruptible():
    """Ctrl-C reaches this process; a background shell would let it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


INTERRUPTS = "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\n"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    "body",
    [
        f"{INTERRUPTS}except: pass\nreturn [1.0]",
        f"yield 1.0\n{INTERRUPTS}except BaseException: yield 0.0",
        f"{INTERRUPTS}finally: return [1.0]",
    ],
)
def test_an_interrupt_that_the_function_catches_interrupts_and_gives_no_score(function, body):
    with pytest.raises(KeyboardInterrupt):
        scores(function(body))


def test_what_lies_beside_the_file_can_be_imported(tmp_path):
    (tmp_path / "items_beside.py").write_text("ITEMS = [1, 0]\n", encoding="utf-8")
    (tmp_path / "check.py").write_text(
        "from items_beside import ITEMS\ndef score(model, tokenizer):\n    return ITEMS\n", encoding="utf-8"
    )
    assert scores(FunctionMeasure(tmp_path / "check.py", "score", 60)) == [1.0, 0.0]


class Weights:
    """A model to score."""

    identity: ClassVar = {"weights": "x"}

    def load(self) -> tuple[str, str]:
        return "model", "tokenizer"

    def release(self) -> None:
        """It holds nothing."""


def test_a_change_of_what_is_imported_is_another_measure(tmp_path):
    """Scores by the old content must not be taken for those by the new one, also in the same process."""
    for name, text in {
        "check.py": "def score(model, tokenizer):\n    from rules.strict import weight\n    return [weight()]\n",
        "rules/__init__.py": "",
        "rules/strict.py": "from . import table\n\ndef weight():\n    return table.VALUE\n",
        "rules/table.py": "VALUE = 0.5\n",
        "other.py": "VALUE = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [file.name for file in imported_files(tmp_path / "check.py")] == ["__init__.py", "strict.py", "table.py"]
    store = ScoreStore(tmp_path / "scores")
    before = FunctionMeasure(tmp_path / "check.py", "score", 60)
    assert store.scores(Weights(), before) == [0.5]  # type: ignore[arg-type]
    (tmp_path / "other.py").write_text("VALUE = 22\n", encoding="utf-8")
    assert FunctionMeasure(tmp_path / "check.py", "score", 60).digest == before.digest
    (tmp_path / "rules" / "table.py").write_text("VALUE = 0.125\n", encoding="utf-8")
    after = FunctionMeasure(tmp_path / "check.py", "score", 60)
    assert after.digest != before.digest
    assert store.scores(Weights(), after) == [0.125]  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["from ... import far\n", "import nowhere\n", "def broken(:\n", "x = '\0'\n"])
def test_imports_that_lead_nowhere_are_left_to_python(tmp_path, text):
    (tmp_path / "check.py").write_text(text, encoding="utf-8")
    assert imported_files(tmp_path / "check.py") == []


def test_what_is_missing_is_named_before_any_work(tmp_path):
    path = tmp_path / "check.py"
    with pytest.raises(RecipeError, match="there is no file"):
        FunctionMeasure(path, "score", 1)
    path.write_text("def other(): pass\nvalue = 3\n", encoding="utf-8")
    for name in ("score", "value"):
        with pytest.raises(RecipeError, match=f"the file has no function '{name}'"):
            FunctionMeasure(path, name, 1)
    path.write_text("import nothing_like_this\n", encoding="utf-8")
    with pytest.raises(MeasureError, match=r"when it was loaded: ModuleNotFoundError: .* \(line 1\)"):
        FunctionMeasure(path, "score", 1)
    path.write_text("def score(:\n", encoding="utf-8")
    with pytest.raises(MeasureError, match=r"when it was loaded: SyntaxError"):
        FunctionMeasure(path, "score", 1)


def test_scalars_of_libraries_are_numbers(function):
    body = "import numpy, torch\nreturn [numpy.float32(1), numpy.bool_(True), numpy.int64(0), torch.tensor(0.5)]"
    assert scores(function(body)) == [1.0, 1.0, 0.0, 0.5]


def test_a_function_that_changes_the_model_changes_no_other_score(function, tmp_path):
    loaded = []

    class Model:
        identity: ClassVar = {"weights": "x"}

        def __init__(self) -> None:
            self.now: list[float] | None = None

        def load(self) -> tuple[list[float], str]:
            if self.now is None:
                self.now = [1.0]
                loaded.append("loaded")
            return self.now, "tokenizer"

        def release(self) -> None:
            self.now = None

    (tmp_path / "other.py").write_text("def score(model, tokenizer):\n    return model\n", encoding="utf-8")
    measures = [function("model[0] = 0.0\nreturn [0.5]"), FunctionMeasure(tmp_path / "other.py", "score", 60)]
    assert scores_of(Model(), measures, ScoreStore(tmp_path / "kept")) == [[0.5], [1.0]]  # type: ignore[arg-type]
    assert len(loaded) == 2


def test_what_killed_processes_left_among_the_scores_is_removed(function, tmp_path):
    class Model:
        identity: ClassVar = {"weights": "x"}

        def load(self) -> tuple[str, str]:
            return "model", "tokenizer"

    for name, age in (("old", 7200), ("new", 0)):
        left = tmp_path / "kept" / f".{'0' * 32}.json.{name}.tmp"
        left.mkdir(parents=True)
        (left / "new").write_text("{", encoding="utf-8")
        os.utime(left, (time.time() - age,) * 2)
    assert ScoreStore(tmp_path / "kept").scores(Model(), function("return [0.5]")) == [0.5]  # type: ignore[arg-type]
    (left,) = (tmp_path / "kept").glob(".*")
    assert "new" in left.name, "another process may be writing it"


def test_a_changed_file_is_another_measure(function):
    assert function("return [1]").digest == function("return [1]").digest != function("return [0]").digest


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((" , ",), {}, "--measure is empty"),
        (("check.py",), {}, r"check\.py: name a function of the file, as in check\.py:score"),
        (("piqa:few",), {}, "--measure: 'piqa:few' should be TASK or TASK:SHOTS"),
        (("sciq",), {"time": "3 days"}, "--measure-time 3 days: "),
        (("sciq",), {"time": "0"}, "--measure-time 0: needs a unit"),
    ],
)
def test_names_of_measures(names, options, message):
    with pytest.raises(RecipeError, match=message):
        MeasureRequest(names, **options).open()


@pytest.mark.parametrize("name", ["q.csv", "q.txt", "folder"])
def test_a_file_of_another_kind(tmp_path, name):
    (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).write_text("question,answer\n")
    with pytest.raises(
        RecipeError, match=r"a file of questions ends with \.jsonl, \.jsonl\.gz, \.json and has one JSON"
    ):
        MeasureRequest((str(tmp_path / name),)).open()


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct", "mbpp"])
def test_coding_tasks_are_loaded_only_where_code_is_allowed(name, monkeypatch):
    def load(*_: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("darwinlm.evaluation.harness.load_task", load)
    with pytest.raises(RecipeError, match=rf"--measure {name}: this task runs code .*: allow it with --run-code"):
        MeasureRequest((name,)).open()
    (measure,) = MeasureRequest((name,), run_code=True).open()
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    allowed = []
    monkeypatch.setattr("darwinlm.evaluation.harness.load_task", lambda *_: allowed.append(dict(os.environ)) or 1 / 0)
    with pytest.raises(MeasureError, match=rf"{name}: the harness can't load this task, its data, or its metric: Zero"):
        measure.texts()
    assert allowed[0]["HF_ALLOW_CODE_EVAL"] == "1"


def test_the_same_name_twice(tmp_path: Path):
    (tmp_path / "q.jsonl").write_text('{"question": "x", "answer": "y"}\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"--measure names q\.jsonl twice"):
        MeasureRequest((f"{tmp_path}/q.jsonl,{tmp_path}/q.jsonl",)).open()
