"""What a smaller vocabulary does to each script."""

import pytest

from darwinlm.steps.vocabulary.scripts import NO_LETTERS, RANK, script_figures, script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (" the", "Latin"), ("é", "Latin"), ("12漢字", "Han"), ("ひ", "Kana"), ("カ", "Kana"), ("Привет", "Cyrillic"),
        ("한국", "Hangul"), ("سلام", "Arabic"), ("हिन्दी", "Devanagari"), ("ไทย", "Thai"), ("ελ", "Greek"),
        ("🙂 12 <|", NO_LETTERS), ("\ufffd", NO_LETTERS), ("", NO_LETTERS),
    ],
)  # fmt: skip
def test_the_first_letter_tells_the_script(text, script):
    assert script_of(text) == script


def test_removed_tokens_and_growth_by_script():
    texts = {0: "the", 1: "漢", 2: "字", 3: " of", 4: "."}
    figures = script_figures(texts, kept={0, 3, 4, 1}, spelt={2: 3})
    assert list(figures) == ["Latin", "Han", NO_LETTERS]
    assert (figures["Latin"].kept, figures["Latin"].tokens, figures["Latin"].longer) == (2, 2, 1)
    first, second = 1 / RANK, 1 / (RANK + 1)
    assert figures["Han"].longer == pytest.approx((first + 3 * second) / (first + second))
    assert (figures["Han"].kept, figures["Han"].tokens) == (1, 2)
