"""What a study compiles: every step of a learner's life, for all replicas at once."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl import train
from jaxcl.core import masks
from jaxcl.core.checks import check_count, check_number, nearest
from jaxcl.core.method import Phase
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.data.benchmark import check as check_benchmark
from jaxcl.study import replicas, sources
from jaxcl.study.replicas import Device
from jaxcl.train.rows import put_back
from jaxcl.train.types import Setup

Recipe = Callable[[Mapping[str, Any]], Setup]


class Study(NamedTuple):
    """What a study runs, and the programs that it is compiled to.

    Attributes:
        recipe: makes the setup from one replica's settings, which may be traced numbers.
        benchmark: the sequence of tasks.
        seeds: array [replicas].
        settings: numeric settings, arrays [replicas].
        phases: the phases of each task's training.
        epochs: epochs of each of them, [tasks][phases].
        steps: steps of each phase, where tasks are trained by steps; else None.
        layout: where the replicas run.
        programs: the compiled functions, by name.
        traces: how often each of them was traced.
    """

    recipe: Recipe
    benchmark: Benchmark
    seeds: np.ndarray
    settings: dict[str, np.ndarray]
    phases: tuple[Phase, ...]
    epochs: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...] | None
    layout: replicas.Layout
    programs: dict[str, Callable]
    traces: Counter

    @property
    def setup(self) -> Setup:
        """The setup of the first replica, made anew."""
        return self.recipe({name: value[0] for name, value in self.settings.items()})


def build(
    recipe: Recipe | Setup,
    benchmark: Benchmark,
    seeds: Sequence[int],
    *,
    epochs: int | Sequence[int],
    retrain_epochs: int = 0,
    steps: int | None = None,
    settings: Mapping[str, ArrayLike] | None = None,
    devices: Sequence[Device] | None = None,
    chunk: int | None = None,
    devices_per_replica: int = 1,
    reproducible: bool = False,
) -> Study:
    """Prepares a study; nothing runs yet.

    Args:
        recipe: a `train.Setup`; or a function from one replica's `settings` to it, which is called
            while programs are traced.
        benchmark: the sequence of tasks.
        seeds: one for each replica, whole numbers from 0 to 2^32 - 1.
        epochs: epochs on each task, at least 1; or one number for each task, where 0 leaves it as
            it begins: a pretrained network that is pruned at once. Where the method has several
            phases before `end_task`, they divide these epochs by their shares.
        retrain_epochs: further epochs after each task's `end_task`.
        steps: train each task for so many steps instead of epochs, the phases by their shares.
        settings: numeric settings, one value for each replica.
        devices: see `replicas.layout`.
        chunk: likewise.
        devices_per_replica: likewise; it must divide the batch.
        reproducible: likewise.

    Returns:
        A study for `run`.

    Raises:
        ValueError: for settings of unequal length, settings that the recipe does not read, seeds
            that are no whole numbers, `devices_per_replica` that does not divide the batch,
            numbers out of range, tasks that differ in shape or type, whatever `train.start`
            refuses, or fewer logits than classes.

    >>> from jaxcl import data
    >>> from jaxcl.methods import REGISTRY
    >>> from jaxcl.study import recipes
    >>> benchmark = data.split_digits()
    >>> study = build(recipes.recipe(REGISTRY[0], benchmark), benchmark, seeds=[0, 1], epochs=3)
    >>> len(study.benchmark.tasks), study.seeds.tolist()
    (5, [0, 1])
    """
    given = recipe
    recipe = given if callable(given) else lambda settings: given
    benchmark = check_benchmark(benchmark)
    numbers, values = _check_seeds(seeds), _check_settings(settings or {}, len(seeds))
    check_number("retrain_epochs", retrain_epochs, least=0)
    shapes = _probe(recipe, benchmark, values)
    layout = replicas.layout(
        numbers.size, masks.size_bytes(shapes), devices=devices, chunk=chunk,
        devices_per_replica=devices_per_replica, reproducible=reproducible,
    )  # fmt: skip
    setups = [recipe(row) for row in _rows(values)]
    for setup in setups:
        _check_batch(setup.batch, devices_per_replica)
    phases = setups[0].method.phases
    if retrain_epochs and not any(phase.closed for phase in phases):
        phases = (*phases, Phase("retrain", closed=True))
    if not retrain_epochs:
        phases = tuple(phase for phase in phases if not phase.closed)
    each = _epochs_by_task(epochs, len(benchmark.tasks))
    planned = tuple(divide(phases, count, retrain_epochs) for count in each)
    if steps is not None:
        check_count("steps", steps)
    by_steps = None if steps is None else divide(phases, steps, None)
    axis = replicas.BATCH_AXIS if devices_per_replica > 1 else None
    sample = jax.ShapeDtypeStruct(benchmark.shape, benchmark.tasks[0].train.x.dtype)

    def set_up(settings):
        """One replica's setup, as the study runs it."""
        setup = recipe(settings)
        everywhere = setup.method.phases + phases[len(setup.method.phases) :]
        method = setup.method._replace(phases=everywhere)
        return setup._replace(method=method, axis=axis, sample=setup.sample or sample)

    programs, traces = compile_programs(set_up, len(benchmark.tasks), phases, layout)
    return Study(
        recipe, benchmark, numbers, values, phases, planned, by_steps, layout, programs, traces
    )


