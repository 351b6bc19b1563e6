"""What a continual-learning method is: pure functions over pytrees, of which most are optional."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core.trees import PyTree


class Batch(NamedTuple):
    """Rows to train on: those of the running task, and of memories where a method replays.

    Attributes:
        x: array [B, ...] in its stored type.
        y: labels [B], counted from 0 within each row's task.
        task: int [B], each row's task; None where all rows are of the running task.
        weight: float [B]: 0 for rows that fill up a batch; None for all ones.
        replayed: bool [B], True for rows of a memory; None where there is none.
        features: what the network's frozen part gives for each row; None if it has none.
    """

    x: Any
    y: Any
    task: Any = None
    weight: Any = None
    replayed: Any = None
    features: Any = None


class Context(NamedTuple):
    """What the engine lends a method while it trains and at the boundaries of a task.

    A method closes over it; it is never an operand of `jit`, `scan` or `vmap`.

    Attributes:
        task: the running task, an integer scalar.
        key: a typed key, for this step or this boundary alone.
        progress: position within the epoch, in [0, 1]; None at a boundary.
        logits: `(theta, state, batch, train=False, statistics=..., key=...) -> [B, C]`: each row
            through its own task's view and head. Without `train` as in evaluation: no dropout,
            norms use running statistics, those of this moment or the ones that are given. `key`
            is for dropout, in the place of the step's own.
        visible: `(shape, batch) -> bool [B, C]`: the logits that take part in each row's loss.
        labels: `(batch) -> int [B]`: each row's label among those logits.
        loss: `(logits, batch) -> [B]`: the set-up's loss of each row.
        classes: int [tasks], the number of each task's classes; None if all logits are used.
        examples: at a boundary, the task's examples as `train.Data`, or a bounded sample of them.
        validation: likewise, its validation examples; None if there are none.
        statistics: the model's running statistics, for `logits` at another time.
        augment: `(key, x) -> x`: stored examples as a training step sees them.
        metric: `(logits, batch) -> [B]`: the set-up's metric of each row, such as its accuracy.
    """

    task: Any
    key: Any
    progress: Any
    logits: Callable[..., jax.Array]
    visible: Callable[[tuple, Batch], jax.Array]
    labels: Callable[[Batch], jax.Array]
    loss: Callable[[jax.Array, Batch], jax.Array]
    classes: Any = None
    examples: Any = None
    validation: Any = None
    statistics: Any = None
    augment: Callable[[jax.Array, Any], Any] = lambda key, x: x
    metric: Callable[[jax.Array, Batch], jax.Array] | None = None


class Online(NamedTuple):
    """Fast memory, carried through every step: replay buffers, path integrals.

    Attributes:
        init: `(sample, theta) -> memory`; `sample` is a Batch of one row's shapes and types, in
            which `x` is stored, and `features` holds the logits' shape.
        extend: `(context, batch, memory) -> batch`, which the step then trains on: the rows of the
            running task first, then those that are replayed; all as they are stored, for the step
            augments them.
        gradient: `(context, batch, gradient, theta, state, memory) -> gradient`, before the
            optimizer; `batch` is the running task's rows.
        update: `(context, memory, step) -> memory`, after the optimizer's step.
        grow: `(key, memory, fresh) -> memory`, between two tasks, where there shall be room for
            more of them than before: `fresh` is an empty memory that has it. By default the old
            arrays lead the new ones.
    """

    init: Callable[[Batch, PyTree], PyTree]
    extend: Callable[[Context, Batch, PyTree], Batch] | None = None
    gradient: Callable[[Context, Batch, PyTree, PyTree, PyTree, PyTree], PyTree] | None = None
    update: "Callable[[Context, PyTree, Step], PyTree] | None" = None
    grow: Callable[[jax.Array, PyTree, PyTree], PyTree] | None = None


class Step(NamedTuple):
    """What a step did, for `Online.update`.

    Attributes:
        batch: the running task's rows as they are stored, without those that were replayed.
        logits: theirs, from the network before the step, [B, C].
        gradient: of the task's loss alone, without the penalty; of the structure of `theta`.
        before: `theta` before the step.
        after: `theta` after the step.
    """

    batch: Batch
    logits: jax.Array
    gradient: PyTree
    before: PyTree
    after: PyTree


class Phase(NamedTuple):
    """A part of a task's training, with an optimizer and a best state of its own.

    Attributes:
        name: what it is called.
        share: of the task's epochs, in (0, 1].
        step_scale: factor on the step size; may be traced.
        closed: the phase follows `end_task`, as retraining follows pruning.
        begin: `(context, theta, state) -> (theta, state)`, before its first step.
        trainable: takes the place of the method's.
        penalty: likewise.
        project: `(theta, state, task) -> theta`, after every step, in the place of the method's.
        needed: `(theta, state, task) -> bool`; a replica that does not need the phase stands still.
    """

    name: str = "train"
    share: float = 1.0
    step_scale: ArrayLike = 1.0
    closed: bool = False
    begin: Callable[[Context, PyTree, PyTree], tuple[PyTree, PyTree]] | None = None
    trainable: "Trainable | None" = None
    penalty: "Penalty | None" = None
    project: Callable[[PyTree, PyTree, Any], PyTree] | None = None
    needed: Callable[[PyTree, PyTree, Any], Any] | None = None


class Init(Protocol):
    """Makes `theta`, which the optimizer moves, and `state`, of the network's parameters."""

    def __call__(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]: ...


