"""When a refused request may come again: the seconds of every `Retry-After` that a full lane gives. Knows no lane."""

from __future__ import annotations

import math
import time

#: decay of the moving average of the completion rate: the weight of all earlier completions beside the newest
_DECAY = 0.99
LONGEST_RETRY_SECONDS = 60


class RetryAfter:
    """The rate at which requests end, as a moving average, and the time that the present ones will take at that rate.

    Only completions while all places are taken are measured: the others do not show how many requests can end in a second.
    """

    def __init__(self) -> None:
        #: the start of the measurement, or the last completion, by `time.perf_counter`
        self._since = 0.0
        #: decayed sums: seconds of measurement, and completions in them
        self._seconds = self._completions = 0.0

    def start(self) -> None:
        """Begin to measure: the last free place was taken."""
        self._since = time.perf_counter()

    def count_completion(self) -> None:
        """Count a request that ended while all places were taken."""
        now = time.perf_counter()
        self._seconds = self._seconds * _DECAY + now - self._since
        self._completions = self._completions * _DECAY + 1
        self._since = now

    def seconds(self, requests: int) -> int:
        """Return when that many requests will have ended, in whole seconds from 1 to `LONGEST_RETRY_SECONDS`."""
        per_request = self._seconds / self._completions if self._completions else 0
        return min(max(math.ceil(requests * per_request), 1), LONGEST_RETRY_SECONDS)