def compile_programs(
    set_up: Recipe, tasks: int, phases: tuple[Phase, ...], layout: replicas.Layout
) -> tuple[dict[str, Callable], Counter]:
    """The functions of a learner's life, each compiled when it is first called; and the count."""
    traces = Counter()
    closed = next((i for i, phase in enumerate(phases) if phase.closed), None)

    def program(name, function, in_place=False):
        def with_setup(carried, fixed, *shared):
            settings, *rest = fixed
            return function(set_up(settings), carried, *rest, *shared)

        def count():
            traces[name] += 1

        return replicas.spread(with_setup, layout, count=count, in_place=in_place)

    programs = {
        "start": program("start", partial(_start, tasks)),
        "grow": program("grow", lambda setup, learner: train.grow(setup, learner, tasks)),
        "evaluate": program("evaluate", _evaluate),
        "begin_task": program("begin_task", _begin_task, in_place=True),
        "end_epoch": program("end_epoch", _end_epoch, in_place=True),
        "end_phase": program("end_phase", _end_phase, in_place=True),
        "end": program("end", partial(_end_task, closed), in_place=True),
    }
    kinds = [(phase.trainable, phase.penalty, phase.project, phase.needed) for phase in phases]
    plain = (None, None, None, None)
    usual = kinds.index(plain) if plain in kinds else 0
    for i in range(len(phases)):
        name = f"begin_phase_{i}"
        programs[name] = program(name, partial(_begin_phase, i), in_place=True)
    for number in (None, *sources.sizes(tasks - 1)):
        of = "" if number is None else f"_of_{number}"
        name = f"frozen_features{of}"
        programs[name] = program(name, partial(_frozen_features, number))
        first = program(f"epoch{of}", partial(_epoch, usual, number), in_place=True)
        alike = {kinds[usual]: first}  # one program for all phases that train alike
        programs[f"epoch{of}"] = first
        for i, own in enumerate(kinds):
            name = f"epoch_{i}{of}"
            if own not in alike:
                alike[own] = program(name, partial(_epoch, i, number), in_place=True)
            programs[name] = alike[own]
    return programs, traces


def _start(tasks, setup, seed):
    return train.start(setup, jax.random.key(seed), tasks)


def _begin_task(setup, learner, task):
    return train.begin_task(setup, learner, task), ()


def _begin_phase(phase, setup, learner, task, examples, validation):
    learner = train.begin_phase(setup, learner, task, validation, phase=phase, examples=examples)
    return learner, ()


def _frozen_features(number, setup, learner, data, task):
    return train.frozen_features(setup, sources.cut(setup.method, learner, number), data, task)


def _epoch(phase, number, setup, whole, state, features, data, task, index, first, last, done):
    """The method's state, which no epoch changes, is read where it is and not moved about."""
    learner = sources.cut(setup.method, whole._replace(state=state), number)
    learner, metrics = train.steps(
        setup, learner, data, task, index, first, last, features, phase=phase, done=done
    )
    learner = put_back(whole, learner._replace(state=()), 0)
    return learner, (metrics, learner.position.finite)


def _end_epoch(setup, learner, task, validation):
    learner = train.end_epoch(setup, learner, task, validation)
    judged = learner.stopping.value
    return learner, (learner.stopping.stopped, -judged if setup.select == "accuracy" else judged)


def _end_phase(setup, learner):
    return train.end_phase(setup, learner), ()


def _end_task(closed, setup, learner, task, examples, validation):
    """Ends a task, and begins the phase that follows its end, if there is one."""
    learner = train.end_phase(setup, learner)
    learner = train.end_task(setup, learner, task, examples, validation)
    if closed is not None:
        learner = train.begin_phase(
            setup, learner, task, validation, phase=closed, examples=examples
        )
    return learner, ()


def _evaluate(setup, learner, data, number):
    method, own = setup.method, (learner.theta, learner.state)
    finite = learner.position.finite & all_finite(learner.theta)
    measures = {measure.name: measure.of(*own) for measure in method.measures}
    return train.evaluate_all(setup, learner, data, number), measures, finite


