"""Write the generated documentation: the recipe with its defaults, errors, and tables of families and steps.

    python tools/pages.py

`--check` writes nothing and fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import operator
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import reduce
from pathlib import Path
from textwrap import wrap

import yaml

from darwinlm import pipeline
from darwinlm.formats.gguf.stock_layout import ENCODER, UNKNOWN
from darwinlm.model.families.family import Family, families
from darwinlm.recipe import Recipe
from darwinlm.recipe.recipe import field_order
from darwinlm.runtime import errors
from darwinlm.runtime.registry import Extension
from darwinlm.runtime.section import Section
from darwinlm.runtime.step import Uses

ROOT = Path(__file__).parents[1]
ATTENTION = {"heads": "heads", "whole": "kept or removed", "never": "kept"}
ENGINES = {"mlx": "MLX", "vllm": "vLLM"}
GROUPED = ("deepseek_v3",)
"""Families whose published models choose among groups of experts."""
REFUSED = """\
These models are refused, because their blocks have parts that the method doesn't handle:

- Recurrent layers or convolutions of other kinds: Nemotron-H, Falcon-H1, Jamba, LFM2-MoE, Mamba, Kimi Linear.
- Keys and values that are compressed in other ways: DeepSeek-V3.2 and V4, Mistral Small 4, MiniCPM3.
- Layers that share keys or have their own embeddings: Gemma 3n.
- Attention and MLP in parallel on one stream: Command R, Pythia, Falcon.
- Other mixtures of experts: Llama 4, Phi-3.5-MoE, Granite 3 MoE.
- Text parts without a causal class of their own: Qwen3-VL.
- Other encoders: DeBERTa, MPNet, DistilBERT, ALBERT, ELECTRA; models with an encoder and a decoder: T5, BART.

To prune PaliGemma or Kimi K2.5, save their text part separately first."""


def fields_of(section: type[Section], *above: str) -> Iterator[tuple[list[str], str]]:
    """Names and meaning of every setting of a section and of those in it."""
    for name, meaning in section.settings_taken().items():
        kind = section.model_fields[name].annotation if name in section.model_fields else None
        if isinstance(kind, type) and issubclass(kind, Section) and not issubclass(kind, Extension):
            yield from fields_of(kind, *above, name)
        else:
            yield [*above, name], meaning


def default_recipe() -> str:
    """A recipe with every default, each explained above it: a file to copy and shorten."""
    lines = ["# Every setting with its default. Keep the lines that you change: a preset fills those that are absent."]
    tree, before = Recipe().model_dump(mode="json"), [""]
    order = field_order(Recipe, pipeline.STEPS)
    for parts, meaning in sorted(fields_of(Recipe), key=lambda field: (order.index(field[0][0]), len(field[0]))):
        *sections, field = parts
        if sections != before:
            lines += ["", *(f"{'  ' * (len(sections) - 1)}{section}:" for section in sections[-1:])]
        before = sections
        default = reduce(operator.getitem, sections, tree).get(field)  # of the kinds of budget, one is given
        value = yaml.safe_dump({field: default}, sort_keys=False, allow_unicode=True, width=1000)
        explained = wrap(" ".join(meaning.split()), 110, initial_indent="# ", subsequent_indent="# ")
        lines += ["  " * len(sections) + line for line in [*explained, *value.splitlines()]]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """A table of every section of the recipe, with defaults."""
    lines = [
        "# Settings",
        "",
        "Every setting can be given as `--set section.field=value`, as `assignments=` in Python, or in a recipe,",
        "a YAML file for `--recipe`. A preset fills what isn't given. `recipe.default.yaml` has the same settings",
        "as a file to copy.",
    ]
    tree, before = Recipe().model_dump(mode="json"), ["."]
    order = field_order(Recipe, pipeline.STEPS)
    for parts, meaning in sorted(fields_of(Recipe), key=lambda field: (order.index(field[0][0]), len(field[0]))):
        *sections, field = parts
        if sections != before:
            title = f"`{'.'.join(sections)}`" if sections else "The run"
            lines += ["", f"## {title}", "", "| setting | default | meaning |", "| --- | --- | --- |"]
        before = sections
        default = reduce(operator.getitem, sections, tree).get(field)
        shown = yaml.safe_dump(default, default_flow_style=True, allow_unicode=True, width=1000)
        shown = shown.removesuffix("\n").removesuffix("\n...").replace("|", "\\|")
        cell = "none" if default is None else f"`{shown}`"
        explained = " ".join(meaning.split()).replace("|", "\\|")
        lines.append(f"| `{'.'.join(parts)}` | {cell} | {explained} |")
    return "\n".join(lines) + "\n"


ERRORS = re.compile(r"(<!-- errors: tools/pages.py -->\n).*?(<!-- end -->)", flags=re.S)


def errors_table() -> str:
    """Every error with its cause and remedy."""
    lines = ["| cause | what to do | class |", "| --- | --- | --- |"]
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.DarwinLMError) and error is not errors.DarwinLMError:
            cause, _, remedy = inspect.cleandoc(error.__doc__ or "").partition("\n\nWhat to do: ")
            remedy = " ".join(remedy.split())
            lines.append(f"| {' '.join(cause.split())} | {remedy[:1].upper()}{remedy[1:]} | `{name}` |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """The page of errors with the present table."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    return ERRORS.sub(lambda found: found[1] + errors_table() + found[2], text)


