"""Tables in Markdown, as a model card has them."""

from darwinlm.runtime import tables


def test_a_name_from_outside_stays_text_in_a_card() -> None:
    """A measure is called as its file, which can have any name."""
    name = "![x](https:\\\\host\\p) [y](z) <b> | \x1b[2J.jsonl"
    table = tables.markdown(tables.Table(["model", name], [["dense", "1"]], remarks=[name]))
    shown = "!\\[x\\](https:\\\\\\\\host\\\\p) \\[y\\](z) &lt;b&gt; \\| \N{REPLACEMENT CHARACTER}\\[2J.jsonl"
    assert table.splitlines()[0] == f"| model | {shown} |"
    assert table.splitlines()[-1] == shown