class BeginTask(Protocol):
    """Before a task's first step."""

    def __call__(
        self, key: jax.Array, theta: PyTree, state: PyTree, task: ArrayLike
    ) -> tuple[PyTree, PyTree]: ...


class View(Protocol):
    """What the network computes with for a task; differentiable in `theta`."""

    def __call__(
        self, theta: PyTree, state: PyTree, task: ArrayLike, progress: ArrayLike | None = None
    ) -> PyTree: ...


class Trainable(Protocol):
    """What a task may change: a prefix tree of `theta` for `isolate`."""

    def __call__(self, theta: PyTree, state: PyTree, task: ArrayLike) -> PyTree: ...


class Penalty(Protocol):
    """A scalar that is added to the task's loss."""

    def __call__(
        self, theta: PyTree, state: PyTree, task: ArrayLike, progress: ArrayLike | None = None
    ) -> Any: ...


class EndTask(Protocol):
    """After a task's last step."""

    def __call__(self, theta: PyTree, state: PyTree, task: ArrayLike) -> tuple[PyTree, PyTree]: ...


def _nothing(key, theta, state, task):
    return theta, state


def _closes_nothing(theta, state, task):
    return theta, state


def _theta(theta, state, task, progress=None):
    return theta


def _everything(theta, state, task):
    return True


def _no_penalty(theta, state, task, progress=None):
    return jnp.float32(0)


class ForgetTask(Protocol):
    """Takes a finished task out: what it alone used starts anew, as in `fresh`.

    What later tasks read is theirs from then on. `kept`, bool [tasks], are the finished tasks that
    stay; `fresh` is a theta as `init` gives it. No logit of a task that stays changes.
    """

    def __call__(
        self, theta: PyTree, state: PyTree, memory: PyTree, task: int, kept: Any, fresh: PyTree
    ) -> tuple[PyTree, PyTree, PyTree]: ...


class Measure(NamedTuple):
    """A number about a method.

    Attributes:
        name: what it is called in results; `capacity` is the share of the network that the tasks so
            far use, `overlap` the share that both of two tasks use, `fewest_units` the number of
            units that a task uses of the layer where it uses the fewest.
        of: `(theta, state)` -> a scalar, or an array [tasks] or [tasks, tasks].
    """

    name: str
    of: Callable[[PyTree, PyTree], Any]


