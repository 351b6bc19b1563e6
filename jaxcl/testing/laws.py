"""Isolation, the independence of replicas, and one compilation, as assertions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import study, train
from jaxcl.core import masks
from jaxcl.core.method import Method
from jaxcl.core.model import Model
from jaxcl.core.trees import PyTree, leaves_by_path
from jaxcl.data.benchmark import Benchmark
from jaxcl.study.programs import Recipe


def assert_isolated(
    method: Method,
    model: Model,
    optimizer: optax.GradientTransformation,
    x: Any,
    *,
    tasks: int | None = None,
    norm: Any = None,
    key: jax.Array | None = None,
) -> None:
    """Law 1: no later task changes what a finished one computes, whatever the optimizer.

    Trains on random labels, with the optimizer's state carried over from task to task, and compares
    the logits of every finished task to the bit after each step of a later task's life; and once
    more with NaN in everything that the later task may change.

    Args:
        method: the method, with heads of its own for each task.
        model: the network that runs on its views.
        optimizer: any optax optimizer.
        x: examples [N, ...], N at least 4, as the network sees them.
        tasks: number of tasks; by default that of the method, else 3.
        norm: what becomes of running statistics, as in `train.Setup`.
        key: typed key; `jax.random.key(0)` by default.

    Raises:
        AssertionError: naming the finished task that changed, and when.
    """
    tasks = tasks or method.tasks or 3
    key = jax.random.key(0) if key is None else key
    sample = jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.asarray(x).dtype)
    setup = train.Setup(method, model, optimizer, batch=4, norm=norm, sample=sample)
    number = len(x)
    labels = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, (tasks, number)).astype(int)

    def data(task):
        return train.Data(jnp.roll(jnp.asarray(x), task, axis=0), labels[task], jnp.int32(number))

    @jax.jit
    def begin(learner, task):
        return train.begin_task(setup, learner, task)._replace(opt_state=learner.opt_state)

    @jax.jit
    def epoch(learner, task, index):
        return train.epoch(setup, learner, data(task), task, index)[0]

    @jax.jit
    def end(learner, task):
        return train.end_task(setup, learner, task, data(task))

    @jax.jit
    def logits(learner, task):
        params, statistics = train.network(setup, learner, task)
        return model.apply(params, statistics, jnp.asarray(x))[0]

    learner, kept = train.start(setup, key, tasks), []

    def check(learner, when, task):
        _check_kept(kept, [logits(learner, finished) for finished in range(task)], when, task)

    for task in range(tasks):
        learner = begin(learner, task)
        check(learner, "at the start of", task)
        moved = epoch(learner, task, 0)
        assert task or not jax.tree.all(
            jax.tree.map(lambda a, b: jnp.array_equal(a, b), moved.theta, learner.theta)
        ), "nothing was learned in task 1."
        check(moved, "in the training of", task)
        check(_diverged(method, moved, task), "with NaN in everything that may move in", task)
        learner = end(moved, task)
        check(learner, "at the end of", task)
        if any(phase.closed for phase in method.phases):
            learner = epoch(learner, task, 1)
            check(learner, "in the retraining of", task)
        kept.append(np.asarray(logits(learner, task)))


def _check_kept(kept: Sequence[Any], now: Sequence[Any], when: str, task: int) -> None:
    """Raises AssertionError unless the finished tasks' logits are what they were, to the bit."""
    for finished, (before, after) in enumerate(zip(kept, map(np.asarray, now))):
        assert np.array_equal(after, before), (
            f"{when} task {task + 1}, the logits of task {finished + 1} differ by "
            f"{np.abs(after - before).max()}."
        )


def _diverged(method: Method, learner: train.Learner, task: int) -> train.Learner:
    """The learner with NaN in whatever the task may change."""
    mask = masks.resolve(method.trainable(learner.theta, learner.state, task), learner.theta)
    theta = jax.tree.map(lambda m, leaf: jnp.where(m != 0, jnp.nan, leaf), mask, learner.theta)
    return learner._replace(theta=theta)


def assert_rows_are_single_runs(
    recipe: Recipe, benchmark: Benchmark, seeds: Sequence[int] = (0, 3), **options: Any
) -> None:
    """Law 2: every replica of a study is the run of its seed and setting alone.

    Those runs share their programs, so that law 3 is seen as well: none is compiled twice.

    Args:
        recipe: as for `study.build`.
        benchmark: the sequence of tasks.
        seeds: one for each replica.
        **options: what else `study.build` takes; `epochs` is 1 by default.

    Raises:
        AssertionError: naming the seed and the leaf that differs by more than rounding, or the
            programs that were compiled more than once.
    """
    options = {"epochs": 1, "devices": jax.devices()[:1], **options}
    settings = options.pop("settings", {})
    several = study.build(recipe, benchmark, seeds, settings=settings, **options)
    together = _final(several)
    alone = study.build(
        recipe, benchmark, seeds[:1], settings={k: v[:1] for k, v in settings.items()}, **options
    )
    for i, seed in enumerate(seeds):
        row = {name: np.asarray(values)[i : i + 1] for name, values in settings.items()}
        single = _final(alone._replace(seeds=np.asarray([seed], np.uint32), settings=row))
        for path, expected in single.items():
            found = together[path][i]
            whole = not np.issubdtype(expected.dtype, np.floating)
            alike = (
                np.array_equal(found, expected[0])
                if whole
                else np.allclose(found, expected[0], rtol=1e-3, atol=1e-4, equal_nan=True)
            )
            assert alike, f"seed {seed}: '{path}' is not that of the run of this seed alone."
    _check_traces(several)
    _check_traces(alone)


def _check_traces(built: study.Study) -> None:
    often = {name: count for name, count in built.traces.items() if count > 1}
    assert not often, f"compiled more than once: {often}."


def _final(built: study.Study) -> dict[str, np.ndarray]:
    """What a study ends with, by path: its learners without keys, and all accuracies."""
    ends = [event for event in study.run(built) if isinstance(event, study.TaskEnd)]
    learners = jax.device_get(ends[-1].learners._replace(key=None, stopping=None))
    accuracy = np.stack([event.accuracy for event in ends], 1)
    tree: PyTree = {"learners": learners, "accuracy": accuracy}
    return {path: np.asarray(leaf) for path, leaf in leaves_by_path(tree).items()}


def assert_compiles_once(
    recipe: Recipe, benchmark: Benchmark, seeds: Sequence[int] = (0, 1), **options: Any
) -> None:
    """Law 3: no program is compiled twice, whatever the number of tasks, epochs and seeds.

    Args:
        recipe: as for `study.build`.
        benchmark: the sequence of tasks.
        seeds: one for each replica.
        **options: what else `study.build` takes; `epochs` is 2 by default.

    Raises:
        AssertionError: naming the programs that were compiled more than once.
    """
    built = study.build(
        recipe, benchmark, seeds, **{"epochs": 2, "devices": jax.devices()[:1], **options}
    )
    for _ in study.run(built):
        pass
    other = built._replace(seeds=built.seeds + 7)
    for _ in study.run(other):
        pass
    _check_traces(built)
