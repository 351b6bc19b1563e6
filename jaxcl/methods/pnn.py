"""PNN: a new column for each task, with lateral connections to the frozen ones."""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks
from jaxcl.core.checks import check_choice, check_count, check_number
from jaxcl.core.convolution import conv_general_dilated
from jaxcl.core.guard import guarded
from jaxcl.core.heads import HEAD
from jaxcl.core.method import Measure, Method
from jaxcl.core.model import LateralSpec, Model
from jaxcl.core.trees import PyTree, draw
from jaxcl.methods.spec import Built, Problem, Spec, option

COLUMNS = 8  # that the first program has room for


@dataclass(frozen=True)
class PNNOptions:
    """How columns are connected.

    Attributes:
        lateral: kind of lateral connections.
        alpha: start value of the adapters' learned scale.
        column_width: width of each column's hidden layers, as a share of the network's. The PNN
            in the HAT paper uses 1.117 divided by the number of tasks.
    """

    lateral: Literal["adapter", "linear"] = "adapter"
    alpha: float = option(0.1, sweep=True, tune=(0.1, 1.0))
    column_width: float = option(1.0, above=0)


class PNNState(NamedTuple):
    """State of `pnn`.

    Attributes:
        columns: the finished columns with their laterals: `theta` with a leading [tasks] axis, zero
            where a task is still to come.
        current: the task that `theta` belongs to, an integer scalar.
    """

    columns: PyTree
    current: jax.Array


def pnn(
    model: Model,
    tasks: int,
    lateral: Literal["adapter", "linear"] | None = "adapter",
    *,
    alpha: jax.typing.ArrayLike = PNNOptions.alpha,
    projection: int | None = None,
) -> tuple[Method, Model]:
    """Progressive networks: task k trains column k, which sees the frozen columns 1 to k - 1.

    Each layer from the second to the head also receives the sources' inputs to that layer, their
    real activations. With h the sources' activations side by side:

        linear:   z = W h_own + U h
        adapter:  z = W h_own + U f(V (alpha * h))

    Args:
        model: the column's architecture; it must expose `column` and `laterals`, as those in
            `models` do, and its `init` must draw each column's start from the key.
        tasks: number of tasks, so of columns.
        lateral: the kind of lateral connection; None for independent columns.
        alpha: start value of the adapter's learned scale of each source column.
        projection: width of the adapter's projection V; by default that of the layer it reads.

    Returns:
        A method, and the network that runs on its views. `theta` is one column with its laterals,
        so that the optimizer never holds the others. Columns have one shape, whatever the task:
        laterals from columns that do not exist yet are zero and get no gradient.

    Raises:
        ValueError: for settings out of range, or a model that shows no layers to connect.

    >>> import jaxcl
    >>> model = jaxcl.models.mlp(4, (8, 6), 2)
    >>> method, network = pnn(model, tasks=3)
    >>> params, _ = jax.eval_shape(model.init, jax.random.key(0))
    >>> theta, state = jax.eval_shape(method.init, jax.random.key(0), params)
    >>> sorted(theta)
    ['column', 'laterals']

    Source: Rusu et al., Progressive Neural Networks (2016), Sec. 2: Eq. 1 (linear) and Eq. 2
        (adapter). V has the width of the equation, not of the text.
    Differs: laterals carry no bias of their own beside the projection's.
    """
    _check(model, tasks, lateral, alpha, projection)
    sources = tasks - 1
    specs = model.laterals if lateral and sources else ()
    start_laterals = partial(init_laterals, specs, sources, lateral, alpha, projection)

    def init(key, params):
        laterals = jax.eval_shape(lambda: start_laterals(key, 0))  # drawn when a task begins
        laterals = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), laterals)
        theta = {"column": params, "laterals": laterals}
        columns = jax.tree.map(lambda leaf: jnp.zeros((tasks, *leaf.shape), leaf.dtype), theta)
        return theta, PNNState(columns, jnp.int32(0))

    def begin_task(key, theta, state, task):
        column_key, lateral_key = jax.random.split(key)
        fresh, _ = model.init(column_key)
        column = jax.tree.map(
            lambda new, old: jnp.where(task > 0, new, old), fresh, theta["column"]
        )
        theta = {"column": column, "laterals": start_laterals(lateral_key, task)}
        return theta, state._replace(current=jnp.asarray(task, jnp.int32))

    def view(theta, state, task, progress=None):
        own = theta
        if progress is None:
            running = state.current == task
            own = jax.tree.map(
                lambda new, columns: jnp.where(running, new, columns[task]), theta, state.columns
            )
        return {"own": own, "columns": state.columns, "task": jnp.asarray(task, jnp.int32)}

    def end_task(theta, state, task):
        columns = jax.tree.map(lambda c, new: c.at[task].set(new), state.columns, theta)
        return theta, state._replace(columns=columns)

    method = Method(
        init=init,
        begin_task=begin_task,
        view=view,
        end_task=end_task,
        # It grows, and is always in full use.
        measures=(Measure("capacity", lambda theta, state: jnp.float32(1)),),
        isolates=True,
        tasks=tasks,
        compact=partial(_up_to, view),
        sources=partial(source_axis, lateral),
        forget_task=partial(_forget, len(specs)),
        forget_statistics=partial(_forget_statistics, len(specs)),
    )
    return guarded("pnn", method), _network(model, tasks, specs)


