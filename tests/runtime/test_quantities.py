"""Numbers with a unit or a per cent sign."""

from darwinlm.runtime.quantities import parse_share


def test_a_share_in_per_cent_is_the_same_number_as_the_share():
    """A product of floats differs from it in the last digit for a quarter of these."""
    shares = {f"{tenths // 10}.{tenths % 10}%": float(f"0.{tenths:03d}") for tenths in range(1, 1000)}
    assert {percent: parse_share(percent) for percent in shares} == shares
