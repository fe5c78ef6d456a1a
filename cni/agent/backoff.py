"""How often the same repair may be made: where somebody else keeps undoing it, a fight would help nobody.

Pure: the time comes from outside, in seconds of a clock that never goes back. What is repaired is a text to it.
"""

from __future__ import annotations

FREE = 3  # repairs of the same thing within WINDOW_SECONDS that need not wait
WINDOW_SECONDS = 60.0
FIRST_SECONDS, LONGEST_SECONDS = 2.0, 300.0


class Backoff:
    """What was repaired lately, and how long each of it has to wait until it may be repaired again."""

    def __init__(self) -> None:
        self._known: dict[str, _History] = {}

    def wait(self, what: str, now: float) -> float:
        """Seconds until something may be repaired; 0.0 when it may be now."""
        history = self._known.get(what)
        return max(0.0, history.last + history.delay - now) if history else 0.0

    def note(self, what: str, now: float) -> bool:
        """Something is being repaired; whether that begins to look like a fight, which is told once."""
        history = self._known.get(what)
        if history is None or history.is_over(now):
            history = self._known[what] = _History()
        was_calm = not history.delay
        history.note(now)
        return was_calm and bool(history.delay)

    def forget_old(self, now: float) -> None:
        """Let go of what has been quiet for long."""
        self._known = {what: history for what, history in self._known.items() if not history.is_over(now)}


class _History:
    def __init__(self) -> None:
        self.times: list[float] = []  # of the last FREE repairs
        self.delay = 0.0

    @property
    def last(self) -> float:
        return self.times[-1]

    def note(self, now: float) -> None:
        self.times = [*self.times, now][-FREE:]
        if self.delay:
            self.delay = min(2 * self.delay, LONGEST_SECONDS)
        elif len(self.times) == FREE and now - self.times[0] < WINDOW_SECONDS:
            self.delay = FIRST_SECONDS

    def is_over(self, now: float) -> bool:
        """Whether it has been quiet for so long that the next repair would be the first one again."""
        return now - self.last > max(WINDOW_SECONDS, 2 * self.delay)