def all_finite(tree: PyTree) -> jax.Array:
    """Whether all entries of all leaves are finite, a bool scalar."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.bool_(True)


def divide(phases: Sequence[Phase], count: int, after: int | None = 0) -> tuple[int, ...]:
    """Epochs, or steps, of each phase: by their shares, at least 1, the first takes the rest.

    Args:
        phases: the phases.
        count: epochs of the phases before `end_task`; of all phases if `after` is None.
        after: epochs of those that follow it.

    >>> divide((Phase("a", 2 / 3), Phase("b", 1 / 3)), 10)
    (7, 3)
    >>> divide((Phase("a", 2 / 3), Phase("b", 1 / 3, closed=True)), 1, None)
    (1, 1)
    """
    groups = {False: count, True: after}
    planned = [0] * len(phases)
    for closed, total in groups.items():
        chosen = [i for i, p in enumerate(phases) if after is None or p.closed == closed]
        if not chosen or total is None:
            continue
        whole = sum(phases[i].share for i in chosen)
        for i in chosen[1:]:
            planned[i] = max(1, int(total * phases[i].share / whole + 1e-9)) if total else 0
        rest = total - sum(planned[i] for i in chosen[1:])
        planned[chosen[0]] = max(1, rest) if total else 0
    return tuple(planned)


def _epochs_by_task(epochs: int | Sequence[int], tasks: int) -> tuple[int, ...]:
    alike = isinstance(epochs, (int, np.integer))
    each = (int(epochs),) * tasks if alike else tuple(epochs)
    if len(each) != tasks or min(each) < (1 if alike else 0):
        raise ValueError(
            f"epochs must be at least 1, or one number from 0 on for each of {tasks} tasks, "
            f"got {epochs}."
        )
    return each


def _check_seeds(seeds: Sequence[int]) -> np.ndarray:
    numbers = np.asarray(seeds)
    whole = np.issubdtype(numbers.dtype, np.integer)
    if numbers.ndim != 1 or not whole or numbers.min() < 0 or numbers.max() > 0xFFFFFFFF:
        raise ValueError(f"seeds must be whole numbers from 0 to 2^32 - 1, got {seeds}.")
    return numbers.astype(np.uint32)


def _check_settings(settings: Mapping[str, ArrayLike], replicas: int) -> dict[str, np.ndarray]:
    values = {name: np.asarray(value, np.float32) for name, value in settings.items()}
    for name, value in values.items():
        if value.shape != (replicas,):
            raise ValueError(
                f"setting '{name}' needs one value for each of {replicas} replicas, "
                f"got shape {value.shape}."
            )
    return values


class _Read(dict):
    """Settings that remember which of them were asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.asked.add(name)
        return super().__contains__(name)


def _rows(values: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The different combinations of settings, as numbers, which can be checked."""
    return [dict(zip(values, row)) for row in dict.fromkeys(zip(*values.values()))] or [{}]


def _probe(recipe: Recipe, benchmark: Benchmark, values: Mapping[str, np.ndarray]) -> PyTree:
    """The network's parameters; and a look at whether a learner can start, and see the examples."""
    read = _Read({name: value[0] for name, value in values.items()})
    recipe(read)
    for name in values:
        if name not in read.asked:
            raise ValueError(
                f"the recipe does not read the setting '{name}', which would have no effect"
                f"{nearest(name, sorted(read.asked - values.keys()))}."
            )
    return jax.eval_shape(
        partial(_first_look, recipe, benchmark), {name: value[0] for name, value in values.items()}
    )


def _first_look(recipe: Recipe, benchmark: Benchmark, settings: Mapping[str, Any]) -> PyTree:
    setup, tasks = recipe(settings), benchmark.tasks
    x = tasks[0].train.x
    setup = setup._replace(sample=setup.sample or jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    learner = train.start(setup, jax.random.key(0), len(tasks))
    params, row = train.network(setup, learner, 0)
    logits, _ = setup.model.apply(params, row, setup.prepare(jnp.asarray(x[:1])))
    needed = sum(task.classes for task in tasks) if setup.scenario == "class" else 0
    for number, task in enumerate(tasks):
        if logits.ndim != 2 or logits.shape[1] < max(task.classes, needed):
            raise ValueError(
                f"{benchmark.name}, task {number}: {max(task.classes, needed)} classes, but the "
                f"network's logits have shape {logits.shape} for one example."
            )
    return setup.model.init(jax.random.key(0))[0]


def _check_batch(batch: int, devices: int) -> None:
    if batch % devices:
        raise ValueError(
            f"a batch of {batch} cannot be split evenly over {devices} devices; choose a batch "
            f"that {devices} divides."
        )
