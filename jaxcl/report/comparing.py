"""A comparison from Python, on one's own data and network; and the results of any comparison."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl import data
from jaxcl.core.model import Model
from jaxcl.data.benchmark import Benchmark
from jaxcl.data.benchmark import check as check_benchmark
from jaxcl.methods import REGISTRY, check_distinct, find
from jaxcl.methods.spec import Spec
from jaxcl.report.results import MethodResults, Results, shown_of
from jaxcl.report.runs import seeds_as
from jaxcl.study import comparison, recipes
from jaxcl.study.comparison import MethodRun, Record
from jaxcl.study.events import Event
from jaxcl.study.points import Every, every
from jaxcl.study.recipes import Choice, Options


def compare(
    benchmark: Benchmark | str,
    methods: Sequence[str | Spec | Choice] | None = None,
    options: Options | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    model: Model | Callable[[float], Model] | None = None,
    watch: Callable[[str, Event], None] = lambda name, event: None,
    evaluate_every: str | None = None,
    **layout: Any,
) -> Results:
    """Trains several methods on one sequence of tasks, as the command does, and writes no file.

    Args:
        benchmark: the sequence of tasks, such as `data.from_arrays` makes it; or the name of one
            that `data.load` knows.
        methods: names, Specs, or methods with options of their own from `recipes.choose`; None for
            those that the command takes.
        options: how every method trains; None for what suits the benchmark and each method there.
        seeds: one for each replica; they train side by side.
        model: the network; or a function of the share of the hidden units, 1 for all of them, which
            methods with narrower or wider networks call with others. None for the one of `options`.
        watch: called with a method's name and each event of its training.
        evaluate_every: evaluate all tasks so far also while one is trained, each so many epochs,
            such as "1epochs", or steps, such as "100steps".
        **layout: what else `study.build` takes: devices, chunk, devices_per_replica, reproducible.

    Returns:
        The results: `results.table()`, `results.sentence()`, `results.save(folder)`.

    Raises:
        ValueError: before any training, for what cannot be trained; the sentence says why.

    >>> x, y = np.random.default_rng(0).random((60, 4)), np.arange(60) % 4
    >>> tasks = data.split(data.from_arrays("mine", [(x, y)]), 2)
    >>> quick = Options(hidden=(8,), epochs=1)
    >>> compare(tasks, [REGISTRY[0]], quick, seeds=[0, 1]).methods[REGISTRY[0].name].accuracy.shape
    (2, 2, 2)
    """
    _check_given(benchmark, seeds, layout)
    known = check_benchmark(data.load(benchmark) if isinstance(benchmark, str) else benchmark)
    chosen = [_choice(one, known.name, options) for one in _methods(methods)]
    check_distinct([choice.spec for choice in chosen])
    if model is not None:
        _check_model(model)
        chosen = [choice._replace(model=model) for choice in chosen]
    points = None if evaluate_every is None else _points(evaluate_every)
    runs = [
        comparison.begin(choice, known, list(seeds), evaluate_every=points, **layout)
        for choice in chosen
    ]
    found = {}
    for run in runs:
        record, name = run.record, run.choice.spec.name
        for event, known_now in comparison.advance(run):
            record = known_now
            watch(name, event)
        found[name] = method_results(run, record)
    shared = options or recipes.defaults(known.name)
    own = {choice.spec.name: dataclasses.asdict(choice.own) for choice in chosen}
    settings = {"tasks": len(known.tasks), "methods": [*found], "options": own}
    settings |= {"benchmark": known.name, "seeds": seeds_as(seeds), **dataclasses.asdict(shared)}
    settings |= {"evaluate_every": str(points)} if points else {}
    scenario = chosen[0].shared.scenario
    numbers = [int(seed) for seed in seeds]
    guessing = chance(known, scenario)
    return Results(known.name, len(known.tasks), numbers, settings, found, guessing)


def _check_given(benchmark: Any, seeds: Any, layout: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments of another kind than `compare` takes."""
    if not isinstance(benchmark, (str, Benchmark)):
        raise ValueError(
            f"benchmark must be a name or a data.Benchmark, as data.from_arrays makes it, got "
            f"{type(benchmark).__name__}."
        )
    if isinstance(seeds, str) or not np.iterable(seeds):
        raise ValueError(f"seeds must be a list of whole numbers, such as range(5), got {seeds!r}.")
    for name in (field.name for field in dataclasses.fields(Options)):
        if name in layout:
            raise ValueError(f"{name} is an option of training: give it in options=Options(...).")


def _check_model(model: Any) -> None:
    """Raises ValueError for what is neither a Model nor a function that gives one."""
    of_flax = any(kind.__module__.startswith("flax.") for kind in type(model).__mro__)
    if callable(model) and not of_flax:
        model = model(1.0)
    if not isinstance(model, Model):
        raise ValueError(
            f"model must be a Model, as functions of jaxcl.models make it, or a function of the "
            f"share of the hidden units that gives one, got {type(model).__name__}."
        )


def _points(evaluate_every: str) -> Every:
    try:
        return every(str(evaluate_every))
    except ValueError as error:
        raise ValueError(f"evaluate_every {error}") from None


def _methods(methods: Sequence[str | Spec | Choice] | None) -> Sequence[str | Spec | Choice]:
    if methods is None:
        return [spec for spec in REGISTRY if spec.by_default]
    if isinstance(methods, str) or not methods:
        raise ValueError(f"methods must be a list of at least one method, got {methods!r}.")
    return methods


def _choice(method: str | Spec | Choice, benchmark: str, options: Options | None) -> Choice:
    """A method with its options: those that are given, or what suits it on the benchmark."""
    if isinstance(method, Choice):
        recipes.check(method)
        return method
    spec = find(method)
    if options is not None:
        return recipes.choose(spec, options)
    return recipes.choose(spec, recipes.defaults(benchmark), **spec.presets.get(benchmark, {}))


def method_results(run: MethodRun, record: Record) -> MethodResults:
    """What a method found, once it is at its end."""
    return MethodResults(
        record.accuracy,
        record.measures,
        run.parameters,
        run.extra_bytes,
        round(float(record.seconds), 2),
        int(record.compilations),
        [(int(at[0]), int(at[1])) if at[0] else None for at in record.diverged],
        shown_of(run.choice.spec),
        record.curves,
        record.during.get("accuracy"),
    )


def chance(benchmark: Benchmark, scenario: str) -> float:
    """The mean accuracy of guessing: among a task's classes, or in "class" among all of them.

    Nothing of the variance of targets is explained by a guess.
    """
    if benchmark.regression:
        return 0.0
    each = [task.classes for task in benchmark.tasks]
    return 1 / sum(each) if scenario == "class" else float(np.mean([1 / n for n in each]))
