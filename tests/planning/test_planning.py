"""The plan: operations compared with PyTorch's count, memory with peaks that were measured, and what doesn't fit."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import Command, sets
from tests.tiny.models import FAMILIES
from tests.tiny.published import PARAMETERS, published_config
from tests.tiny.readers import tiny_scorer
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

import darwinlm
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.pipeline import STEPS
from darwinlm.planning import run_plan as planning
from darwinlm.planning.measured_speed import measure_rate
from darwinlm.planning.run_plan import Plan, Row, check_memory, plan_card, plan_here
from darwinlm.planning.speeds import PassSpeed
from darwinlm.recipe import load_recipe
from darwinlm.report.wording import large_embedding
from darwinlm.runs import plan_model
from darwinlm.runs.plan_model import notes_of, sweep_seconds
from darwinlm.runs.plan_model import plan as plan_of
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import count
from darwinlm.runtime.errors import DeviceMemoryError, RecipeError
from darwinlm.steps.run_sizes import RunSizes

CPU = torch.device("cpu")
TRAINING = ("recovery.tokens=512", "recovery.batch_tokens=128")


def sizes_of(folder: Path, *assignments: str, processes: int = 1) -> RunSizes:
    recipe = load_recipe(None, (*SETTINGS, *assignments), {"model": str(folder)})
    return RunSizes(Checkpoint.describe(folder), recipe, processes)


def published(folder: Path, name: str, *assignments: str, processes: int = 1) -> RunSizes:
    model = published_config(folder, name.removesuffix("-fast"))
    recipe = load_recipe(name, ("compute.dtype=bfloat16", *assignments), {"model": str(model)})
    return RunSizes(Checkpoint.describe(model), recipe, processes)


def row_of(plan: Plan, stage: str) -> Row:
    return next(row for row in plan.rows if row.step == stage)


def on_cpu(sizes: RunSizes, stage: str) -> Row:
    return row_of(plan_here(STEPS, sizes, CPU, PassSpeed(1.0)), stage)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma"])
def test_a_pass_is_what_the_flop_counter_counts(model_type: str, tiny_folder) -> None:
    sizes = sizes_of(tiny_folder(model_type))
    model = Checkpoint.open(tiny_folder(model_type)).load(torch.float32)
    model.set_attn_implementation("eager")
    tokens = torch.arange(4 * 32).view(4, 32)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False)
    assert sizes.operations(1, heads=1) == pytest.approx(counter.get_total_flops() / tokens.numel(), rel=0.05)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_has_a_plan(model_type: str, tiny_folder) -> None:
    plan = plan_card(STEPS, sizes_of(tiny_folder(model_type)), "h100")
    assert all(
        row.cost.operations > 0 for row in plan.rows if row.step in ("gradients", "database", "search", "evaluate")
    )
    assert plan.peak.cost.bytes == max(row.cost.bytes for row in plan.rows)


def test_rows_are_the_stages_that_read_a_model_in_their_order(tiny_llama: Path) -> None:
    sizes = sizes_of(tiny_llama, *TRAINING, "text.source=self", "budget.speedup=2x", "text.evaluation_tokens=4096")
    rows = [row.step for row in plan_card(STEPS, sizes, "h100").rows]
    others = {"vocabulary", "text", "fitted_vocabulary", "fitted_text", "file", "report"}
    assert rows == [step.name for step in STEPS if step.name not in others]


def test_a_database_of_experts_reads_no_logits(tiny_folder) -> None:
    sizes = sizes_of(tiny_folder("mixtral"))
    work = on_cpu(sizes, "database").cost.operations
    sizes.vocabulary *= 100
    assert on_cpu(sizes, "database").cost.operations == work


LARGER = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32000}
LARGER |= {"num_attention_heads": 32, "num_key_value_heads": 4}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
SMOLLM2 |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
SEVENTY = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 1}
SEVENTY |= {"num_key_value_heads": 8}
BFLOAT16 = ("compute.dtype=bfloat16", "refit.tokens=0")


@pytest.mark.parametrize(
    ("stage", "config", "peak", "settings"),
    [
        # docs/notebook/database.md, speed.md ("All blocks of 7B, and a block of a 70B"), database.md, speed.md
        ("database", LARGER, 1.055e9, ("batch_tokens=512", 1024, "units.attention=kv_group", "database.metric=output")),
        ("database", SEVEN, 3.481e9, ("batch_tokens=1024", 2048)),
        ("database", SEVENTY, 18.735e9, ("batch_tokens=1024", 2048)),
        ("gradients", LARGER, 1.492e9, ("batch_tokens=512", 65536)),
        ("gradients", SMOLLM2, 1.307e9, ("batch_tokens=4096", 32768, "compute.dtype=float32")),
        ("gradients", SMOLLM2, 1.732e9, ("batch_tokens=4096", 65536, "compute.dtype=float32")),
    ],
)
def test_memory_is_what_models_took(stage: str, config: dict, peak: float, settings: tuple, tmp_path: Path) -> None:
    LlamaConfig(**config, dtype="bfloat16").save_pretrained(tmp_path)
    batch, tokens, *more = settings
    chosen = (*BFLOAT16, f"compute.{batch}", f"text.calibration_tokens={tokens}", *more)
    recipe = load_recipe(None, chosen, {"model": str(tmp_path)})
    assert on_cpu(RunSizes(Checkpoint.describe(tmp_path), recipe), stage).cost.bytes == pytest.approx(peak, rel=0.15)


def test_the_remedy_lowers_the_largest_item(tmp_path: Path) -> None:
    plan = plan_card(STEPS, published(tmp_path, "llama3.1-8b-4.6b-fast", "compute.batch_tokens=65536"), "rtx4060")
    assert "for activations, but rtx4060 has 8.59 GB: lower compute.batch_tokens" in str(plan.problem)
    lower = published(tmp_path, "llama3.1-8b-4.6b-fast", "compute.batch_tokens=1024")
    assert plan_card(STEPS, lower, "rtx4090").problem is None
    whole = plan_card(STEPS, published(tmp_path, "qwen2.5-14b-8.4b-fast", "recovery.tokens=1B"), "h100")
    assert str(whole.problem).startswith("recover needs ")
    assert "recovery.sharding=fsdp on several devices" in str(whole.problem)
    sharded = published(tmp_path, "qwen2.5-14b-8.4b-fast", "recovery.tokens=1B", "recovery.sharding=fsdp", processes=8)
    assert plan_card(STEPS, sharded, "h100").problem is None


def test_memory_of_a_cpu_is_shared_by_processes(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "all_bytes", lambda _: 1_000_000_000)
    recipe, checkpoint = load_recipe(None, SETTINGS, {"model": str(tiny_llama)}), Checkpoint.describe(tiny_llama)
    check_memory(STEPS, recipe, checkpoint, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "size", lambda: 4)
        with pytest.raises(DeviceMemoryError, match="but cpu has 250 MB"):
            check_memory(STEPS, recipe, checkpoint, CPU)
    plans = [plan_here(STEPS, sizes_of(tiny_llama, processes=each), CPU) for each in (1, 2)]
    work = [sum(row.cost.operations for row in plan.rows) for plan in plans]
    assert work[0] == pytest.approx(work[1], rel=0.1)
    alone, python = (sum(getattr(row.cost, name) for row in plans[1].rows) for name in ("alone", "python"))
    speed = plans[1].speeds[0]
    shared = (work[1] - alone) / speed.operations + alone / speed.core
    assert plans[1].seconds()[0] == pytest.approx(shared / 2 + python)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gemma2", "lfm2"])
def test_the_rate_is_measured_without_weights(model_type: str, tiny_folder) -> None:
    speed = measure_rate(sizes_of(tiny_folder(model_type)), CPU)
    assert speed.core is not None
    assert 1e4 < speed.core <= speed.operations < 1e14


def test_a_card_that_is_not_here_has_a_range(tiny_llama: Path) -> None:
    plan = plan_card(STEPS, sizes_of(tiny_llama), "h100")
    shortest, longest = plan.seconds()
    assert 0 < 2 * shortest < longest
    assert plan.passes() == pytest.approx(sum(plan.passes(row) for row in plan.rows))
    with pytest.raises(RecipeError, match=r"--device h10: it isn't here .* did you mean 'h100'"):
        plan_of(str(tiny_llama), device="h10")


def test_published_models_are_planned_without_weights(command: Command, tmp_path: Path) -> None:
    for name, params in PARAMETERS.items():
        folder = published_config(tmp_path / name, name)
        words = ("plan", folder, "--recipe", f"{name}-fast", "--device", "h200")
        plan = plan_of(str(folder), recipe=f"{name}-fast", device="h200")
        assert plan.sizes.params == params
        assert [row.step for row in plan.rows] == [
            *("gradients", "database", "search", "stitch", "refit", "export", "chats", "evaluate")
        ]
    ended = command(*words).succeeded()
    assert f"{count(params)} parameters" in ended.out
    assert "times are a range" in ended.out


def test_a_search_is_planned_for_its_minutes(tiny_llama: Path) -> None:
    endless, limited = (
        plan_here(STEPS, sizes_of(tiny_llama, "search.generations=100000", *more), CPU, PassSpeed(1.0))
        for more in ((), ("search.minutes=3m",))
    )
    assert endless.seconds(row_of(endless, "search"))[0] > 180
    assert limited.seconds(row_of(limited, "search")) == (180, 180)
    assert limited.seconds()[0] == pytest.approx(sum(limited.seconds(row)[0] for row in limited.rows))


def test_the_command_measures_this_machine_and_takes_another_ones_memory(command: Command, tiny_llama: Path) -> None:
    ended = command(
        "plan", tiny_llama, "--processes", 2, *sets((*SETTINGS, *TRAINING, "compute.memory=900MB"))
    ).succeeded()
    for words in ("2 x cpu: 450 MB", "recover", "passes", "with the search's caches", "doesn't fit: "):
        assert words in ended.out
    assert "range" not in ended.out


def test_the_line_of_prune_is_planned_with_another_verb(
    command: Command, tiny_llama: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    """Every option of prune, also those that a plan has no use for."""
    line = (
        *(tiny_llama, "--keep", "75%,50%", "--preset", "quick", "--text", tiny_text_file, "--layers", "unequal"),
        *("--for", "gguf", "--vocab", "259", "--out", tmp_path / "out", "--until", "search", "--overwrite"),
    )
    out = command("plan", *line, *sets(("units.mlp_multiple=8",))).succeeded().out
    assert out.count("at most") == 2
    assert "all sizes: " in out
    assert "evaluate" not in out
    assert not (tmp_path / "out").exists()
    missing = tmp_path / "nowhere.txt"
    command("plan", tiny_llama, "--keep", "50%", "--text", missing).refused("nowhere.txt': there is no such file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--answers", "river,"), "text.answers: must be two words such as yes,no"),
        (("--answers", "river,river"), "text.answers: must be two words such as yes,no"),
        (("--answers", "river stone light,no"), "text.answers: 'river stone light' is"),
        (("--answers", "a,b", "--vocab", "auto", "--params", "50k", "--text", "hf:a/b"), "--vocab auto compares bits"),
    ],
)
def test_a_plan_refuses_what_a_run_refuses_of_answers(command: Command, tiny_llama: Path, options, message) -> None:
    command("plan", tiny_llama, *options).refused(message)


def test_commands_of_prune_are_options_of_plan() -> None:
    from inspect import signature

    from darwinlm.cli.plan import plan as planned
    from darwinlm.cli.prune import prune as pruned

    assert signature(pruned).parameters.keys() <= signature(planned).parameters.keys()
    functions = [signature(each).parameters.keys() for each in (darwinlm.prune, plan_of)]
    assert functions[0] - functions[1] == {
        "out", "overwrite", "track", "reporter", "begun", "measures", "within"
    }  # fmt: skip


def test_a_time_limit_chooses_the_preset_of_a_plan(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_model, "measure_speed", lambda *_: PassSpeed(1e9))
    quick, ample = (plan_of(tiny_llama, keep=0.5, time=time) for time in ("1s", "100h"))
    assert (quick.preset, ample.preset) == ("quick", "thorough")
    assert any("the run ends after 1.0 s" in note and "preset quick" in note for note in notes_of(quick))
    card = plan_of(tiny_llama, keep=0.5, time="30m", device="h100", assignments=SETTINGS)
    assert any("after 30 min if nothing else runs; that machine chooses" in note for note in notes_of(card))


def test_sizes_share_what_comes_before_the_search(tiny_llama: Path) -> None:
    plans = [plan_of(tiny_llama, keep=keep, device="h100", assignments=SETTINGS) for keep in (0.75, 0.5)]
    before = [row for row in plans[0].rows if row.step in ("own_text", "gradients", "database")]
    together = sum(plan.seconds()[0] for plan in plans)
    assert sweep_seconds(plans)[0] == pytest.approx(together - plans[0].seconds(*before)[0], rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("{model}", "--device", "h100", "--keep", "50%", "--params", "1M"), "budget"),
        (
            ("{model}", "--within", "2%", "--keep", "50%"),
            "--within finds the size itself, and runs to its report: leave",
        ),
        (("{model}", "--within", "2%", "--until", "text"), "leave --until out"),
        (("{model}", "--within", "much", "--measure", "sciq"), "--within much: give the share"),
        (("{model}", "--within", "2%"), "--within 2% is a share of a score: name what scores it"),
        (("{model}", "--device", "abacus"), "cards are h100, h200"),
        (
            ("owner/model", "--file", "70MB"),
            "budget.file is planned from the model's tokenizer: give a folder or a GGUF file",
        ),
        (("llama2-7b-2.7b",), "llama2-7b-2.7b is a bundled recipe, not a model: use --recipe llama2-7b-2.7b"),
        (("{model}", "--device", "h100", "--set", "compute.memory=lots"), "must be a number with a unit, such as 4GiB"),
        (("{model}", "--device", "h100", "--set", "units.mlp_multiple=8", "--params", "1"), "less than the smallest"),
    ],
)
def test_wrong_request(options: tuple[str, ...], message: str, command: Command, tiny_llama: Path) -> None:
    command("plan", *(option.format(model=tiny_llama) for option in options)).refused(message)


@pytest.mark.parametrize("given", [{"processes": 0}, {"processes": True}, {"processes": "2"}, {"device": None}])
def test_a_wrong_argument_is_refused_in_one_line(given: dict[str, object], tiny_llama: Path) -> None:
    with pytest.raises(RecipeError, match=r"^(processes .*: must be a whole number, 1 or more|device None: must be a)"):
        plan_of(tiny_llama, keep=0.5, assignments=SETTINGS, **given)


def test_a_large_embedding_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    plan = plan_card(STEPS, sizes_of(tiny_llama, "budget.keep=50%", "units.mlp_multiple=8"), "h100")
    share = plan.sizes.outside / plan.sizes.params
    assert [note for note in notes_of(plan) if "--vocab" in note] == [
        f"{share:.0%} of the parameters are in its embedding, which --vocab 50% halves"
    ]
    cut = plan_card(STEPS, sizes_of(tiny_llama, "budget.keep=50%", "units.mlp_multiple=8", "vocabulary=99%"), "h100")
    assert not any("--vocab" in note for note in notes_of(cut))
    scorer = plan_card(STEPS, sizes_of(tiny_scorer(tmp_path / "scorer", vocab_size=4096), "budget.keep=50%"), "h100")
    assert scorer.sizes.outside / scorer.sizes.params > 0.2
    assert any("--vocab 50%" in note for note in notes_of(scorer)), "the same holds for a model that reads"
    assert large_embedding(100, 81) is None


@pytest.mark.parametrize(
    ("budget", "share"), [("params=70k", None), ("bytes=150kB", None), ("keep=50%", 0.5), ("speedup=4x", 0.25)]
)
def test_budgets_of_other_kinds(budget: str, share: float | None, tiny_llama: Path) -> None:
    sizes = sizes_of(tiny_llama, f"budget.{budget}", "units.mlp_multiple=8", "budget.context=0")
    plan = plan_card(STEPS, sizes, "h100")
    assert any("is measured in the run" in note for note in notes_of(plan)) == budget.startswith("speedup")
    assert ("latency" in [row.step for row in plan.rows]) == budget.startswith("speedup")
    small = sizes.kept_blocks[1] + sizes.outside
    if share:
        assert sizes.kept == pytest.approx(share, abs=1e-3)
    elif budget.startswith("params"):
        assert small == 70_000
    else:
        assert small * 4 == pytest.approx(150_000, rel=0.01)


def test_caches_take_what_a_search_leaves(tmp_path: Path) -> None:
    whole, bounded = (
        row_of(plan_card(STEPS, published(tmp_path, "llama2-7b-2.7b-fast", *more), "h100"), "search")
        for more in ((), ("compute.memory=24GB",))
    )
    assert 24e9 < whole.cost.bytes + whole.cost.caches <= 1.0001 * 0.85 * 80 * 2**30
    assert 0.7 * 24e9 < bounded.cost.bytes + bounded.cost.caches < 24e9
    assert not row_of(
        plan_card(STEPS, published(tmp_path, "llama2-7b-2.7b-fast", "compute.memory=9GB"), "h100"), "search"
    ).cost.caches


def test_a_plan_shows_itself_in_a_notebook(tiny_llama):
    planned = darwinlm.plan(tiny_llama, keep=0.5, device="h100")
    html = planned._repr_html_()
    for row in planned.table.rows:
        assert all(f"<td>{cell}</td>" in html for cell in row)
    assert "h100" in html
    assert "doesn&#x27;t fit" not in html
    assert "doesn&#x27;t fit: " in dataclasses.replace(planned, memory=1.0)._repr_html_()
