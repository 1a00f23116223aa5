"""The element type of a run: if the recipe says `auto`, the one that is fast on the device."""

import pytest
import torch

from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runs.opening import open_run
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import fast_dtype, resolve_device
from darwinlm.runtime.compute_settings import ComputeSettings
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.context import settled
from darwinlm.runtime.errors import ParallelError, RecipeError

CPU, MPS = torch.device("cpu"), torch.device("mps")


@pytest.fixture
def processor(monkeypatch):
    """Simulate a processor with these features."""

    def able(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    return able


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R) Processor"}, "float32"),
        ({"avx512_bf16": True}, "float32"),
        ({"avx512_bf16": False, "avx2": True, "cpu_name": "AMD EPYC"}, "float32"),
        ({"bf16": True}, "float32"),
    ],
)
def test_processors_work_in_bfloat16_where_it_is_quick(processor, capabilities, dtype):
    processor(**capabilities)
    assert fast_dtype(CPU) == dtype
    assert fast_dtype(torch.device("cuda")) == "bfloat16"


@pytest.mark.parametrize("limit", ["DEFAULT", "AVX2"])
def test_a_pytorch_that_is_limited_to_older_vectors_works_in_float32(processor, monkeypatch, limit):
    processor(amx_bf16=True, avx512_bf16=True, cpu_name="AMD EPYC")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: limit)
    assert fast_dtype(CPU) == "float32"


def test_a_run_computes_and_names_what_its_recipe_then_says(processor, tmp_path):
    processor(amx_bf16=False)
    said = load_recipe(Recipe(), ["compute.dtype=bfloat16", "compute.batch_tokens=2048"], {})
    assert settled(said.compute, CPU) == said.compute, "it is left alone"
    run = open_run(load_recipe(Recipe(), [], {"model": "any"}), tmp_path / "out", Reporter(quiet=True))
    assert run.context.arithmetic["dtype"] == "torch.float32"
    assert (run.recipe.compute.dtype, run.context.batch_tokens) == ("float32", 1024)


@pytest.fixture
def gpus(monkeypatch):
    """Simulate a machine with a number of GPUs of a compute capability."""

    def make(count, capability=(9, 0)):
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "Tesla V100")

    return make


@pytest.fixture
def processes(monkeypatch):
    """Simulate one of several processes on a machine."""

    def make(number, count):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
        monkeypatch.setattr(parallel, "size", lambda: count)

    return make


def test_devices_that_are_here(gpus):
    gpus(0)
    assert [resolve_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    gpus(2)
    assert [str(resolve_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]


@pytest.fixture
def apple(monkeypatch):
    """Simulate a Mac with a GPU, and a version of macOS."""

    def make(macos):
        monkeypatch.setattr(torch, "ones", lambda size, device: 1)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: version <= macos)

    return make


def test_apples_gpu_is_used_by_name(gpus, apple, processes):
    gpus(0)
    apple((14, 2))
    assert [resolve_device(name).type for name in ("auto", "mps")] == ["cpu", "mps"]
    processes(0, 2)
    with pytest.raises(RecipeError, match="mps is one GPU, but 2 processes were started: start one"):
        resolve_device("mps")


def test_each_process_has_its_gpu(gpus, processes):
    gpus(4)
    processes(3, 4)
    assert str(resolve_device("auto")) == "cuda:3"
    gpus(1)  # where each process is shown one alone
    assert str(resolve_device("cuda")) == "cuda:0"


@pytest.mark.parametrize(
    ("count", "process", "name", "error", "message"),
    [
        (0, None, "cuda", RecipeError, "finds no GPU for 'cuda'; use auto or cpu"),
        (1, None, "cuda:1", RecipeError, "there is no 'cuda:1' here, only cuda:0"),
        (4, None, "cuda:7", RecipeError, "there is no 'cuda:7' here, cuda:0 to cuda:3"),
        (0, None, "gpu", RecipeError, "'gpu' is not a device; use auto, cpu, cuda or cuda:1"),
        (0, None, "meta", RecipeError, "'meta' can't run a model"),
        (0, None, "mps", RecipeError, r"'mps' can't be used here \(.+\); use auto"),
        (0, None, "xpu", RecipeError, r"'xpu' can't be used here \(.+\); use auto"),
        (4, (1, 2), "cuda:1", RecipeError, "'cuda:1' is one GPU, but 2 processes were started: use cuda"),
        (2, (2, 3), "auto", ParallelError, r"has 2 GPUs, but 3 processes .*torchrun --nproc-per-node 2"),
    ],
)
def test_devices_that_are_refused(gpus, processes, count, process, name, error, message):
    gpus(count)
    if process:
        processes(*process)
    with pytest.raises(error, match=message):
        resolve_device(name)


def test_a_gpu_without_bfloat16_works_in_float32(gpus):
    gpus(1, (7, 0))
    device = torch.device("cuda")
    found = settled(ComputeSettings(), device).model_dump(include={"dtype", "batch_tokens"})
    assert found == {"dtype": "float32", "batch_tokens": 4096}
    with pytest.raises(RecipeError, match=r"compute\.dtype=bfloat16: Tesla V100 doesn't support bfloat16: use flo"):
        settled(ComputeSettings(dtype="bfloat16"), device)
