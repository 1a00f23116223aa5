"""Summaries of runs as JSON trees that tests change and then check with `made`, and readers of pages and cards."""

import json
from functools import cache
from html.parser import HTMLParser

import yaml

from darwinlm.report.card import model_card
from darwinlm.report.page import render_page
from darwinlm.report.summary import KINDS, Summary
from darwinlm.runs.finished import FIGURES

NASTY = '<script>alert("x")</script> & "quotes" `ticks` | pipe'
DROPPED = {"kept": "stitched", "strength": 0.0}
"""A refit that was no better."""
VOID = {"meta", "br", "hr", "img", "link", "input"}


def model(params, blocks, perplexity, kl, speed, decode, texts):
    metrics = {
        "params": params,
        "block_params": blocks,
        "bytes": 2 * params,
        "perplexity": perplexity,
        "kl": kl,
        "tokens_per_second": speed,
        "decode_tokens_per_second": decode,
        "speed_spread": 0.05,
    }
    return {"metrics": metrics, "continuations": texts}


def searched(blocks=30):
    """A run as it usually is: layers that differ, searched and refitted."""
    allocation = [
        {
            "block": block,
            "groups": (0, 1, 2, 3)[block % 4],
            "heads": (0, 3, 6, 9)[block % 4],
            "width": 0 if block == 7 else 32 * ((block * 7) % 48 + 1),
            "dense_groups": 3,
            "dense_heads": 9,
            "dense_width": 1536,
        }
        for block in range(blocks)
    ]
    return {
        "format": 2,
        "version": "0.1.0",
        "model": "HuggingFaceTB/SmolLM2-135M",
        "budget": {
            "kind": "keep",
            "keep": 0.5,
            "unit": "block parameters",
            "dense": 106202880,
            "used": 53000000,
            "dense_block_params": 106202880,
            "upper": 53101440,
            "block_params": 53000000,
            "unused": 0.0019,
        },
        "models": {
            "dense": model(134515008, 106202880, 24.91, 0.0, 254.2, 13.3, [" Paris, the capital.", " it is hot."]),
            "uniform": model(81400000, 53090000, 73.04, 1.37, 512.0, 23.1, [" the the the", " the water"]),
            "stitched": model(81312128, 53000000, 55.2, 0.982, 540.9, 24.7, [" a city in\n\nFrance", ""]),
            "refit": model(81312128, 53000000, 48.36, 0.871, 541.3, 24.6, [" Paris <b>now</b>", " it boils."]),
        },
        "origin": {"base_model": "HuggingFaceTB/SmolLM2-135M", "license": "apache-2.0", "languages": ["en"]},
        "prompts": ["The capital of France is", "Water boils when"],
        "allocation": allocation,
        "steps": {
            "text": {
                "source": "hf:HuggingFaceFW/fineweb-edu",
                "sequence_length": 512,
                "purposes": {
                    "calibration": {"tokens": 65536, "documents": 71},
                    "fitness": {"tokens": 8192, "documents": 9},
                    "validation": {"tokens": 8192, "documents": 10},
                    "evaluation": {"tokens": 16384, "documents": 17},
                },
            },
            "search": {
                "method": "gradient",
                "described": "guided by gradients",
                "start_kl": 0.92,
                "uniform_kl": 1.3,
                "kl": 0.516,
                "evaluations": 229,
                "seconds": 303.4,
                "ended": "all generations done",
                "generations": 19,
            },
            "refit": {
                "fitted": 2 * (blocks - -(-blocks // 9)),
                "modules": 2 * blocks,
                "kept": "refit",
                "strength": 0.5,
            },
            "export": {"folder": "model", "custom_code": True, "dtype": "bfloat16"},
        },
        "text_use": {
            "calibration": ["second moments of the database", "the refit"],
            "validation": ["strength of the refit", "check of the saved model"],
        },
        "stages": [
            {"name": "database", "seconds": 61.25, "reused": True},
            {"name": "search", "seconds": 303.4, "reused": False},
        ],
        "machine": {
            "device": "cpu",
            "threads": 2,
            "torch": "2.13.0",
            "transformers": "5.24.0",
            "compute_dtype": "bfloat16",
        },
        "recipe": {"model": "HuggingFaceTB/SmolLM2-135M", "budget": {"keep": 0.5}, "units": {"levels": [0.5, 0.75]}},
    }


def plain():
    """A run without search and refit: equal layers, no custom code."""
    summary = searched()
    del summary["steps"]["search"], summary["steps"]["refit"]
    del summary["models"]["refit"], summary["models"]["uniform"]
    for entry in summary["allocation"]:
        entry.update(groups=2, heads=6, width=704)
    summary["steps"]["export"]["custom_code"] = False
    return summary


def recovered():
    """A run that was trained after the refit, of one generation with the paper's rules."""
    summary = searched()
    del summary["models"]["refit"]
    summary["models"]["recovered"] = model(81312128, 53000000, 40.1, 0.61, 541.2, 24.6, [" Paris.", " it is 100 °C."])
    summary["steps"]["search"].update(method="paper", described="with the paper's level switch", generations=1)
    summary["steps"]["recover"] = {
        "source": "hf:HuggingFaceFW/fineweb-edu",
        "steps": 12,
        "tokens": 24576,
        "seconds": 300.0,
        "log": [
            *({"tokens": 2048 * at} for at in range(1, 13)),
            {"tokens": 0, "eval_kl": 0.87},
            {"tokens": 24576, "eval_kl": 0.61},
        ],
    }
    return summary


def pictured(blocks=30):
    """A run with all that pictures show: a search of 12 generations, a training, and agreement of each model."""
    tree = recovered()
    tree["allocation"] = searched(blocks)["allocation"]
    moved = (0, 30, 14, 9, 0, 6, 4, 3, 0, 2, 1, 0, 2)
    history = [
        {"number": number, "kl": 0.516 + 0.404 * 0.7**number, "moved": moved[number], "evaluations": 19 * number}
        for number in range(13)
    ]
    tree["steps"]["search"].update(generations=12, history=history)
    tree["steps"]["recover"]["log"] = [
        *({"tokens": 2048 * at, "loss": 0.5 + 0.5 * 0.97**at + 0.02 * (at * 7 % 5)} for at in range(1, 120)),
        *({"tokens": 40960 * at, "eval_kl": 0.87 * 0.92**at} for at in range(7)),
    ]
    for agreement, figures in zip((1, 0.55, 0.68, 0.73), tree["models"].values(), strict=True):
        figures["metrics"]["agreement"] = agreement
    return tree


def given():
    """A recovery on its own, of a model of which nothing is known."""
    summary = without(recovered(), "search", "refit")
    models = summary["models"]
    summary["models"] = {"dense": models["dense"], "before": models["stitched"], "recovered": models["recovered"]}
    summary["budget"] = None
    return summary


SUMMARIES = {"searched": searched, "plain": plain, "recovered": recovered, "pictured": pictured, "given": given}


def made(tree):
    return Summary.model_validate(json.loads(json.dumps(tree)), context={KINDS: FIGURES})


def changed(tree, **sections):
    """The tree with other sections; those that are mappings are changed in some fields only."""
    for name, value in sections.items():
        tree[name] = {**(tree.get(name) or {}), **value} if isinstance(value, dict) else value
    return tree


def told(tree, **steps):
    """The tree with other figures of steps, which are changed in some fields only."""
    changed(tree["steps"], **steps)
    return tree


def without(tree, *steps):
    """The tree without some steps."""
    tree["steps"] = {name: figures for name, figures in tree["steps"].items() if name not in steps}
    return tree


def measured(tree):
    """Give every model figures of looking back."""
    for number, model in enumerate(tree["models"].values()):
        model["looking_back"] = {
            "copying": [{"name": "16 words", "accuracy": 0.5 - 0.1 * number, "loss": 2.0 + number, "tokens": 60}],
            "remarks": ["no lists of <words>"],
        }
    return tree


def text_of(tree):
    return _text_of(json.dumps(tree))


@cache
def _text_of(tree):
    return Page(render_page(made(json.loads(tree)))).text


def card_of(tree):
    return front_matter(model_card(made(tree)))[1]


class Page(HTMLParser):
    """Checks that elements are closed in order, and that there are no scripts; collects ids, resources and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.resources, self.words = [], [], [], []
        self.policy, self.links = "", []
        self.feed(html)
        self.close()
        assert self.open == []
        assert self.policy == "default-src 'none'; style-src 'unsafe-inline'"

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        self._note(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not set(self.open) & {"style", "svg"}:
            self.words.append(data)

    def _note(self, tag, attrs):
        if attrs.get("id"):
            self.ids.append(attrs["id"])
        links = [attrs[name] for name in ("src", "href", "xlink:href") if attrs.get(name)]
        self.links += links if tag == "a" else []
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]
        if tag != "a":
            self.resources += [link for link in links if not link.startswith("#")]
        assert tag not in {"iframe", "link", "object"}

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def front_matter(card):
    opening, matter, body = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(matter), body


VOCABULARY = {
    "tokens": 24_000,
    "dense_tokens": 48_000,
    "params": 120_000_000,
    "dense_params": 134_515_008,
    "domains": {"a.txt": {"bytes": 4000, "dense_tokens": 1000, "tokens": 1100, "affected": 50}},
    "bits_per_byte": 1.25,
    "dense_bits_per_byte": 1.125,
}
