"""A program for some gloo processes that share the weights of a dense and a trained model, and what each of them sees.

torchrun ... -m tests.tiny.sharing MODEL
"""

import json
import sys
from pathlib import Path

import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe.sections import RecoverySettings
from darwinlm.recovery.model import Losses, logits_of, prepared, run_dense
from darwinlm.recovery.sharding import load_teacher, sharder, sharding_mesh, spread
from darwinlm.runtime import parallel

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """Bytes of this process's memory now (VmRSS), or at its peak (VmHWM)."""
    (line,) = (line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def held(model: torch.nn.Module) -> int:
    return sum(weight.to_local().nbytes for weight in model.parameters() if hasattr(weight, "to_local"))


def main() -> None:
    torch.set_num_threads(1)
    parallel.init_from_environment()
    teacher, device = Checkpoint.open(Path(sys.argv[1])), torch.device("cpu")
    mesh = sharding_mesh("fsdp", device)
    assert mesh is not None
    parallel.gather(0)
    REFERENCES.write_text("5", encoding="ascii")  # the peak begins here
    before = resident("VmRSS")
    model = load_teacher(teacher, torch.float32, device, mesh)
    loaded = resident("VmHWM") - before
    hidden = run_dense(model, torch.arange(8)[None])
    running = resident("VmHWM") - before
    parallel.gather(0)
    REFERENCES.write_text("5", encoding="ascii")
    before = resident("VmRSS")
    settings = RecoverySettings(tokens=10_000_000)
    trained = prepared(teacher.load(torch.float32, each=sharder(None, mesh)), settings)
    spread(Losses(trained, None, settings, None, sharded=True), device, mesh)
    found = {
        "rank": parallel.rank(),
        "mesh": mesh.mesh.tolist(),
        "peak": loaded,
        "running": running,
        "held": held(model),
        "trained_peak": resident("VmHWM") - before,
        "trained_held": held(trained),
        "trained_wants": sum(weight.numel() for weight in trained.parameters() if weight.requires_grad),
        "logits": logits_of(model, hidden[0]).double().mean(0)[:4].tolist(),
    }
    everything = parallel.gather(found)
    if parallel.is_main():
        print("FOUND " + json.dumps(everything))
    parallel.shutdown()


if __name__ == "__main__":
    main()