def gguf_when_layers_differ(family: Family) -> str:
    """Whether an architecture of llama.cpp supports the family's pruned layers."""
    if family.mlp.experts is not None:
        return "no"
    stock = family.gguf
    if stock is not None and stock.unequal == "openelm":
        return "with tied embeddings"
    return "yes" if stock is not None and (stock.per_layer or stock.unequal) else "no"


def parts_cut(family: Family) -> tuple[str, str, str]:
    """Units that are cut in attention, MLP and experts."""
    experts, attention = family.mlp.experts, ATTENTION[family.attention.cut]
    if family.mixer is not None and attention != "kept":
        attention += f"; {family.mixer.title} kept"
    if family.attention.reused and attention != "kept":
        attention += "; kept where keys and values are shared"
    if experts is None:
        return attention, "channels", ""
    units = "narrowed" if experts.groups and family.model_type in GROUPED else "dropped or narrowed"
    dense = "kept parallel to experts" if not family.mlp.name else ""
    return attention, "channels of dense blocks" if isinstance(experts.shared_count, str) else dense, units


def images_words(known: Iterable[Family]) -> list[str]:
    """Model types with parts around the language model, and what becomes of them."""
    types = sorted({f"`{name}`" for family in known for name in family.inside})
    return [
        f"In models that read images ({', '.join(types)}), only the language model is pruned. The other",
        "parts stay unchanged and don't count in the budget. `AutoModelForImageTextToText` loads the result.",
    ]


def _whole_parts() -> dict[str, list[Family]]:
    """Parts of blocks that are never cut, with the families that have them."""
    kept = [family for family in families().values() if family.attention.cut == "never"]
    return {
        "Per-layer inputs": [family for family in families().values() if family.tail],
        "Shared experts": [
            family for family in kept if family.mlp.name and family.mlp.experts and family.mlp.experts.shared
        ],
        "MLPs that run in parallel to experts": [family for family in kept if not family.mlp.name],
    }


def gguf_words(known: dict[str, Family]) -> list[str]:
    """Families without GGUF, and what llama.cpp does otherwise."""
    stock = [(family, each) for family in known.values() if (each := family.gguf) is not None]
    rounded = ", ".join(family.title for family, each in stock if each.rounds)
    square = [family for family, each in stock if each.square and not each.unequal]
    heads = [family for family in square if family.attention.cut == "heads"]
    without = [family for family in known.values() if family.gguf is None]
    encoders = [family for family in without if family.bidirectional]
    return [
        f"- {_listed(_titles(encoders))}: no GGUF, because {ENCODER}.",
        *(f"- {family.title}: no GGUF, because {UNKNOWN}." for family in without if not family.bidirectional),
        f"- {', '.join(_titles(heads))}: only if all heads are kept, because llama.cpp derives their number",
        "  from the hidden size.",
        f"- {rounded}: llama.cpp rounds the bounds of the rope scaling (YaRN) in every GGUF file of these models, and",
        "  transformers doesn't. The export therefore compares the file with a model that has rounded bounds",
        "  ([measured](notebook/speed.md#2026-11-27-gpt-oss-in-llamacpp)).",
        "- Mixtures of experts: llama.cpp supports a single number of experts and a single width in all blocks. Its",
        "  one architecture in which widths differ by block, Nemotron 3 Puzzle's, is for hybrid models, which aren't",
        "  pruned.",
        "  `--for gguf` and `--layers equal` give all mixtures the same sizes; models with other sizes are refused.",
        "- DeepSeek-V2: its tokenizer can't be written. Take it from a GGUF file of the model: `--tokenizer-from",
        "  F.gguf`.",
        "- Rerankers with one score ([page](reading-models.md#llamacpp)): "
        f"{', '.join(_titles([family for family, each in stock if each.scores]))}.",
        "  Others are refused if their layers are equal, and if they have no architecture for unequal layers.",
    ]


