"""The colours of pictures by the names of the page's variables, and how they are drawn in a light surrounding."""

from __future__ import annotations

LIGHT = {
    "ink": "#1d2129",
    "muted": "#5f6670",
    "line": "#dcdfe4",
    "pale": "#d5dbe1",
    "accent": "#1f6f4c",
    "second": "#b3540a",
}
DARK = {
    "ink": "#e7e9ec",
    "muted": "#a0a7b1",
    "line": "#353b45",
    "pale": "#434b57",
    "accent": "#63c79a",
    "second": "#f0a35e",
}