class Rows(NamedTuple):
    """The leaves of `theta` with a row for each task along their first axis, for `Method.rows`.

    A task's step reads and moves its own alone: the method's functions take a theta that has no
    other row there, too. What is made of a method by other functions has to promise that anew.

    Attributes:
        has: `path -> bool`.
        functions: the method's `view`, `penalty` and `project`.
    """

    has: Callable[[str], bool]
    functions: tuple[Callable, Callable, Callable]


def with_rows(method: "Method", has: Callable[[str], bool]) -> "Method":
    """The method with `rows`, which its functions of now keep."""
    return method._replace(rows=Rows(has, (method.view, method.penalty, method.project)))


def rows_of(method: "Method") -> Callable[[str], bool]:
    """`Rows.has`, where the method's functions are those that it is of; else of no leaf."""
    rows = method.rows
    if rows is None or rows.functions != (method.view, method.penalty, method.project):
        return lambda path: False
    return rows.has


class Method(NamedTuple):
    """A continual-learning method: pure functions over pytrees, all of which may be traced.

    `theta` is what the optimizer moves, `state` is what it does not, and what no step changes.
    `task` is an integer scalar, counted from 0: one out of range is a ValueError where its number
    is known; of a traced one nothing is promised. `progress` is the position within the running
    epoch, in [0, 1], while `task` is in training; None asks for the network as it is evaluated.
    Only `init` has to be given: without the others, every task may change everything.

    Attributes:
        init: `(key, params) -> (theta, state)`; `params` are the network's initial parameters.
        begin_task: `(key, theta, state, task) -> (theta, state)`, before the task's first step.
        view: `(theta, state, task, progress) -> params`, what the network computes with.
            Differentiable in `theta`.
        trainable: `(theta, state, task) -> mask`, what the task may change: a prefix tree of
            `theta` for `isolate`.
        penalty: `(theta, state, task, progress) -> scalar`, added to the task's loss.
        project: `theta -> theta`, applied after every step.
        end_task: `(theta, state, task) -> (theta, state)`, after the task's last step.
        trainable_seen: as `trainable`, with the heads of all tasks so far in the place of
            its own: for replay, distillation and joint training. None where all tasks share a head.
        auxiliary: `(context, theta, state, memory, batch, logits) -> scalar`, added to the loss: a
            term that needs the batch, as distillation does. Needs the engine, as do the next two.
        consolidate: `(context, theta, state, memory) -> (state, memory)`, before `end_task`: what
            needs the task's examples, as an importance of weights does.
        online: fast memory, if the method has any.
        phases: the parts of a task's training.
        measures: numbers about it, for results.
        isolates: no task changes what a finished one sees.
        tasks: the number of tasks that the method is made for; None for any.
        params_prefix: what the paths of the network's parameters begin with in `theta`.
        divided: `state -> paths` of the leaves of `theta` whose entries are divided among the
            tasks, so that they cannot be each task's own as a whole.
        used: `(theta, state, task) -> mask`, which entries of its view a task's network uses: a
            prefix tree of the view. None if it uses all.
        compact: `(theta, state, task, statistics) -> (view, statistics)` without what the task does
            not use, in smaller arrays; not traced. None if nothing can be left out.
        sources: `path -> axis` of a leaf of `theta`, counted from its last, along which there is an
            entry for each earlier task, in order, or None: a task's training moves its
            predecessors' alone, and `view` and the network take fewer of them, too.
        rows: the leaves of which a task's step reads and moves a row alone; None if there is none.
        forget_task: `(theta, state, memory, task, kept, fresh) -> (theta, state, memory)`, without
            a finished task; not traced. None where what a task left cannot be told apart.
        forget_statistics: `(statistics, task, kept, fresh) -> statistics`, likewise, of a network
            that keeps running statistics of its own for each task. None where it does not.

    >>> method = Method(
    ...     init=lambda key, params: (params, ()),
    ...     trainable=lambda theta, state, task: {"hidden": task == 0, "head": True},
    ... )
    >>> theta, state = method.init(jax.random.key(0), {"hidden": 0.1, "head": 0.2})
    >>> method.trainable(theta, state, 1)
    {'hidden': False, 'head': True}
    """

    init: Init
    begin_task: BeginTask = _nothing
    view: View = _theta
    trainable: Trainable = _everything
    penalty: Penalty = _no_penalty
    project: Callable[[PyTree], PyTree] = lambda theta: theta
    end_task: EndTask = _closes_nothing
    trainable_seen: Trainable | None = None
    auxiliary: Callable[..., jax.Array] | None = None
    consolidate: Callable[..., tuple[PyTree, PyTree]] | None = None
    online: Online | None = None
    phases: tuple[Phase, ...] = (Phase(),)
    measures: tuple[Measure, ...] = ()
    isolates: bool = False
    tasks: int | None = None
    params_prefix: str = ""
    divided: Callable[[PyTree], Any] = lambda state: ()
    used: Trainable | None = None
    compact: Callable[[PyTree, PyTree, int, PyTree], tuple[PyTree, PyTree]] | None = None
    sources: Callable[[str], int | None] | None = None
    rows: Rows | None = None
    forget_task: ForgetTask | None = None
    forget_statistics: Callable[[PyTree, int, Any, PyTree], PyTree] | None = None

    def capacity(self, theta: PyTree, state: PyTree) -> jax.Array:
        """The measure of that name: the share of the network that the tasks so far use; else 1."""
        measures = dict(self.measures)
        return measures["capacity"](theta, state) if "capacity" in measures else jnp.float32(1)


