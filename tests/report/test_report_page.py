"""What the page adds to the tables: commands, a sweep, and sentences that depend on the run, each for both cases."""

import pytest
from tests.docs.test_docs import parse
from tests.tiny.summaries import (
    DROPPED,
    SUMMARIES,
    VOCABULARY,
    Page,
    card_of,
    changed,
    given,
    made,
    plain,
    recovered,
    searched,
    text_of,
    told,
)

from darwinlm.report.comparison import sweep_table
from darwinlm.report.page import render_page
from darwinlm.report.sweep_page import sweep_page
from darwinlm.report.usage import next_steps
from darwinlm.steps.recover.recovery_figures import RecoveryFigures
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures


@pytest.mark.parametrize("name", SUMMARIES)
def test_commands_are_ones_that_the_program_takes(name):
    summary = made(SUMMARIES[name]())
    steps = next_steps(summary, ".", "../smaller", summary.model)
    text = Page(render_page(summary)).text
    for _, line in steps:
        assert line in text
        if line.startswith("darwinlm"):
            parse(line)
    trains = [line for _, line in steps if line.startswith("darwinlm recover")]
    assert len(trains) == (summary.of(RecoveryFigures) is None)
    pruned = summary.budget is not None and summary.of(VocabularyFigures) is None
    large = pruned and summary.dense.block_params < 0.8 * summary.dense.params
    assert any("--vocab" in line for _, line in steps) == large


def test_next_steps_of_a_bounded_model_keep_the_bound():
    options = {"--file 75MB": ("file", 75e6), "--params 100M": ("params", 1e8), "--bytes 200MB": ("bytes", 2e8)}
    for option, (kind, upper) in options.items():
        summary = made(changed(searched(), budget={"kind": kind, "keep": None, "unit": "bytes", "upper": upper}))
        (line,) = [line for _, line in next_steps(summary, ".", "../smaller", summary.model) if "--vocab" in line]
        assert f" {option} --vocab auto " in line
        parse(line)
    sizes = {"q8_0": 110_000_000, "q4_0": 74_000_000, "q2_k": 70_000_000}
    tree = changed(searched(), budget={"kind": "file", "keep": None, "unit": "bytes", "upper": 75e6})
    tree = changed(tree, file={"dense": sizes, "predicted": sizes, "bytes": 120_000_000})
    assert any("--quant q4_0 " in line for _, line in next_steps(made(tree), ".", "../smaller", None))
    text = Page(render_page(made(tree))).text
    assert "Larger than the bound of 75 MB: q8_0." in text
    assert "darwinlm prune --file measures both" not in text, "this run has done it"
    file = {"model": "m", "file": "model-q4_0.gguf", "tokens": 9}
    file["saved"] = {"quantisation": "q4_0", "bytes": 74_000_000, "kl": 0.9}
    steps = [line for _, line in next_steps(made(told(tree, file=file)), "runs/a", "runs/a", None)]
    assert "llama-cli -m runs/a/model-q4_0.gguf" in steps
    assert not any("darwinlm export" in line for line in steps)


def swept(second_kl, second_params=80_000_000):
    large, small = searched(), recovered()
    for tree, params, kl in ((large, 110_000_000, 0.6), (small, second_params, second_kl)):
        list(tree["models"].values())[-1]["metrics"].update(params=params, kl=kl)
    sizes = {"keep-75": made(large), "keep-50": made(small)}
    return sizes, sweep_page(sizes)


def test_speeds_of_a_sweep_are_factors_of_the_dense_model_of_the_same_moment():
    """Sizes are timed hours apart: a model of 69 % was said to decode slower than the whole one."""
    small = searched()
    small["models"]["dense"]["metrics"].update(tokens_per_second=10.0, decode_tokens_per_second=1.0, speed_spread=0.02)
    saved = small["models"][made(small).saved_key]["metrics"]
    saved.update(tokens_per_second=15.0, decode_tokens_per_second=1.5, speed_spread=0.03)
    table = sweep_table({"keep-69": made(searched()), "keep-50": made(small)})
    columns = [table.headings.index(heading) for heading in ("prompt speed", "decode speed")]
    assert [row[column] for row in table.rows for column in columns][:2] == ["×1", "×1"]
    assert [table.rows[2][column] for column in columns] == ["×1.5 ± 5.0 %", "×1.5 ± 5.0 %"]
    assert "tokens/s" not in str(table)
    assert any("timed in turn" in remark for remark in table.remarks)


def test_the_page_of_a_sweep_links_to_each_size():
    sizes, html = swept(1.2)
    page = Page(html)
    assert [link for link in page.links if "report" in link] == ["keep-75/report.html", "keep-50/report.html"]
    assert page.resources == []
    assert "SmolLM2-135M in 2 smaller sizes" in page.text
    models = {"dense": sizes["keep-75"].dense} | {name: each.saved for name, each in sizes.items()}
    for name, model in models.items():
        assert name in page.text
        assert f"{model.params / 1e6:.1f} M" in page.text
    assert "65,536" not in page.text
    assert "16,384 tokens (17 documents) of hf:HuggingFaceFW/fineweb-edu" in page.text


def test_a_gguf_file_that_came_in_is_followed_by_a_smaller_one():
    sizes = {"q8_0": 128_000_000, "q4_k_m": 97_000_000, "q4_0": 83_000_000}
    file = {"bytes": 98_000_000, "predicted": sizes, "dense": {**sizes, "q4_0": 91_000_000}}
    tree = changed(searched(), file=file)
    summary = made(tree)
    ((wish, _),) = [each for each in next_steps(summary, ".", "../smaller", None) if "--quant q4_k_m" in each[1]]
    assert "darwinlm[gguf]" in wish
    text = text_of(tree)
    assert "dense 128 MB 97 MB 91 MB" in text


