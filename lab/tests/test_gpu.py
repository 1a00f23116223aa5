"""The acceptance test of a GPU runs, tiny, on a pretended one: it can't rot while there is no GPU."""

import json
import os
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, requires
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.gpu.device import pretend_gpu
from tests.tiny.process import python

from lab.benchmarks import gpu, gpu_parts, gpu_units, gpu_wheels
from lab.benchmarks.gpu_units import Line, Setup


def test_every_part_ends_within_one_command():
    assert list(gpu.LIMITS) == list(gpu_parts.PARTS)
    assert max(gpu.LIMITS.values()) + gpu.START < 60 * gpu.MINUTES == 480


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The benchmark with small shapes; its parts share models."""
    lines: list[Line] = []
    setup = Setup("cuda", tiny=True, work=tmp_path_factory.mktemp("gpu"), lines=SimpleNamespace(put=lines.append))
    return SimpleNamespace(setup=setup, lines=lines)


EQUAL = {name: gpu_units.EQUAL[name] for name in ("default", "biases, recovery")}
"""Cases in which the comparison takes every branch; tests/gpu/test_gpu_pipeline.py compares the other ones."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", [name for name in gpu.LIMITS if name != "plan"])  # of whole recipes alone
def test_each_part_runs_on_a_pretended_gpu(tiny, part, monkeypatch):
    monkeypatch.setattr(gpu_units, "EQUAL", EQUAL)
    with pretend_gpu() as device:
        gpu_parts.PARTS[part](tiny.setup)
    assert not device.tally.mixes
    lines = [line for line in tiny.lines if line.part == part]
    assert lines
    assert not [line for line in lines if line.ok is False]


def test_a_small_disk_gets_a_smaller_model(tmp_path, monkeypatch):
    free = {32: 50e9, 16: 30e9, 8: 23e9, 4: 20e9}
    for blocks, size in free.items():
        monkeypatch.setattr(gpu.shutil, "disk_usage", lambda _, size=size: SimpleNamespace(free=size))
        assert gpu.blocks_for(tmp_path) == blocks
    (tmp_path / "llama-16").mkdir()
    (tmp_path / "llama-16" / "model.safetensors.index.json").touch()
    assert gpu.blocks_for(tmp_path) == 16
    monkeypatch.setattr(gpu.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    with pytest.raises(ValueError, match=r"has 1 GB, 19 GB are needed: give a folder with --work"):
        gpu.blocks_for(tmp_path / "other")


def test_of_several_wheels_those_that_fit_are_unpacked(tmp_path):
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for name in ("one-1.0-py3-none-any", "one-1.2-py3-none-any", f"two-1-{tag}-abi9-win31", "odd"):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as archive:
            archive.writestr("said.py", name)
    assert gpu_wheels.unpack(tmp_path, tmp_path / "packages") == ["one"]
    assert (tmp_path / "packages" / "said.py").read_text(encoding="utf-8") == "one-1.2-py3-none-any"
    with pytest.raises(ValueError, match="holds no wheel that fits"):
        gpu_wheels.unpack(tmp_path / "packages", tmp_path / "none")


def needed_by(*names: str) -> dict[str, Distribution]:
    """Installed packages that some need, and they themselves."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = distribution(name)
        wanted = map(Requirement, requires(name) or ())
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def files_of(package: Distribution) -> Iterable[tuple[str, Path]]:
    """Names and places of its modules."""
    for file in package.files or ():
        if not file.parts[0].startswith("..") and file.suffix != ".pyc":
            yield str(file), Path(package.locate_file(file))


def test_a_bare_machine_needs_a_folder_of_wheels(tmp_path):
    """A Python that finds PyTorch, transformers and what they need, and nothing else, also not this package."""
    bare, wheels = tmp_path / "bare", tmp_path / "wheels"
    bare.mkdir()
    wheels.mkdir()
    theirs = needed_by("torch", "transformers")
    ours = needed_by("pydantic", "rich", "jaxtyping")
    del ours["typing-extensions"]
    for name, package in theirs.items():
        if name in (*ours, "typer"):
            continue
        for top in {file.partition("/")[0] for file, _ in files_of(package)}:
            if not (bare / top).exists():
                (bare / top).symlink_to(package.locate_file(top))
    for name, package in ours.items():
        tag = (package.read_text("WHEEL") or "").partition("\nTag: ")[2].splitlines()[0]
        with zipfile.ZipFile(wheels / f"{name.replace('-', '_')}-{package.version}-{tag}.whl", "w") as archive:
            for file, place in files_of(package):
                archive.write(place, file)
    run = ("-S", "-m", "lab.benchmarks.gpu", "--tiny", "--device", "cpu", "--work", tmp_path / "work")
    run += ("--out", tmp_path / "gpu.json", "--part", "machine", "--part", "moments")
    where = {"cwd": gpu.ROOT, "PYTHONPATH": str(bare), "PYTHONDONTWRITEBYTECODE": "1"}
    done = python(*run, "--wheels", wheels, **where)
    assert done.stdout.startswith("unpacked annotated-types, ")
    assert not (bare / "pydantic").exists()
    assert "this Python lacks typer, scipy, datasets" in done.stdout
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert written["failed"] == []
    assert {line["part"] for line in written["lines"]} == {"machine", "moments"}
    assert written["left"] == [name for name in gpu.LIMITS if name not in ("machine", "moments")]
    assert os.fspath(tmp_path / "work" / "packages") not in sys.path


def test_the_same_command_goes_on_with_the_rest(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(("first", "second", "third"), 10))
    monkeypatch.setattr(gpu, "_find_packages", lambda *_: None)
    monkeypatch.setattr(gpu, "_run_part", lambda name, setup: None)
    monkeypatch.setattr(
        gpu, "_lines_of", lambda _, __, name, ends: ran.append(name) or [Line(name, name, 1.0, ok=True)]
    )
    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda _: Inline())
    command = ["gpu", "--device", "cpu", "--tiny", "--work", str(tmp_path), "--out", str(tmp_path / "gpu.json")]
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "0"])
    for status, said in ((3, "left are second, third"), (3, "left are third"), (0, "0 of 6 lines failed")):
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        assert ended.value.code == status
        assert said in capsys.readouterr().out
    assert ran == ["first", "second", "third"]


class Inline:
    """In place of multiprocessing's context."""

    Queue = staticmethod(lambda: None)
    Process = staticmethod(lambda **_: SimpleNamespace(start=int, kill=int, join=int))

    def set_forkserver_preload(self, names: list[str]) -> None:
        """Nothing."""
