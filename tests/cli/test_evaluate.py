"""`darwinlm evaluate`: the harness's own numbers from local files, perplexity and KL, and what is refused."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.tiny.benchmarks import QUIET, tiny_benchmarks
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import edit_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.evaluation import harness
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import install

pytestmark = QUIET
SHORT = ("--sequence-length", 32, "--tokens", 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def long_llama(tmp_path_factory) -> Path:
    """A tiny model with room for 25 shots."""
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "llama", max_position_embeddings=2048)


def result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("task", "folder", "shots"), [("piqa", "piqa", 0), ("arc_challenge", "arc", 3)])
def test_scores_are_the_harness_own(task, folder, shots, command, data, long_llama, tmp_path, monkeypatch):
    request = ("--suite", f"{task}:{shots}", "--data-dir", data, "--dtype", "float32")
    command("evaluate", long_llama, *request, "--out", tmp_path / "ours.json").succeeded()

    import datasets
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = Path(lm_eval.__file__).parent / "tasks" / folder
    files = {path.stem: str(path) for path in (data / task).glob("*.jsonl")}
    own = {
        "include": str(home / f"{task}.yaml"),
        "task": f"{task}_own",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "validation_split": "validation" if "validation" in files else None,
        "num_fewshot": shots,
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(long_llama, dtype=torch.float32)
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(long_llama), backend="causal", batch_size=1)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = lm_eval.simple_evaluate(lm, tasks=[f"{task}_own"], task_manager=manager)
    expected = theirs["results"][f"{task}_own"]

    (ours,) = result(tmp_path / "ours.json")["tasks"]
    compared = {key: value for key, value in expected.items() if isinstance(value, float)}
    assert {"acc,none", "acc_norm,none", "acc_stderr,none"} <= set(compared)
    for key, value in compared.items():
        assert ours["metrics"][key] == pytest.approx(value, abs=1e-12), key
    assert 0 < ours["value"] < 1
    assert ours["items"] == ours["total"] == 8


def test_whole_paper_suite_runs_from_local_files(command, data, long_llama, tmp_path):
    out = tmp_path / "paper.json"
    request = ("--suite", "paper", "--data-dir", data, "--limit", 2, "--dtype", "float32")
    ended = command("evaluate", long_llama, *request, "--out", out).succeeded()
    found = result(out)
    assert [task["items"] for task in found["tasks"]] == [2] * 9
    values = [task["value"] for task in found["tasks"]]
    assert found["average"]["value"] == pytest.approx(sum(values) / 9)
    assert "2 of 8" in ended.out
    assert "HellaSwag (10): examples from train_5.jsonl.gz" in ended.out


def test_text_is_measured_as_by_hand(command, tiny_llama, tiny_text_file, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", num_hidden_layers=2)
    text = ("--text", tiny_text_file, "--tokens", 200, "--sequence-length", 32, "--dtype", "float32")
    command("evaluate", other, *text, "--against", tiny_llama, "--out", tmp_path / "text.json").succeeded()
    (found,) = result(tmp_path / "text.json")["texts"]

    tokenizer = AutoTokenizer.from_pretrained(other)
    ids: list[int] = []
    for document in tiny_text_file.read_text(encoding="utf-8").split("\n\n\n")[:20]:
        ids += [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert (found["sequences"], found["tokens"]) == (6, 186)
    tokens = torch.tensor(ids[:192]).view(6, 32)
    with torch.no_grad():
        q, p = (
            Checkpoint.open(folder).load(torch.float32)(input_ids=tokens).logits.double().log_softmax(-1)
            for folder in (other, tiny_llama)
        )
    loss = -q[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    written = "".join(tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True))
    assert found["bits_per_byte"] == pytest.approx(186 * float(loss) / math.log(2) / len(written.encode()), rel=1e-4)


def test_interrupted_suite_goes_on(command, data, tiny_llama, tmp_path, monkeypatch):
    out = tmp_path / "quick.json"
    arguments = ("evaluate", tiny_llama, "--suite", "piqa:0,sciq:0,boolq:0", "--data-dir", data, "--out", out)
    scored: list[str] = []
    original = harness._score

    def watched(lm: Any, task: Any, *rest: Any) -> Any:
        if task.name == "boolq" and len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(task.name)
        return original(lm, task, *rest)

    monkeypatch.setattr(harness, "_score", watched)
    assert command(*arguments).code == 130
    assert [task["task"] for task in result(out)["tasks"]] == ["piqa", "sciq"]
    scored += ["resumed"]
    assert command(*arguments).code == 0
    assert scored == ["piqa", "sciq", "resumed", "boolq"]
    assert len(result(out)["tasks"]) == 3


def test_a_text_joins_a_suite_in_its_file(command, data, tiny_llama, tiny_text_file, tmp_path):
    request = ("evaluate", tiny_llama, *SHORT, "--data-dir", data, "--out", tmp_path / "out.json")
    command(*request, "--suite", "piqa:0").succeeded()
    command(*request, "--text", tiny_text_file).succeeded()
    found = result(tmp_path / "out.json")
    assert ([task["task"] for task in found["tasks"]], len(found["texts"])) == (["piqa"], 1)


def test_failed_task_leaves_a_partial_table(command, data, tiny_llama, tmp_path):
    folder, out = shutil.copytree(data, tmp_path / "data"), tmp_path / "out.json"
    path = folder / "hellaswag" / "validation.jsonl.gz"
    path.unlink()
    row = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "none"}
    path.with_suffix("").write_text(json.dumps(row) + "\n", encoding="utf-8")
    ended = command("evaluate", tiny_llama, "--suite", "hellaswag:0,piqa:0", "--data-dir", folder, "--out", out)
    ended = replace(ended, err=ended.err.splitlines()[-1])  # behind the harness's progress bars
    ended.refused("1 of 2 tasks failed", "partial", "no average", "HellaSwag: ValueError: invalid literal for int()")
    assert "HellaSwag failed: ValueError" in ended.out
    found = result(out)
    assert found["average"]["value"] is None
    assert found["tasks"][1]["value"] is not None


def test_run_folder_is_its_model(command, finished_llama, tiny_text_file, tmp_path):
    text = ("--text", tiny_text_file, *SHORT)
    for source in (finished_llama, finished_llama / "model"):
        assert command("evaluate", source, *text, "--out", tmp_path / f"{source.name}.json").code == 0
    first, second = (result(tmp_path / f"{name}.json") for name in (finished_llama.name, "model"))
    assert first["texts"][0]["perplexity"] == second["texts"][0]["perplexity"]
    assert first["texts"][0]["kl"] > 0
    assert second["texts"][0]["kl"] is None
    (tmp_path / "run").mkdir()
    shutil.copy(finished_llama / "darwinlm.json", tmp_path / "run")
    command("evaluate", tmp_path / "run", *text).refused("isn't finished: it holds no exported model yet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "nothing to measure: give --suite, --text, --chat or --measure"),
        ("--chat", "--chat compares answers with the original model's: name it with --against"),
        ("--suite piqa --against {model}", "--against is for --text, --chat and --measure"),
        ("--chat --against {model}", "writes no chats: the model has no chat template"),
        ("--suite piqa --dtype int8", "dtype int8: use auto, bfloat16"),
        ("--text nowhere.txt", "nowhere.txt"),
        ("--text {text} --sequence-length 257", "--sequence-length is 257, but {model} takes 256 tokens at most"),
    ],
)
def test_wrong_request(options, message, command, tiny_llama, tiny_text_file):
    command("evaluate", tiny_llama, *options.format(text=tiny_text_file, model=tiny_llama).split()).refused(
        message.format(model=tiny_llama)
    )


def test_short_text(command, tiny_llama, tmp_path):
    (tmp_path / "short.txt").write_text("the river", encoding="utf-8")
    command("evaluate", tiny_llama, "--text", tmp_path / "short.txt").refused("less than one sequence of 512")


def test_the_same_tokenizer_with_another_embedding(command, tiny_llama, tiny_text_file, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", vocab_size=280)
    command("evaluate", tiny_llama, "--text", tiny_text_file, *SHORT, "--against", other).refused(
        "different vocabularies"
    )


def test_result_of_another_request_is_kept(command, tiny_llama, tiny_text_file, tmp_path):
    out = tmp_path / "out.json"
    text = ("--text", tiny_text_file, "--sequence-length", 32, "--out", out)
    assert command("evaluate", tiny_llama, *text, "--tokens", 64).code == 0
    before = out.read_bytes()
    command("evaluate", tiny_llama, *text, "--tokens", 96).refused(
        "holds the result of another request (tokens was 64): choose"
    )
    assert out.read_bytes() == before
    out.write_text("{}", encoding="utf-8")
    command("evaluate", tiny_llama, *text, "--tokens", 96).refused("is not a result of darwinlm evaluate")


def test_missing_harness_names_its_extra(command, tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    command("evaluate", tiny_llama, "--suite", "piqa").refused("lm-eval", install("eval"))


@pytest.mark.parametrize("words", [["evaluate", "--text"], ["chat"]], ids=lambda words: words[0])
def test_weights_that_are_not_finite(command, model_copy, tiny_text_file, tmp_path, words):
    edit_weights(model_copy, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][0].fill_(float("nan")))
    text = [tiny_text_file, *SHORT, "--out", tmp_path / "a.json"] if words[1:] else []
    command(words[0], model_copy, *words[1:], *text).refused("model.layers.1.mlp.up_proj.weight", "finite")
    assert not (tmp_path / "a.json").exists()
