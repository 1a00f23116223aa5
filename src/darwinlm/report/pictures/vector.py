"""Pictures as SVG inside a page: colours are the page's variables, and pointing at a mark tells about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from io import StringIO
from xml.etree import ElementTree as ET

from markupsafe import Markup

from darwinlm.report.pictures.colours import DARK, LIGHT
from darwinlm.report.pictures.draw import ChartFigure, Tips, drawing, drawn
from darwinlm.runtime.charts import Chart, Picture
from darwinlm.runtime.limits import visible

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
NUMBER = re.compile(r"-?\d+\.\d{3,}")
REFERENCE = re.compile(r"(?:(?<=url\(#)|(?<=^#))[\w-]+")
FONT = re.compile(r"(font: [^;]*?[\d.]+px )[^;]*|font-family: [^;]*(?:; )?")


def inline(picture: Picture, name: str) -> list[tuple[str, Markup]]:
    """Title and SVG of each chart. The ids begin with `name`, which no other picture of the page may have."""
    return [
        (chart.title, Markup(_text(_tree(chart, f"{name}-{number}"))))  # noqa: S704 - of our own tree
        for number, chart in enumerate(picture.charts)
    ]


def stand_alone(picture: Picture, *, dark: bool = True) -> str:
    """The charts side by side as a file of their own; `dark`: with dark colours where the reader's window is dark."""
    figure = drawn(picture.charts, titled=True)
    tree = _themed(_parsed(_svg(figure)), figure.tips, picture.name, ", ".join(chart.title for chart in picture.charts))
    tree.attrib["font-family"] = "sans-serif"
    if dark:
        colours = " ".join(f"--{name}: {colour};" for name, colour in DARK.items())
        rule = ET.Element(f"{{{SVG}}}style")
        rule.text = f"@media (prefers-color-scheme: dark) {{ svg {{ {colours} }} }}"
        tree.insert(0, rule)
    return _text(tree) + "\n"


def _tree(chart: Chart, name: str) -> ET.Element:
    text, tips = _drawn(chart)
    return _themed(_parsed(text), tips, name, f"{chart.title}: {chart.y.label} by {chart.x.label}")


@lru_cache(maxsize=64)
def _drawn(chart: Chart) -> tuple[str, Tips]:
    """SVG and tips of a chart: it may be on several pages, such as those of a run and of its recovery."""
    figure = drawn([chart], titled=False)
    return _svg(figure), figure.tips


def _svg(figure: ChartFigure) -> str:
    text = StringIO()
    with drawing():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def _parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - it is our own


def _text(tree: ET.Element) -> str:
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", LINK)
    return re.sub(r"\n\s*", "\n", ET.tostring(tree, encoding="unicode")).strip()


def _themed(tree: ET.Element, tips: Tips, name: str, label: str) -> ET.Element:
    """The tree with the page's colours and fonts, tips, ids that are its own, and as many digits as can be seen."""
    for child in list(tree):
        if child.tag.endswith("metadata") or (
            child.tag.endswith("defs") and len(child) and child[0].tag.endswith("style")
        ):
            tree.remove(child)  # its rules would hold for the whole page
    for attribute in ("width", "height", "version"):
        tree.attrib.pop(attribute, None)
    tree.attrib |= {"role": "img", "aria-label": visible(label), "stroke-linejoin": "round", "class": "chart"}
    used = {found for element in tree.iter() for value in element.attrib.values() for found in REFERENCE.findall(value)}
    for element in tree.iter():
        _tell(element, tips.get(element.attrib.get("id", ""), ()))
        if element.attrib.get("id", "") not in used:
            element.attrib.pop("id", None)
        for attribute, value in element.attrib.items():
            element.attrib[attribute] = _attribute(attribute, value, name, used)
    return tree


def _tell(element: ET.Element, tips: tuple[str, ...]) -> None:
    """Put the tips of a mark into it, or one into each of its points."""
    if not tips:
        return
    points = list(_points(element))
    for target, tip in zip(points if len(tips) > 1 else [element], tips, strict=True):
        title = ET.Element(f"{{{SVG}}}title")
        title.text = tip
        target.insert(0, title)


def _points(element: ET.Element) -> Iterator[ET.Element]:
    for child in element:
        if child.tag in (f"{{{SVG}}}use", f"{{{SVG}}}path"):
            yield child
        elif child.tag != f"{{{SVG}}}defs":
            yield from _points(child)


def _attribute(attribute: str, value: str, name: str, used: set[str]) -> str:
    if attribute == "id" and value in used:
        return f"{name}-{value}"
    if attribute == "style":
        value = FONT.sub(lambda found: f"{found[1]}var(--font, sans-serif)" if found[1] else "", value)
        for variable, colour in LIGHT.items():
            value = value.replace(colour, f"var(--{variable}, {colour})")
    value = REFERENCE.sub(lambda found: f"{name}-{found[0]}", value)
    return NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
