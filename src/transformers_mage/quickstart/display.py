"""One progress display over all stages, with the time that is left."""

import datetime
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import auto, std

from ..progress import SECONDS_BETWEEN_LINES, told_to


class StageDisplay:
    """
    Shows which stage is how far: one line in a terminal, and a line now and then in a file.

    Args:
        seconds (`Mapping[str, float]`): that each stage is to take, in their order.
        is_shown (`bool`): whether this process shows anything.
    """

    def __init__(self, seconds: Mapping[str, float], is_shown: bool = True):
        self.seconds = dict(seconds)
        self.names = list(seconds)
        self.is_shown = is_shown
        self.stage: str | None = None
        self.started = self.said = time.perf_counter()
        is_terminal = is_shown and sys.stderr.isatty()
        self.line = auto.tqdm(total=0, bar_format="{desc}", leave=False) if is_terminal else None

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """While a stage is under way; its progress bars become part of the display."""
        self.stage = stage
        self.started = time.perf_counter()
        self._say(f"{self._place()}: about {_clock(self.seconds.get(stage, 0))}, then {_clock(self._after())} more")
        with told_to(self):
            yield
        taken = time.perf_counter() - self.started
        self._say(f"{self._place()}: done in {_clock(taken)}")

    def __call__(self, bar: std.tqdm):
        """Takes what a progress bar tells."""
        if not self.is_shown or self.stage is None:
            return
        now = time.perf_counter()
        share = f" {bar.n / bar.total:.0%}" if bar.total else f" {bar.n}"
        details = f", {bar.postfix}" if bar.postfix else ""
        text = (
            f"{self._place()}: {(bar.desc or '').rstrip(': ')}{share}{details}; about {_clock(self._left(bar))} left"
        )
        if self.line is not None:
            self.line.set_description_str(text)
        elif now - self.said > SECONDS_BETWEEN_LINES:
            self._say(text)

    def close(self):
        if self.line is not None:
            self.line.close()

    def _place(self) -> str:
        stage = str(self.stage)
        number = self.names.index(stage) + 1 if stage in self.names else 0
        return f"[{number}/{len(self.names)}] {stage}"

    def _left(self, bar: std.tqdm) -> float:
        """Seconds to the end of all stages: as planned or, where this one is later, as fast as its bar moves."""
        rate = bar.format_dict["rate"]
        of_bar = (bar.total - bar.n) / rate if bar.total and rate else 0.0
        planned = self.seconds.get(str(self.stage), 0) - (time.perf_counter() - self.started)
        return max(planned, of_bar) + self._after()

    def _after(self) -> float:
        """Seconds of the stages after this one."""
        if self.stage not in self.names:
            return 0.0
        return sum(self.seconds[name] for name in self.names[self.names.index(self.stage) + 1 :])

    def _say(self, text: str):
        if not self.is_shown:
            return
        self.said = time.perf_counter()
        auto.tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    """As 1:02:03."""
    return str(datetime.timedelta(seconds=round(seconds)))
