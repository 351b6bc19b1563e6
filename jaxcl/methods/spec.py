"""What a method says about itself: how it is built, its options, and how it is shown."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxcl.core.checks import check_choice, check_number
from jaxcl.core.heads import multihead
from jaxcl.core.method import Method
from jaxcl.core.model import Model
from jaxcl.core.trees import PyTree


class Problem(NamedTuple):
    """What a method is built for.

    Attributes:
        tasks: number of tasks.
        network: `(width) -> Model`, the network, its hidden layers scaled by `width`; 1 by default.
        own: regular expression of the leaves that are each task's own: the heads, and the norms
            where they are kept per task. None where one head serves all tasks.
        norm: what isolation makes of norm layers: "frozen" or "per_task".
        scenario: "task", "domain" or "class".
    """

    tasks: int
    network: Callable[..., Model]
    own: str | None
    norm: Literal["frozen", "per_task"] = "frozen"
    scenario: Literal["task", "domain", "class"] = "task"

    def with_heads(self, method: Method) -> Method:
        """The method with a head for each task, where each task has its own."""
        return method if self.own is None else multihead(method, self.tasks, self.own)


class Built(NamedTuple):
    """A method that is ready for `train.Setup`.

    Attributes:
        method: the method, heads included.
        model: the network that runs on its views.
        norm: what becomes of running statistics, as in `train.Setup`.
        mixed: train on the data of all tasks so far.
    """

    method: Method
    model: Model
    norm: Literal["shared", "frozen", "per_task"] = "shared"
    mixed: bool = False


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


class Limit(NamedTuple):
    """Where a method has nothing left for a further task.

    Attributes:
        reached: `(measures, learner) -> bool [seeds]`: of the method's numbers after a task, by
            name, [seeds] each, and the shapes of one learner.
        words: what is then so for the next task, as in "no weight is free for it".
        advice: what to change, as in "a larger network leaves more".
    """

    reached: Callable[[Mapping[str, Any], PyTree], Any]
    words: str
    advice: str


def all_used(measures: Mapping[str, Any], learner: PyTree) -> Any:
    """`Limit.reached` where the tasks share out one network: its whole capacity is used."""
    return measures["capacity"] >= 1


class Spec(NamedTuple):
    """All that command, recipes, reports, tests and docs need to know of a method.

    Attributes:
        name: what it is called in commands and files: lower case, digits and underscores.
        label: what it is called in tables and plots.
        build: `(problem, options) -> Built`; numbers in `options` may be traced.
        options: the dataclass of its own options, whose fields are made by `option`.
        color: of its lines, "#rrggbb"; None takes a spare one.
        words: what it is called inside a sentence; the label by default.
        role: "method"; or a reference: "lower" protects nothing, "upper" trains on all tasks at
            once, and so has nothing to forget.
        scenarios: those that it can be trained for.
        task_limits: `(tasks) -> numbers` of tasks that its programs have room for, one after the
            other, where its arrays are sized by the number of tasks.
        parameters: `(problem, options, learner) -> int`, the number of the network's parameters
            once all tasks are learned, if that is not the size of `theta`; `learner` may be shapes.
        divides: each task leaves less of one network to the next.
        presets: for a benchmark's name, the options, its own and shared ones, that validation
            data chose there.
        by_default: the command compares it where no methods are named.
        about: `(learner) -> str`, a line to show before training; `learner` may be shapes.
        limit: where it has nothing left for a further task, if that can be.
        smaller: what makes its learners smaller, beside a smaller network.
        extended: `(options, more) -> options`, with which a run of it goes on for so many more
            tasks, if they are others.
        example: values for a sweep, as words of the command.
        reference: what it is published in.
    """

    name: str
    label: str
    build: Callable[[Problem, Any], Built]
    options: type = NoOptions
    color: str | None = None
    words: str = ""
    role: Literal["method", "lower", "upper"] = "method"
    scenarios: tuple[str, ...] = ("task",)
    task_limits: Callable[[int], Sequence[int]] = lambda tasks: (tasks,)
    parameters: Callable[[Problem, Any, PyTree], int] | None = None
    divides: bool = False
    presets: Mapping[str, Mapping[str, Any]] = {}
    by_default: bool = False
    about: Callable[[PyTree], str] | None = None
    limit: Limit | None = None
    smaller: str = ""
    extended: Callable[[Any, int], Any] | None = None
    example: str = ""
    reference: str = ""


def option(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    sweep: bool = False,
    tune: Sequence[float] = (),
) -> Any:
    """A field of an options dataclass: its default, its range, whether it can be swept, and the
    values among which a search chooses where nothing else is said.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Mine:
    ...     strength: float = option(1.0, least=0, sweep=True)
    >>> Mine().strength
    1.0
    """
    limits = {"above": above, "least": least, "most": most}
    limits = {name: value for name, value in limits.items() if value is not None}
    metadata = {"limits": limits, "sweep": sweep, "tune": tuple(map(float, tune))}
    return dataclasses.field(default=default, metadata=metadata)


def swept_names(kind: type) -> list[str]:
    """The fields of an options dataclass that can be swept."""
    return [f.name for f in dataclasses.fields(kind) if f.metadata.get("sweep")]


def grid_of(kind: type) -> dict[str, tuple[float, ...]]:
    """The fields of an options dataclass that a search tries, with their values."""
    fields = dataclasses.fields(kind)
    return {f.name: f.metadata["tune"] for f in fields if f.metadata.get("tune")}


def check_options(
    kind: type, values: Mapping[str, Any], name: Callable[[str], str] = lambda field: field
) -> None:
    """Checks values against the ranges and choices of an options dataclass.

    Args:
        kind: the dataclass.
        values: by field; traced numbers pass, and a tuple's entries are checked one by one.
        name: what a field is called in an error.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    hints, fields = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    for field, value in values.items():
        kinds = (hints[field], *typing.get_args(hints[field]))
        absent = value is None and type(None) in kinds
        for choice in kinds:
            if typing.get_origin(choice) is Literal and not absent:
                check_choice(name(field), value, typing.get_args(choice))
        limits = fields[field].metadata.get("limits", {})
        for one in value if isinstance(value, tuple) else (value,):
            if not isinstance(one, (str, bool, type(None))) and (limits or _is_number(one)):
                check_number(name(field), one, **limits)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def check_spec(spec: Any, source: str = "") -> Spec:
    """Checks a Spec of a user's own.

    Raises:
        ValueError: for what is no Spec, a name that is empty or no word, options that are no
            dataclass of defaults, or functions that do not take the right arguments.
    """
    import inspect

    told = f"{source}: " if source else ""
    if not isinstance(spec, Spec):
        raise ValueError(f"{told}expected a jaxcl.methods.Spec, got {type(spec).__name__}.")
    if not isinstance(spec.name, str) or not spec.name.isidentifier():
        raise ValueError(
            f"{told}a Spec needs a name of letters, digits and underscores, got {spec.name!r}."
        )
    own = f"{told}the Spec '{spec.name}'"
    if not dataclasses.is_dataclass(spec.options):
        raise ValueError(f"{own}: options must be a dataclass, got {spec.options!r}.")
    for field in dataclasses.fields(spec.options):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{own}: its option '{field.name}' needs a default.")
    counts = {"build": 2, "parameters": 3, "about": 1, "task_limits": 1, "extended": 2}
    for function, count in counts.items():
        given = getattr(spec, function)
        if given is None:
            continue
        try:
            inspect.signature(given).bind(*range(count))
        except (TypeError, ValueError):
            raise ValueError(
                f"{own}: {function} must be a function of {count} arguments, got {given!r}."
            ) from None
    return spec
