"""The methods of a comparison, each as a run of its own: it begins, goes on, saves and stops."""

import time
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import numpy as np

from jaxcl.study import events
from jaxcl.study.archive import Saver, extend, make_room, name_of, restore
from jaxcl.study.events import Cursor, Event
from jaxcl.study.pace import USUAL, Interval, Pace
from jaxcl.study.points import Evaluated
from jaxcl.study.record import MethodRun, Record, begin, followed, shapes

__all__ = ["MethodRun", "Record", "Stopped", "advance", "begin", "extend", "make_room", "restore"]
__all__ += ["shapes"]


class Stopped(Exception):  # noqa: N818 - not an error
    """A run has been asked to stop, and all that it has done is saved."""


def advance(
    run: MethodRun,
    *,
    evaluate_on: Literal["val", "test"] = "test",
    save_every: Interval = USUAL,
    stop: Callable[[], bool] = lambda: False,
    debug_nans: bool = False,
) -> Iterator[tuple[Event, Record]]:
    """Trains one method to its end, with a checkpoint after each task and on the way.

    Args:
        run: a method, from `begin` or `restore`.
        evaluate_on: the examples on which every task is evaluated.
        save_every: how often to save within a task.
        stop: asked after every event, of which there is one every few seconds, whether to save and
            stop; of several processes, one is enough. Without a folder nobody asks.
        debug_nans: see `events.run`.

    Yields:
        Each event with the record so far, in which learners are valid until the next one. Nothing,
        if the method is at its end.

    Raises:
        FloatingPointError: with `debug_nans`, at the first NaN.
        OSError: if a checkpoint cannot be written; nothing is left of it then.
        Stopped: once all is saved.
    """
    if run.done == run.tasks:
        return
    record = jax.tree.map(np.array, run.record._replace(learners=None))
    cursor = Cursor(*map(int, record.cursor))
    start, seconds, compilations = time.perf_counter(), record.seconds, record.compilations
    saver = Saver(run.folder, run.about) if run.folder else None
    pace, setup = Pace(save_every, stop, cursor.step), run.studies[-1].setup
    course = events.run(
        run.studies, run.record.learners, cursor,
        evaluate_on=evaluate_on, steps_at_once=pace.steps if saver else None,
        evaluate_every=run.evaluate_every, debug_nans=debug_nans,
    )  # fmt: skip
    try:
        for event in course:
            record = followed(record, event, setup)._replace(
                seconds=np.asarray(seconds + time.perf_counter() - start, np.float32),
                compilations=np.asarray(
                    max(compilations, events.compilations(run.studies)), np.int32
                ),
            )
            if saver and not isinstance(event, Evaluated):
                vote = pace.after(event)
                saver.wait(0)
                if vote.save:
                    saver.save(name_of(event), record)
                if vote.stop:
                    saver.wait()
                    raise Stopped
            yield event, record
    except BaseException:
        if saver and jax.process_count() == 1:  # others may be gone
            saver.wait()
        raise
    if saver:
        saver.wait()