def _check(model: Model, tasks: int, lateral, alpha, projection) -> None:
    check_count("pnn: tasks", tasks)
    check_number("pnn: alpha", alpha)
    if projection is not None:
        check_count("pnn: projection", projection)
    check_choice("pnn: lateral", lateral, ("adapter", "linear", None))
    if lateral and model.column is None:
        raise ValueError(
            "pnn: the model shows no layers to connect; give one with `column` and `laterals`, "
            "as jaxcl.models.mlp does, or lateral=None for independent columns."
        )


def _up_to(view, theta: PyTree, state: PNNState, task: int, statistics: PyTree):
    """The columns up to a task's own; the network indexes them, so one at least is there."""
    params = view(theta, state, task)
    columns = jax.tree.map(lambda leaf: leaf[: max(task, 1)], params["columns"])
    return params | {"columns": columns}, statistics


def source_axis(lateral: str | None, path: str) -> int | None:
    """The axis of a leaf of theta that has an entry for each source; see `Method.sources`.

    >>> source_axis("adapter", "laterals/0/alpha"), source_axis("adapter", "laterals/0/bias")
    (-1, None)
    """
    axes = {"alpha": -1, "project": -3} if lateral == "adapter" else {"kernel": -3}
    found = re.search(r"(?:^|/)laterals/\d+/(\w+)$", path)
    return axes.get(found[1]) if found else None


def _forget(
    layers: int, theta: PyTree, state: PNNState, memory, task: int, kept: np.ndarray, fresh
) -> tuple[PyTree, PNNState, PyTree]:
    """What later columns read of this one stays; its head, which none of them reads, does not."""
    read, last = _is_read(layers, task, kept), f"laterals/{layers - 1}/"

    def clear(path, leaf):
        is_head = path.startswith(last) or re.search(HEAD, path) is not None
        return leaf if read and not is_head else leaf.at[task].set(0)

    own = jax.tree.map(lambda new, old: jnp.where(state.current == task, new, old), fresh, theta)
    columns = masks.map_with_path(clear, state.columns)
    return own, state._replace(columns=columns), memory


def _forget_statistics(layers: int, statistics: PyTree, task: int, kept: np.ndarray, fresh):
    """A column that goes as a whole takes its statistics along."""
    if _is_read(layers, task, kept):
        return statistics
    return jax.tree.map(
        lambda rows, new: rows.at[:, task].set(new[:, task]), statistics, fresh
    )  # fmt: skip


def _is_read(layers: int, task: int, kept: np.ndarray) -> bool:
    """Whether later columns that stay read one."""
    return layers > 0 and bool(kept[task + 1 :].any())


