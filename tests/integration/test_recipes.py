"""The whole pipeline with other recipes, and the bundled ones of both phases of training, with small numbers."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tests.tiny.stages import run_stages
from transformers import AutoModelForCausalLM

from darwinlm.recipe import shipped_recipes
from darwinlm.runs.recovery import recover
from darwinlm.runtime.console import Reporter
from darwinlm.steps.recover.recovery_figures import RecoveryFigures


@pytest.mark.parametrize(
    "settings", [("refit.tokens=0", "text.sequence_length=17"), ("compute.dtype=bfloat16", "units.mlp_multiple=40")]
)
def test_other_settings_run_through(tiny_llama, make_run, tmp_path, settings):
    summary = run_stages(make_run(tiny_llama, tmp_path / "out", *settings), "report").report
    budget = summary.budget
    coarse = "units.mlp_multiple=40" in settings  # one level is more than the tolerance
    assert 0 <= budget.unused <= (0.12 if coarse else 0.05) + 1e-9
    final = summary.models.get("refit", summary.models["stitched"])
    assert final.perplexity > 0
    assert ("refit" in summary.models) == ("refit.tokens=0" not in settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert final.bytes == final.params * model.dtype.itemsize


def test_a_chat_models_settings_and_licence_go_along(tiny_llama, make_run, tmp_path):
    """Without its end tokens a chat model doesn't stop."""
    dense = Path(shutil.copytree(tiny_llama, tmp_path / "dense"))
    settings = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [2, 0]}
    (dense / "generation_config.json").write_text(json.dumps(settings))
    for name in ("LICENSE", "NOTICE.txt", "weights.bin"):
        (dense / name).write_text("Do as you like.")
    (dense / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n")
    run_stages(make_run(dense, tmp_path / "out"), "report")
    model = tmp_path / "out" / "model"
    assert json.loads((model / "generation_config.json").read_text()).items() >= settings.items()
    assert (model / "LICENSE").read_text() == (model / "NOTICE.txt").read_text() == "Do as you like."
    assert not (model / "weights.bin").exists()
    found = yaml.safe_load((model / "README.md").read_text().split("---\n")[1])
    assert (found["license"], found["language"]) == ("apache-2.0", ["en"])
    assert AutoModelForCausalLM.from_pretrained(model).generation_config.eos_token_id == [2, 0]


def test_a_run_is_trained_in_the_phases_of_the_bundled_recipes(finished_llama, tiny_text_file, tmp_path):
    """The second phase goes on from the first one's model."""
    run, steps = finished_llama, []
    for phase, tokens in (("recover-documents", 512), ("recover-chats", 192)):
        tree = yaml.safe_load(shipped_recipes()[phase].read_text(encoding="utf-8"))
        tree["compute"] |= {"dtype": "float32", "batch_tokens": 64}
        tree["text"]["sequence_length"] //= 256
        text = ",".join(str(tiny_text_file) for _ in tree["recovery"]["text"].split(","))
        tree["recovery"] |= {"tokens": tokens, "batch_tokens": 64, "text": text}
        path = tmp_path / f"{phase}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        summary = recover(run, tmp_path / phase, recipe=path, reporter=Reporter(quiet=True)).summary
        steps.append(summary.of(RecoveryFigures).steps)
        run = tmp_path / phase
    assert steps == [8, 3]
