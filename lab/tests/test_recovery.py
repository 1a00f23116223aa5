"""The benchmark that trains several models from the same stored log-probabilities."""

import json
import sys

import pytest
from tests.tiny.recovering import Stopped

from darwinlm.recovery import cache, train
from lab.benchmarks import recovery


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Run the benchmark with some options; what it printed."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["recovery.py", *map(str, options)])
        recovery.main()
        return capsys.readouterr().out

    return run


def options(inputs, out):
    """Two models that are the same, twelve steps of eight sequences, and four in a short training."""
    small, dense, text = inputs
    models = [f"--model=ours={small}", f"--model=same={small}"]
    sizes = ["--length=32", "--held-out=256", "--batch-tokens=256", "--micro-tokens=128", "--save-every=512"]
    what = ["--points=512,1024,2048", "--cheap=1k", "--seeds=0,1,2", "--cached-top-k=16", f"--out={out}"]
    return [dense, *models, f"--text=tiny={text}", *sizes, *what]


def lines_of(out):
    return [json.loads(line) for line in (out / "lines.jsonl").read_text().splitlines()]


def documents_of(run):
    """What a run's text was made of."""
    parts = (run / "stages" / "text").glob("*/blocks.json")
    return {hashed for path in parts for hashed in json.loads(path.read_text())["document_hashes"]}


def figures(lines):
    return {
        (line["model"], line["kind"], line["seed"], line["tokens"]): line["held_out"]["tiny"]["kl"] for line in lines
    }


def test_one_long_training_is_measured_on_the_way_and_short_ones_stand_beside_it(
    inputs, benchmark, tmp_path, monkeypatch
):
    """Stopped in the long training behind the second point, it goes on to the same figures."""
    given = options(inputs, tmp_path / "out")
    with monkeypatch.context() as patched:
        whole = train.Training.update

        def stopping(self, step):
            whole(self, step)
            if (step, self.steps.count) == (5, 8):
                raise Stopped

        patched.setattr(train.Training, "update", stopping)
        with pytest.raises(Stopped):
            benchmark(*given)
    before = lines_of(tmp_path / "out")
    assert [(line["kind"], line["tokens"]) for line in before[-2:]] == [("long", 512), ("long", 1024)]
    with monkeypatch.context() as patched:
        patched.setattr(cache, "dense_top", lambda *_: pytest.fail("the dense model runs over the text again"))
        said = benchmark(*given, f"--plot={tmp_path / 'curves.svg'}")
    assert "resuming from checkpoint-4" in said
    assert int(said.split()[0]) == len(documents_of(inputs[0].parent)) > 0, "what made the model isn't measured on"
    lines = lines_of(tmp_path / "out")
    assert lines[: len(before)] == before
    found = figures(lines)
    assert len(found) == len(lines) == 2 * (1 + 2 + 3)
    for kind, seed, tokens in [("start", None, 0), *(("long", 0, tokens) for tokens in (512, 1024, 2048))]:
        # The same weights, tokens and order: the same figures, although one of the trainings was killed.
        assert found["ours", kind, seed, tokens] == found["same", kind, seed, tokens]
    assert found["ours", "short", 1, 1000] != found["ours", "short", 2, 1000]
    assert found["ours", "long", 0, 2048] < found["ours", "start", None, 0]
    assert {line["trained"] for line in lines if line["kind"] == "short"} == {768}
    picture = (tmp_path / "curves.svg").read_text()
    assert all(word in picture for word in ("tiny", "ours", "same", "tokens trained on"))
    monkeypatch.setattr(train.Training, "run", lambda *_: pytest.fail("it trains again"))
    benchmark(*given)
    assert lines_of(tmp_path / "out") == lines


def test_points_on_the_way_lie_before_the_rate_falls(inputs, benchmark, tmp_path):
    with pytest.raises(SystemExit, match="--points: 1900,2048, but the learning rate falls from 1,638 tokens on"):
        benchmark(*options(inputs, tmp_path / "out"), "--points=1900,2048")


def test_a_plot_needs_nothing_but_lines(benchmark, tmp_path):
    def line(model, kind, seed, tokens, kl):
        return {"benchmark": "recovery", "model": model, "kind": kind, "seed": seed, "tokens": tokens} | {
            "held_out": {"c4": {"kl": kl, "perplexity": 9.0}, "books": {"kl": kl / 2, "perplexity": 8.0}}
        }

    lines = [line("ours", "start", None, 0, 1.5), line("ours", "long", 0, 300_000, 0.9)]
    lines += [line("ours", "short", seed, 100_000, 1 + seed / 10) for seed in (1, 2)]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    benchmark(f"--lines={path}", f"--plot={tmp_path / 'curves.svg'}")
    picture = (tmp_path / "curves.svg").read_text()
    assert all(word in picture for word in ("c4", "books", "300k", "ours, 2 short training(s)"))
    path.write_text("{}\n")
    with pytest.raises(SystemExit, match="holds no lines of the recovery benchmark"):
        benchmark(f"--lines={path}", f"--plot={tmp_path / 'other.svg'}")
    assert not (tmp_path / "other.svg").exists()
