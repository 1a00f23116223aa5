"""`python -m lab`."""

from darwinlm.cli import main as darwinlm_main
from lab.app import app
from lab.comparison import command as _compare  # noqa: F401 - each declares its command
from lab.judging import command as _judging  # noqa: F401
from lab.tradeoff import command as _tradeoff  # noqa: F401

SHARED = frozenset({"compare"})


def main() -> None:
    """Run a command; errors, interrupts and torchrun are handled as by `darwinlm`."""
    darwinlm_main(app, "python -m lab", SHARED)


if __name__ == "__main__":
    main()
