"""A model pruned to widths that a quantisation's groups divide, against one pruned to multiples of 32.

All arms are the demo's model, from one database: the knapsack solution for the database's estimated losses, without a
search, a refit or training. They keep the same share of its block parameters, but for the last one, whose file is about
as large as that of the first. Each is exported with llama.cpp's own quantiser; `padded` exports the model of multiples
of 32 with its MLPs padded to whole groups. A line has the size of the file, the bits per weight of the pruned matrices,
their element types, and the KL to the dense model on held-out text, of the model as saved and of the file in
llama.cpp. A pruned matrix is one that the allocation made smaller. Finished lines are in OUT/results.jsonl and aren't
repeated.

    python benchmarks/quantised.py --out runs/quantised --seed 0 --seed 1
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.engines.process import EngineProcess
from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.execution.run import Run
from darwinlm.export.hf import save_model
from darwinlm.export.run import export_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.gguf.read import FileTensors
from darwinlm.pipeline import open_run
from darwinlm.runs.demo import demo_recipe
from darwinlm.runtime.console import Reporter
from darwinlm.search.predict.module_losses import estimated_losses
from darwinlm.search.propose.start import knapsack_start
from darwinlm.stages.database import DATABASE
from darwinlm.stages.model import DENSE
from darwinlm.stages.plan import PLAN
from darwinlm.stages.text import TEXT
from darwinlm.surgery.sizes import block_sizes
from darwinlm.surgery.stitch import as_dtype, stitch
from search import Json, each_arm, machine

BUDGET = (
    "text.calibration_tokens=8192",
    "recovery.tokens=0",
)
ARMS = {
    "multiples of 32": (None, 32, "75%"),
    "padded": (None, 256, "75%"),
    "ready": ("q4_k_m", 32, "75%"),
    "ready, as large": ("q4_k_m", 32, "78.5%"),
}
"""Quantisation that it is made ready for, multiple to which its MLPs are padded, and kept share of block parameters."""
PARTS = {"attention": ("attn_q", "attn_k", "attn_v", "attn_output"), "mlp": ("ffn_gate", "ffn_up", "ffn_down")}
CUT_ALONG_ROWS = ("attn_output", "ffn_down")
"""Matrices whose rows get shorter; the rows of the others keep the hidden size."""


def smaller(options: argparse.Namespace, ready_for: str | None, keep: str, seed: int) -> Run:
    """The run of an arm, with the stitched model in its folder; the arms of a seed share the database."""
    settings = [*BUDGET, *(options.set or ()), f"text.seed={seed}", f"search.seed={seed}", f"budget.keep={keep}"]
    folder = first = options.out / f"plain-{seed}"
    if ready_for is not None:
        folder = options.out / f"{ready_for}-{keep.rstrip('%')}-{seed}"
        settings += [f"units.quantisation={ready_for}", f"database.folder={first / 'stages' / 'database'}"]
    run = open_run(demo_recipe(tuple(settings)), folder, Reporter())
    if not (run.folder / "model" / "config.json").is_file():
        reader, plan = run[DATABASE].reader, run[PLAN]
        losses = estimated_losses(plan.space, reader)
        assert losses is not None
        model = as_dtype(stitch(reader, knapsack_start(plan, losses)), torch.bfloat16)
        save_model(model, run.folder / "model", tokenizer=run[DENSE].tokenizer())
    return run


@torch.no_grad()
def kl(dense: Tensor, logits: Tensor) -> float:
    """Mean KL of one sequence, from logits [t, v]."""
    return float(DenseDistribution(dense).kl(logits).double().mean())


def pruned_matrices(run: Run, file: FileTensors, blocks: list[int]) -> dict[str, Any]:
    """Element types of matrices of pruned modules, and bits per weight of all of them."""
    dense, small = block_sizes(run[DENSE]), block_sizes(Checkpoint.open(run.folder / "model"))
    types: dict[str, Counter[str]] = {"rows shortened": Counter(), "rows of the hidden size": Counter()}
    bits, weights = 0.0, 0
    for number, block in enumerate(blocks):
        old, new = dense[block], small[block]
        cut = {"attention": 0 < new.heads < old.heads, "mlp": 0 < new.width < old.width}
        for kind, names in PARTS.items():
            for name in names if cut[kind] else ():
                tensor = file.tensors[f"blk.{number}.{name}.weight"]
                types["rows shortened" if name in CUT_ALONG_ROWS else "rows of the hidden size"][
                    tensor.tensor_type.name
                ] += 1
                weights += int(tensor.n_elements)
                bits += 8 * tensor.n_bytes
    return {"types": {where: dict(counts) for where, counts in types.items()}, "bits": round(bits / max(weights, 1), 3)}


def compete(options: argparse.Namespace, arm: str, seed: int) -> Json:
    """Measure one arm with one split of the text."""
    ready_for, multiple, keep = ARMS[arm]
    run = smaller(options, ready_for, keep, seed)
    path = options.out / f"{arm.replace(',', '').replace(' ', '-')}-{seed}.gguf"
    report = export_model(
        run.folder / "model", path, to="gguf", quantisation="q4_k_m", mlp_multiple=multiple, overwrite=True
    )
    saved = Checkpoint.open(run.folder / "model")
    blocks = [sizes.block for sizes in block_sizes(saved) if not sizes.empty]
    file = FileTensors(path)
    dense, small = (checkpoint.load(torch.float32) for checkpoint in (run[DENSE], saved))
    tokens = run[TEXT]["evaluation"].tokens[: options.sequences]
    kls: dict[str, list[float]] = {"saved": [], "file": []}
    with EngineProcess("llama.cpp", path, context=tokens.shape[1], exact=True) as engine:
        for sequence in tokens:
            expected = dense(input_ids=sequence[None], use_cache=False).logits[0]
            kls["saved"].append(kl(expected, small(input_ids=sequence[None], use_cache=False).logits[0]))
            kls["file"].append(kl(expected, torch.from_numpy(engine.logits(sequence.tolist()))))
    row: Json = {"benchmark": "quantised", "arm": arm, "seed": seed, "bytes": path.stat().st_size}
    row |= {f"kl_{name}": round(sum(values) / len(values), 4) for name, values in kls.items()}
    row |= {"tensor_types": report.details["tensor_types"], "notes": report.notes}
    return row | pruned_matrices(run, file, blocks) | machine(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quantised"))
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--sequences", type=int, default=2, help="blocks of held-out text for the KL")
    parser.add_argument("--set", action="append", help="section.field=value, as for `darwinlm demo`")
    options = parser.parse_args()
    each_arm(options, ARMS, compete)


if __name__ == "__main__":
    main()
