"""When a run saves and when it stops: between parts of an epoch that take a few seconds each."""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcl.study.events import EpochEnd, Station, StepsEnd, TaskEnd

SLICE = 2.0  # seconds that the steps between two events take, at most
UNITS = {"s": 1, "m": 60, "h": 3600}


class Interval(NamedTuple):
    """How often to save, beside after every task: after so many seconds, or so many epochs."""

    seconds: float | None = None
    epochs: int | None = None


USUAL = Interval(seconds=300.0)


def interval(text: str) -> Interval:
    """An interval in words.

    Raises:
        ValueError: for other words, or none at all.

    >>> interval("5m"), interval("10epochs")
    (Interval(seconds=300.0, epochs=None), Interval(seconds=None, epochs=10))
    """
    time_, epochs = (re.fullmatch(form, text) for form in (r"(\d+\.?\d*)([smh])", r"(\d+)epochs"))
    if epochs and int(epochs[1]):
        return Interval(epochs=int(epochs[1]))
    if time_ and float(time_[1]):
        return Interval(seconds=float(time_[1]) * UNITS[time_[2]])
    raise ValueError(
        f"must be a time, such as 30s, 5m or 1h, or a number of epochs, such as 10epochs, "
        f"got {text!r}."
    )


class Vote(NamedTuple):
    """What all processes do after an event."""

    save: bool
    stop: bool


class Pace:
    """Measures a run's steps, and decides how many there are at once and when to save and stop."""

    def __init__(self, every: Interval, stop: Callable[[], bool], step: int = 0):
        self._every, self._stop = every, stop
        self._asked = self._saved = time.perf_counter()
        self._step = step  # of the running epoch, before the part that runs
        self._epochs = 0  # since a checkpoint
        self._at_once = 1

    def steps(self) -> int:
        """Steps up to the next event: few at first, then what takes as long as `SLICE`."""
        self._asked = time.perf_counter()
        return self._at_once

    def after(self, event: Station) -> Vote:
        """Waits for an event's learners, and decides what to do."""
        jax.block_until_ready(event.learners.position.finite)
        now, done = time.perf_counter(), 0
        if not isinstance(event, TaskEnd):
            end = event.step if isinstance(event, StepsEnd) else event.steps
            done, self._step = end - self._step, event.cursor.step
        self._epochs += isinstance(event, EpochEnd)
        late = self._epochs >= (self._every.epochs or np.inf)
        late |= now - self._saved >= (self._every.seconds or np.inf)
        late |= isinstance(event, TaskEnd)
        wanted = SLICE * done / max(now - self._asked, 1e-6)
        save, stop, wanted = agreed(late, self._stop(), wanted)
        if done:
            self._at_once = max(1, int(min(wanted, 2**30)))
        if save or stop:
            self._saved, self._epochs = now, 0
        return Vote(bool(save or stop), bool(stop))


def agreed(save: bool, stop: bool, wanted: float) -> np.ndarray:
    """The same in all processes: the first one's numbers, and stop if any has to."""
    mine = np.array([save, stop, wanted], np.float32)
    if jax.process_count() == 1:
        return mine
    rows = multihost_utils.process_allgather(mine)
    return np.array([rows[0, 0], rows[:, 1].max(), rows[0, 2]])