def never_there():
    tree = plain()
    tree["allocation"][3].update(groups=0, heads=0, dense_groups=0, dense_heads=0)
    return tree


def one_gone():
    tree = plain()
    tree["allocation"][3].update(groups=0, heads=0)
    return tree


def fitted():
    """A run in which every module was fitted."""
    return told(searched(), refit={"fitted": searched()["steps"]["refit"]["modules"]})


IN_TIME = {"kind": "latency", "keep": None, "unit": "nanoseconds", "dense": 6e7, "upper": 3e7, "used": 2.9e7}
TIME = {"limit": 600, "seconds": 500, "preset": "quick"}
LEARNT = "Facts and other abilities that this text does not teach have not returned"
UNLEARNT = "after pruning did not help on held-out text, so the weights from before it were kept"
PAGE = [
    (told(given(), recover={"kept": "before"}), ["on held-out text did not fall, so the weights"], []),
    (searched(), ["second moments of the database; the refit", "strength of the refit; check of"], ["while training"]),
    (told(searched(), refit={"strength": 0.75}), ["took 75% of the way to these weights"], ["(KL 0.5"]),
    (told(searched(), refit=DROPPED), ["not better with them on validation text, so the weights b"], ["(KL 0.5"]),
    (told(searched(), refit={"kl_before": 0.5, "kl_after": 0.4}), ["(KL 0.500 before, 0.400 after)"], []),
    (fitted(), ["60 of 60 modules were fitted toward the dense model. "], []),
    (plain(), ["How the sizes were chosen isn't recorded"], ["Refit", "Recovery", "trust_remote_code"]),
    (recovered(), ["to the dense model and ended"], []),
    (told(recovered(), search={"generations": 0}), ["without a generation of search. It started from"], [",."]),
    (never_there(), ["never there", "No attention or MLP is removed"], []),
    (searched(), ["The budget was 50 % of the block parameters, 53,101,440; 53,000,000 were used"], []),
    (changed(searched(), budget=IN_TIME), ["was 30 ms of the dense model's 60 ms; 29 ms were used"], []),
    (changed(searched(), time=TIME), ["8 min 20 s of 10 min used, with the amounts of `quick`"], []),
    (searched(), [], ["Time limit"]),
]
CARD = [
    (recovered(), ["was then trained on 24,576 tokens of hf:HuggingFaceFW/fineweb-edu"], []),
    (told(recovered(), refit=DROPPED), ["on validation text and was dropped"], ["refitted by ridge"]),
    (plain(), ["How its sizes were chosen isn't recorded"], ["trust_remote_code", "ridge"]),
    (told(recovered(), search={"described": "guided by gradients"}), ["1 generation guided by gradients"], []),
    (told(recovered(), search={"generations": 0}), ["equal layers", "without a generation of search"], []),
    (one_gone(), ["1 attention sub-layer of 30 blocks is gone."], []),
    (told(searched(), vocabulary=VOCABULARY), ["tokens: 24,000 of 48,000 tokens of the voc"], []),
    (
        told(searched(), vocabulary=VOCABULARY | {"dense_params": 2 * 134_515_008}),
        ["81.3 M of 269.0 M parameters (49.9 % of the block parameters), 163 MB of weights instead of 538 MB"],
        [],
    ),
    (searched(), ["No step that made this model has seen these documents"], []),
    (given(), ["No step of its recovery has seen these documents"], []),
]
BOTH = [
    (searched(), ["was not trained after"], ["was trained on", "was then trained", "How its sizes"]),
    (recovered(), ["was trained on 24,576 tokens after pruning", LEARNT], ["was not trained"]),
    (given(), ["was trained on 24,576 tokens after pruning", LEARNT], ["evolution", "refitted"]),
    (told(recovered(), recover={"kept": "before"}), [UNLEARNT], [LEARNT, "was then trained"]),
    (searched(), ["an evolutionary search of 19 generations guided by gradients"], []),
    (recovered(), ["1 generation with the paper's level switch"], ["guided by gradients"]),
    (changed(searched(), kept="attention of 4 blocks is kept"), ["Attention of 4 blocks is k"], []),
    (changed(searched(), left_out="multi-token prediction is left out"), ["Multi-token prediction is"], []),
    (told(searched(), export={"whole": True}), ["Its parts around the language model are unc"], []),
    (searched(), [], ["blocks is kept", "left out", "around the language model", "of its vocabulary"]),
    (
        told(searched(), vocabulary=VOCABULARY),
        [
            "block parameters and half of its vocabulary",
            "24,000 of 48,000 tokens of the vocabulary kept; held-out text takes 10.0 % more tokens: 5.0 % of its t",
            "needed 1.250 bits per byte of held-out text, and 1.125 with all tokens",
            "it has 120.0 M parameters, and 134.5 M with all tokens",
            "dense with fewer tokens",
        ],
        [],
    ),
    (
        changed(
            told(searched(), text={"purposes": {"evaluation": {"tokens": 512, "documents": 1}}}), machine={"threads": 1}
        ),
        ["512 tokens (1 document) of hf:", "1 thread,"],
        [],
    ),
]


@pytest.mark.parametrize(
    ("write", "tree", "said", "unsaid"),
    [(text_of, *case) for case in PAGE + BOTH] + [(card_of, *case) for case in CARD + BOTH],
)
def test_what_is_said_is_what_the_run_did(write, tree, said, unsaid):
    text = write(tree)
    for words in said:
        assert words in text, words
    for words in unsaid:
        assert words not in text, words