def _network(model: Model, tasks: int, specs: tuple[LateralSpec, ...]) -> Model:
    """The network of `pnn`: columns 1 to k in order, of which only column k is differentiated."""
    run_column = cast(Callable, model.column)

    def init(key):
        params, statistics = model.init(key)
        return params, jax.tree.map(lambda leaf: jnp.stack([leaf] * tasks), statistics)

    def frozen(view, statistics, x):
        """The finished columns' activations, one [batch, ..., sources, units] array a layer."""
        sources = _sources(view["own"]["laterals"][0])
        columns, statistics = jax.lax.stop_gradient((view["columns"], statistics))

        def run(j, hiddens):
            column = jax.tree.map(lambda leaf: leaf[j], columns)
            inputs = [
                apply_lateral(p, spec, h, j, frozen=True)
                for p, spec, h in zip(column["laterals"], specs, hiddens)
            ]
            own = jax.tree.map(lambda leaf: leaf[j], statistics)
            _, new, _ = run_column(column["column"], own, x, tuple(inputs), train=False)
            return tuple(h.at[..., j, :].set(n) for h, n in zip(hiddens, new))

        empty = [(x.shape[0], *s.hidden[:-1], sources, s.hidden[-1]) for s in specs]
        nothing = tuple(jnp.zeros(e) for e in empty)
        return jax.lax.fori_loop(0, view["task"], run, nothing) if sources else nothing

    takes_weight = "weight" in inspect.signature(run_column if specs else model.apply).parameters

    def apply(view, statistics, x, *, train=False, key=None, features=None, weight=None):
        task, own = view["task"], view["own"]
        mode = {"train": train, "key": key} | ({"weight": weight} if takes_weight else {})
        row = jax.tree.map(lambda leaf: leaf[task], statistics)
        if specs:
            features = frozen(view, statistics, x) if features is None else features
            inputs = [
                apply_lateral(p, spec, h, task)
                for p, spec, h in zip(own["laterals"], specs, features)
            ]
            logits, _, row = run_column(own["column"], row, x, tuple(inputs), **mode)
        else:
            logits, row = model.apply(own["column"], row, x, **mode)
        return logits, jax.tree.map(lambda leaf, new: leaf.at[task].set(new), statistics, row)

    return Model(init=init, apply=apply, frozen=frozen if specs else None)


def init_laterals(specs, sources, kind, alpha, projection, key, task) -> list[PyTree]:
    """The laterals of every layer, from `sources` columns of which the first `task` exist.

    Returns:
        For each layer, `"linear"`: {"kernel": [*window, sources, units, out]}; `"adapter"`:
        {"alpha": [sources], "project": [sources, units, width], "bias": [width],
        "kernel": [*window, width, out]}. All start as LeCun normal over the inputs that exist,
        biases at 0, and what comes from columns that do not exist at 0.
    """
    exists = jnp.arange(sources) < task
    number = jnp.maximum(task, 1)
    shared_key, source_key = jax.random.split(key)

    def sizes(spec):
        """Window, units of a source, width of the projection, outputs."""
        units = spec.hidden[-1]
        return spec.kernel or (), units, projection or units, spec.out[-1]

    shapes = [
        (*window, units, out) if kind == "linear" else (units, width)
        for window, units, width, out in map(sizes, specs)
    ]
    # Drawn source by source, so that the room for further sources does not change the values.
    keys = jax.vmap(partial(jax.random.fold_in, source_key))(jnp.arange(sources))
    projections = jax.vmap(lambda key: draw(jax.random.normal, key, shapes))(keys)
    kernels = iter(())
    if kind == "adapter":
        shapes = [(*window, width, out) for window, _, width, out in map(sizes, specs)]
        kernels = iter(draw(jax.random.normal, shared_key, shapes))

    def start(spec, normal):
        window, units, width, _ = sizes(spec)
        taps = math.prod(window)
        fan_in = number * units * (taps if kind == "linear" else 1)
        found = jnp.where(
            exists.reshape(-1, *[1] * (normal.ndim - 1)), normal / jnp.sqrt(fan_in), 0.0
        )
        if kind == "linear":
            return {"kernel": jnp.moveaxis(found, 0, -3)}
        return {
            "alpha": jnp.where(exists, jnp.asarray(alpha, float), 0.0),
            "project": found,
            "bias": jnp.zeros(width),
            "kernel": next(kernels) / math.sqrt(taps * width),
        }

    return [start(spec, normal) for spec, normal in zip(specs, projections)]


