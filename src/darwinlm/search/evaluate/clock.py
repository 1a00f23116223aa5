"""The time that a search may take, across interruptions."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from darwinlm.errors import TimeLimitError


@dataclass
class Clock:
    """Wall-clock time of a search.

    Attributes:
        limit: Seconds that the search may take.
        before: Seconds that it took before it was interrupted.
        begun: Start of this process's part, on the monotonic clock.
    """

    limit: float = math.inf
    before: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return self.before + time.monotonic() - self.begun

    @property
    def left(self) -> float:
        """Seconds that are left, below 0 where the limit has passed."""
        return self.limit - self.seconds

    def check(self) -> None:
        """Leave what is being done where the limit has passed. Raises TimeLimitError."""
        if self.left < 0:
            raise TimeLimitError("the search has used its time")
