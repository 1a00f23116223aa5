"""Evaluate: dense, uniform, stitched and final model on held-out text, side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from darwinlm.artifact import read_json, write_json
from darwinlm.evaluation.looking_back import all_copying, longest_sequence, measure_copying
from darwinlm.evaluation.quality import measure_quality
from darwinlm.evaluation.speed import continue_greedily, measure_speed
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.run import Run
from darwinlm.stages.export import Exported
from darwinlm.surgery.stitch import as_dtype, block_parameters, stitch

Measured = dict[str, dict[str, Any]]


def evaluate_stage(run: Run, found: dict[str, Any]) -> Measured:
    """Figures of each model by its name.

    Args:
        run: the run.
        found: what the stages before returned, by name.
    """
    exported: Exported = found["export"]
    texts, search = found["text"], found["search"]
    key = {
        "model": run.checkpoint.digest,
        "exported": exported.digest,
        "uniform": search.uniform,
        "stitched": found["stitch"].stage.digest,
        "refit": found["refit"].stage.digest if found["refit"] is not None else None,
        "recover": found["recover"] is not None,
        "teacher": run.teacher.digest,
        "evaluation_text": texts["evaluation"].digest,
        "evaluation": run.recipe.evaluation.model_dump(),
        "looking_back": True,
        "dtype": str(exported.dtype),
        "arithmetic": run.arithmetic,
    }
    with run.stage("evaluate", key, "evaluate") as (stage, work):
        if work:
            models = {
                "dense": run.teacher.load(run.dtype),
                "uniform": as_dtype(stitch(found["database"].reader, search.uniform), run.dtype),
                "stitched": found["stitch"].checkpoint.load(run.dtype),
            }
            final = Checkpoint.open(exported.folder).load(run.dtype)
            if found["refit"] is not None and found["recover"] is not None:
                models["refit"] = as_dtype(found["refit"].model(found["stitch"].checkpoint), run.dtype)
            elif found["refit"] is not None:
                models["refit"] = final
            if found["recover"] is not None:
                models["recovered"] = final
            write_json(stage.folder / "models.json", _measure(run, models, texts, exported.dtype))
        measured: Measured = read_json(stage.folder / "models.json")
    return measured


def room_for_models(device: torch.device) -> float | None:
    """Bytes of a GPU that models may fill, half of what is free being left to passes; None where it is all RAM."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else None


def together(sizes: dict[str, int], room: float | None) -> list[list[str]]:
    """Models that are measured side by side: all of them, or each with the dense one where there is no room for all."""
    names = list(sizes)
    if room is None or sum(sizes.values()) <= room:
        return [names]
    return [["dense", name] for name in names if name != "dense"]


def _measure(run: Run, models: dict[str, Any], texts: Any, dtype: torch.dtype) -> Measured:
    sizes = {name: sum(p.numel() * p.element_size() for p in model.parameters()) for name, model in models.items()}
    measured: Measured = {}
    for names in together(sizes, room_for_models(run.device)):
        here = {name: models[name].to(run.device) for name in names}
        measured = {**_measure_together(run, here, texts, dtype), **measured}
        for name in names[1:]:
            models[name].to("cpu")
    return {name: measured[name] for name in models}


def _measure_together(run: Run, models: dict[str, Any], texts: Any, dtype: torch.dtype) -> Measured:
    settings = run.recipe.evaluation
    tokens = texts["evaluation"].tokens
    quality = measure_quality(
        models["dense"], models, tokens, batch_tokens=run.batch_tokens, progress=run.reporter.advance
    )
    speed = measure_speed(models, tokens[:1], new_tokens=settings.new_tokens, runs=settings.speed_runs)
    tokenizer = run.checkpoint.tokenizer()
    sequences, remarks = all_copying(tokenizer, tokens, longest_sequence(models["dense"].config))
    copied = measure_copying(models, sequences, batch_tokens=run.batch_tokens)
    measured: Measured = {}
    for name, model in models.items():
        params = sum(parameter.numel() for parameter in model.parameters())
        measured[name] = {
            "params": params,
            "block_params": block_parameters(model, run.checkpoint.family.layers),
            "bytes": params * dtype.itemsize,
            "perplexity": quality[name].perplexity,
            "kl": quality[name].kl,
            "tokens": quality[name].tokens,
            "looking_back": {
                "kl_seen": quality[name].kl_seen,
                "kl_new": quality[name].kl_new,
                "seen": quality[name].seen,
                "kl_by_position": quality[name].kl_by_position,
                "copying": [asdict(score) for score in copied[name]],
                "remarks": remarks,
            },
            "tokens_per_second": speed[name].prompt,
            "tokens_per_second_runs": list(speed[name].prompt_runs),
            "decode_tokens_per_second": speed[name].decode,
            "decode_tokens_per_second_runs": list(speed[name].decode_runs),
            "continuations": continue_greedily(model, tokenizer, settings.prompts, settings.new_tokens),
        }
    return measured