def apply_lateral(
    params: PyTree, spec: LateralSpec, hidden: jax.Array, task, frozen: bool = False
) -> jax.Array:
    """What the sources add to one layer's pre-activation.

    Args:
        params: the layer's part of what `init_laterals` gives.
        spec: the layer's shapes and window.
        hidden: the sources' inputs to this layer, [batch, ..., sources, units].
        task: the receiving column; column 0 has no source and gets zero.
        frozen: nothing will be differentiated, so that work for the columns that do not exist can
            be left out.

    Returns:
        Array [batch, ..., out], or a scalar zero where there is no source.

    Source: Rusu et al. (2016) Eqs. 1 and 2; for a convolution V is 1x1 and U has the window,
        stride and padding of the layer's own kernel.
    """

    if _sources(params) == 0:
        return jnp.zeros(())

    def of_sources(kernels, spec=None):
        """All sources through their parts of `kernels` [..., sources, units, out]."""
        if not frozen:
            kernel = kernels.reshape(*kernels.shape[:-3], -1, kernels.shape[-1])
            return _connect(hidden.reshape(*hidden.shape[:-2], -1), kernel, spec)

        def one(i):
            return _connect(hidden[..., i, :], kernels[..., i, :, :], spec)

        return jax.lax.fori_loop(1, task, lambda i, total: total + one(i), one(0))

    if "alpha" not in params:
        return of_sources(params["kernel"], spec)
    project = params["alpha"][:, None, None] * params["project"]
    bias = params["bias"].reshape((1,) * (hidden.ndim - 2) + (-1,))
    reduced = jax.nn.relu(of_sources(project) + bias)
    return jnp.where(task > 0, _connect(reduced, params["kernel"], spec), 0.0)


def _sources(params: PyTree) -> int:
    """For how many sources a layer's laterals have entries."""
    return params["alpha"].shape[0] if "alpha" in params else params["kernel"].shape[-3]


def _connect(hidden, kernel, spec):
    if spec is None or spec.kernel is None:
        return hidden @ kernel
    return conv_general_dilated(hidden, kernel, spec.strides, spec.padding)


def task_limits(tasks: int) -> list[int]:
    """The numbers of columns that the programs have room for, one program after the other.

    A step computes with all columns that there is room for. So the room doubles, from `COLUMNS` on.

    >>> task_limits(20)
    [8, 16, 20]
    """
    smaller = [COLUMNS << i for i in range(tasks) if COLUMNS << i < tasks]
    return [*smaller, tasks]


def _build(problem: Problem, options: PNNOptions) -> Built:
    column = problem.network(options.column_width)
    return Built(*pnn(column, problem.tasks, options.lateral, alpha=options.alpha))


def _independent(problem: Problem, options) -> Built:
    return Built(*pnn(problem.network(), problem.tasks, None))


def _parameters(problem: Problem, column: Model, lateral) -> int:
    """A column counts the laterals from its predecessors alone."""

    def size(columns):
        # The last of n columns has room for n - 1 laterals and uses all.
        method, _ = pnn(column, columns, lateral)
        theta = jax.eval_shape(
            lambda key: method.init(key, column.init(key)[0])[0], jax.random.key(0)
        )
        return sum(leaf.size for leaf in jax.tree.leaves(theta))

    return sum(size(n + 1) for n in range(problem.tasks))


SPEC = Spec(
    name="pnn",
    label="PNN",
    build=_build,
    options=PNNOptions,
    color="#0b66ad",
    task_limits=task_limits,
    smaller="a smaller --column-width or fewer tasks",
    parameters=lambda problem, options, learner: _parameters(
        problem, problem.network(options.column_width), options.lateral
    ),
    reference="Rusu et al., Progressive Neural Networks (2016)",
    by_default=True,
    presets={"permuted_digits": {"alpha": 1.0}},
)

INDEPENDENT = Spec(
    name="independent",
    label="Independent",
    words="independent columns",
    build=_independent,
    color="#7fb2d9",
    parameters=lambda problem, options, learner: _parameters(problem, problem.network(), None),
)
