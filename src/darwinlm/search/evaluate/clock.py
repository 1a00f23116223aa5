"""The time limit of a search, across interruptions."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from darwinlm.errors import TimeLimitError


@dataclass
class Clock:
    """Wall-clock time of a search in seconds, with those `before` an interruption, and its limit."""

    limit: float = math.inf
    before: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return self.before + time.monotonic() - self.begun

    @property
    def left(self) -> float:
        """Seconds left, negative after the limit."""
        return self.limit - self.seconds

    def check(self) -> None:
        """Raise TimeLimitError after the limit."""
        if self.left < 0:
            raise TimeLimitError("the search has used its time")