def _titles(group: list[Family]) -> list[str]:
    return sorted((family.title for family in group), key=str.lower)


def _listed(titles: list[str]) -> str:
    return f"{', '.join(titles[:-1])} and {titles[-1]}"


QUANTISED = """\
## Quantised checkpoints

Weights can be float32, float16 or bfloat16, in safetensors or GGUF files. Quantised weights are read one block at a
time and converted to floats. The smaller model is not quantised, so quantise it again at the end
([serving](serving.md)).

| `quant_method` in config.json | what is read |
| --- | --- |
| `fp8` | blocks as DeepSeek and Qwen write them, and one scale for each weight |
| `compressed-tensors` | FP8 |
| `mxfp4` | gpt-oss |

All other methods (GPTQ, AWQ, bitsandbytes and others) are refused before the run starts, and so are quantised
models that read images. Prune the model that was quantised, and quantise the result.

Of a GGUF file, only its own contents are read, and no files next to it. Its tensors are read one at a time. The file is
refused if transformers can't read its configuration, if it lacks a tensor or has one too many, or if it has a key that
changes the model and that transformers ignores. If the embedding and the output head differ by no more than the
rounding of their types, the model shares the more precise one, and the run says so. For example, Qwen's Q4_K_M file
of Qwen2.5-Coder-0.5B becomes a model of 494M parameters instead of 630M."""
UNEQUAL = """\
- Families equivalent to Llama: models with unequal layers are written with the architecture `deci` and split
  projections. So are models with equal layers whose heads don't fill the hidden size (Qwen2, Phi-3).
- Qwen3: models with unequal layers are written as `openelm` if the embedding is tied, and refused otherwise. No other
  architecture of llama.cpp (the sources in llama-cpp-python 0.3.36 were read) has such normalised heads, sizes for each
  layer, and nothing else that Qwen3 lacks. `--layers equal` avoids this.
- Some sizes are padded with zeros: MLP widths to a multiple of 32, an absent MLP to 32 channels, and an absent
  first attention to one head. Rows that are not multiples of 32 can't be quantised.
- `--tokenizer-from MODEL.gguf` keeps the tokenizer of the file that the model came from.

## MLX

A model with unequal layers contains the file `modeling_mlx.py`, with which mlx-lm runs it. This works for the
families that the table names, but not for models that were pruned with `units.attention=query_head`.

Models of these families with equal layers need no file. Those of Qwen2, Phi-3 and Granite 3 load if all heads are
kept, because mlx-lm derives the size of a head from their number. mlx-lm 0.32 ignores the sliding windows of
Mistral and Gemma 2 and the partial rotation of GLM-4, in original models as well."""


