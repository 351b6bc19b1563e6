"""A method that is safe to call outside of jit: it checks its task, and shares no array."""

import numpy as np

from jaxcl.core.checks import check_task
from jaxcl.core.isolate import apart
from jaxcl.core.method import Method


def guarded(name: str, method: Method) -> Method:
    """The method, safe to call outside of jit.

    It refuses a task that it is not made for, where the task's number is known; and what it hands
    out shares no array with what it keeps, so that a training loop may donate all that it holds.
    """

    def known(task):
        if method.tasks is not None:
            check_task(f"{name}: task", task, method.tasks)
        return task

    def view(theta, state, task, progress=None):
        return apart(method.view(theta, state, known(task), progress), theta, state)

    def mask(function):
        if function is None:
            return None
        return lambda theta, state, task: apart(function(theta, state, known(task)), theta, state)

    def penalty(theta, state, task, progress=None):
        return method.penalty(theta, state, known(task), progress)

    def compact(theta, state, task, statistics):
        assert method.compact is not None
        return apart(method.compact(theta, state, known(task), statistics), theta, state)

    def forget_task(theta, state, memory, task, kept, fresh):
        assert method.forget_task is not None
        kept = np.asarray(kept)
        if kept.ndim != 1 or kept.dtype != bool or kept[known(task)]:
            raise ValueError(
                f"{name}: kept must be bool [tasks], the finished tasks that stay without task "
                f"{task}, got {kept}."
            )
        return apart(method.forget_task(theta, state, memory, task, kept, fresh), fresh)

    return method._replace(
        init=lambda key, params: apart(method.init(key, params), params),
        begin_task=lambda key, theta, state, task: apart(
            method.begin_task(key, theta, state, known(task))
        ),
        view=view,
        trainable=mask(method.trainable),
        trainable_seen=mask(method.trainable_seen),
        penalty=penalty,
        used=mask(method.used),
        compact=method.compact and compact,
        forget_task=method.forget_task and forget_task,
        end_task=lambda theta, state, task: apart(method.end_task(theta, state, known(task))),
    )
