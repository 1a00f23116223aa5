"""Exports to GGUF, compared with transformers in the real llama.cpp."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.runs.exporting import export_model

TWELVE = {"min_new_tokens": 12, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
TEXT = "the river turns slowly under the silver bridge and 12 engines hold 340 letters."
LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}


def exported(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Export, and return the report, which must be the one that lies beside the file."""
    report = export_model(folder, out, **options)
    assert json.loads(Path(f"{out}.export.json").read_text()) == json.loads(json.dumps(report.as_json()))
    return asdict(report)


def assert_checked_in_the_library(report: dict[str, Any], tolerance: float) -> None:
    """The export compared the model with the file in the real library, within the tolerance."""
    last = report["comparisons"][-1]
    assert last["left"] == "the model"
    assert last["right"] == f"its {report['details']['quantisation']} file in llama.cpp"
    assert all(row["relative"] < tolerance and row["tokens"] > 40 for row in report["comparisons"])


def assert_same_as_transformers(folder: Path, file: Path, tolerance: float) -> None:
    """The file tokenizes, computes and continues as the folder does in transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
        made = model.generate(torch.tensor([ids]), do_sample=False, **TWELVE)[0, len(ids) :].tolist()
    with EngineProcess("llama.cpp", file, exact=True, context=256) as engine:
        assert engine.tokenize(TEXT) == ids
        found = engine.logits(ids)
        greedy = engine.generate(ids, 12)[0]
    assert found.shape == logits.shape
    assert np.abs(found - logits).max() < tolerance * np.abs(logits).max()
    assert greedy == made