def families_page() -> str:
    """Every family with its pruned units and the engines for the result, and refused models."""
    lines = [
        "# Model families",
        "",
        "These families can be pruned. transformers runs the results of all of them; models with unequal layers need",
        "the modelling file in their folder. The table shows what is pruned, and which results can be written as GGUF",
        "files.",
        "",
        "| column | values |",
        "| --- | --- |",
        "| attention | heads: query heads and KV groups are removed; kept: never cut; kept or removed: as a whole |",
        "| MLP | channels are removed |",
        "| experts | dropped: whole experts; narrowed: the same number of channels from every expert |",
        "| GGUF, equal layers | architecture in the file if all layers have the same sizes |",
        "| GGUF, layers differ | yes: the file has sizes for each layer; no: the export is refused |",
        "| tested in | other engines in which tests run models with unequal layers |",
        "",
        "|family|model type|attention|MLP|experts|GGUF, equal layers|GGUF, layers differ|tested in|",
        "|---|---|---|---|---|---|---|---|",
    ]
    known = families()
    encoders = [family for family in known.values() if family.bidirectional]
    for family in sorted(known.values(), key=lambda family: family.title.lower()):
        equal = "no" if family.gguf is None else f"`{family.gguf.name}`"
        engines = ", ".join(ENGINES[engine] for engine in family.engines)
        sizes = *parts_cut(family), equal, gguf_when_layers_differ(family)
        cells = family.title, f"`{family.model_type}`", *sizes, engines
        lines.append("|".join(("", *cells, "")))
    lines += [
        "",
        "Attention is only kept or removed as a whole if its norms span all heads, or if its output projection has a",
        "fixed size. It is always kept in blocks with experts, if keys and values are compressed, and if other blocks",
        "share its keys and values (some blocks of Gemma 4's E models). Other token mixers are always kept; the plan",
        "and the report name them. With `--layers equal`, the attentions of encoders are kept or removed as a",
        "whole, because transformers' own classes derive the size of a head from the number of heads.",
        "",
        "The vocabulary of every family of language models can be cut (`--vocab`) if its tokenizer is BPE or Unigram.",
        "",
        f"{_listed(_titles(encoders))} are encoders. They are pruned as embedders, and",
        f"{_listed(_titles([family for family in encoders if family.encoder]))} also as rerankers and classifiers",
        "([page](reading-models.md#encoders)).",
        "",
        "All families are tested with random weights. Trained weights were measured for Llama (SmolLM2), Qwen2.5,",
        "Gemma 3, BERT (all-MiniLM-L6-v2) and small Nemotron, OLMo 2, LFM2 and Mixtral models (see the notebook on the",
        "[database](notebook/database.md#2026-11-27-real-weights-beyond-llama), on",
        "[models that read](notebook/reading.md#2026-12-04-a-published-embedder-at-half) and on",
        "[experts](notebook/experts.md#2026-11-27-dropping-narrowing-or-both-on-a-trained-mixture)).",
        "",
        *images_words(known.values()),
        "",
        "## What isn't cut",
        "",
        *(f"- {part}: {', '.join(_titles(parts))}." for part, parts in _whole_parts().items()),
        "",
        "If a router first chooses among groups of experts (DeepSeek-V3, and DeepSeek-V2 except Lite), all experts",
        "are kept and only narrowed.",
        "",
        "Blocks for multi-token prediction (DeepSeek-V3, GLM-4.5, Qwen3-Next and others) are left out of the result.",
        "The run and its report say so, and the saved configuration counts no such blocks.",
        "",
        *QUANTISED.splitlines(),
        "",
        "## GGUF",
        "",
        *gguf_words(known),
        *UNEQUAL.splitlines(),
        "",
        "## Refused models",
        "",
        *REFUSED.splitlines(),
        "",
        "To add a family whose blocks are one token mixer followed by one MLP, [write a YAML",
        "file](extending.md#a-model-family).",
    ]
    return "\n".join(lines) + "\n"


STEPS = re.compile(r"(<!-- steps: tools/pages.py -->\n).*?(<!-- end -->)", flags=re.S)


def steps_table() -> str:
    """Every step of a run with its inputs, settings and files."""
    lines = ["| step | reads | settings | writes |", "| --- | --- | --- | --- |"]
    for step in pipeline.STEPS:
        inputs = ", ".join(field.name for field in fields(step))
        settings = ", ".join([*map(settings_used, step.settings), *["`time`"] * step.ends_early])
        lines.append("| " + " | ".join((f"`{step.name}`", inputs, settings, step.writes)) + " |")
    return "\n".join(lines) + "\n"


def settings_used(used: Uses) -> str:
    """The section or the fields of it that a result depends on."""
    (section,) = (name for name, field in Recipe.model_fields.items() if field.annotation is used.section)
    if used.only:
        return ", ".join(
            f"the bound of `{section}`" if name == "bound" else f"`{section}.{name}`" for name in used.only
        )
    without = " and ".join(f"`{name}`" for name in used.ignoring)
    return f"`{section}` without {without}" if without else f"`{section}`"


def architecture_page() -> str:
    """The page on the architecture with the present table of steps."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return STEPS.sub(lambda found: found[1] + steps_table() + found[2], text)


PAGES = {
    "recipe.default.yaml": default_recipe,
    "docs/settings.md": settings_page,
    "docs/errors.md": errors_page,
    "docs/families.md": families_page,
    "docs/architecture.md": architecture_page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"error: {name} is out of date: run python tools/pages.py")


if __name__ == "__main__":
    main()