def used_in(view: View, entry: str | None = None) -> Trainable:
    """`Method.used` of views that are the parameters, but for zeros where a task uses nothing.

    Args:
        view: the method's.
        entry: the entry of its theta that holds the parameters; None if theta is the parameters.
    """

    def used(theta, state, task):
        ones = jax.tree.map(jnp.ones_like, theta if entry is None else theta[entry])
        found = view(ones if entry is None else theta | {entry: ones}, state, task)
        return jax.tree.map(lambda leaf: leaf != 0, found)

    return used


def nested(method: Method, name: str) -> Method:
    """The method for a wrapper whose state holds the method's own as its entry `base`.

    Args:
        method: the method that is wrapped.
        name: of the wrapper, for errors.

    Returns:
        The method; its `init` is as it was, all else takes and gives the wrapper's state.

    Raises:
        ValueError: if the method brings what the wrapper would have to share with it.
    """
    hooks = ("auxiliary", "consolidate", "online")
    taken = [hook for hook in hooks if getattr(method, hook) is not None]
    taken += [] if method.phases == (Phase(),) else ["phases"]
    if taken:
        raise ValueError(f"{name}: the base method brings {taken[0]} of its own; expected none.")

    def read(function):
        if function is None:
            return None
        return lambda theta, state, *rest: function(theta, state.base, *rest)

    def begin_task(key, theta, state, task):
        theta, base = method.begin_task(key, theta, state.base, task)
        return theta, state._replace(base=base)

    def end_task(theta, state, task):
        theta, base = method.end_task(theta, state.base, task)
        return theta, state._replace(base=base)

    return method._replace(
        begin_task=begin_task,
        view=lambda theta, state, task, progress=None: method.view(
            theta, state.base, task, progress
        ),
        trainable=read(method.trainable),
        trainable_seen=read(method.trainable_seen),
        penalty=lambda theta, state, task, progress=None: method.penalty(
            theta, state.base, task, progress
        ),
        end_task=end_task,
        measures=tuple(m._replace(of=read(m.of)) for m in method.measures),
        divided=lambda state: method.divided(state.base),
        used=read(method.used),
        compact=read(method.compact),
        forget_task=None,  # what the wrapper keeps is of all tasks together
    )
