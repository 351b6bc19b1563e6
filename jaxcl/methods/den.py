"""DEN: retrain the units that a task needs, add units, and split those that drifted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core import masks
from jaxcl.core.checks import check_pattern
from jaxcl.core.heads import HEAD
from jaxcl.core.method import Context, Method, Phase, used_in
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree
from jaxcl.methods import units as of_units
from jaxcl.methods.finetune import finetune
from jaxcl.methods.spec import Built, Problem, Spec, check_options, option
from jaxcl.methods.splitting import drift_of, plan_copies, reaching, split_units


@dataclass(frozen=True)
class DENOptions:
    """How DEN selects, expands and splits; the numbers are those of the authors' code.

    Attributes:
        tau: loss on the task's examples from which the network grows.
        units: further units of each hidden layer where it grows, and the most that are split.
        l1: threshold by which a step shrinks weights towards zero.
        l2: weight of the selected weights' squares while they are retrained.
        group_lasso: threshold by which a step shrinks each new unit's incoming weights as a whole.
        pull: weight of the squared distance to the weights before the task.
        drift: distance of a unit's incoming weights to those before the task beyond which it is
            split.
        columns: select the units that reach any class, or as the authors' code the first one.
        split_first: split the most drifted units, or as the authors' code the least drifted.
        split_when: split always, or as the authors' code only where the network grew.
        cap: the most units of a layer, as a share of those that it starts with.
    """

    tau: float = option(0.01, least=0, sweep=True)
    units: int = option(10, least=1)
    l1: float = option(1e-5, least=0, sweep=True)
    l2: float = option(1e-4, least=0, sweep=True)
    group_lasso: float = option(1e-3, least=0, sweep=True)
    pull: float = option(0.5, least=0, sweep=True, tune=(0.05, 0.5))
    drift: float = option(0.05, least=0, sweep=True)
    columns: Literal["any", "first"] = "any"
    split_first: Literal["most", "least"] = "most"
    split_when: Literal["always", "grown"] = "always"
    cap: float = option(4.0, least=1)


class DENState(NamedTuple):
    """State of `den`.

    Attributes:
        base: the state of the method that governs the heads.
        stamps: for each hidden layer an int32 array [room]: k for a unit that the k-th task
            brought, 0 where there is none.
        selected: likewise bool, the units that the running task retrains.
        before: the leaves of the hidden layers, by path, as they were before the task.
        grown: bool, whether the running task has brought units.
        split: bool, whether it has split some.
    """

    base: Any
    stamps: dict[str, jax.Array]
    selected: dict[str, jax.Array]
    before: dict[str, jax.Array]
    grown: jax.Array
    split: jax.Array


def shrink(weights: jax.Array, threshold: ArrayLike) -> jax.Array:
    """The proximal step of the L1 norm: every entry moves towards zero by the threshold.

    >>> print(shrink(jnp.array([3.0, -0.5, -2.0]), 1.0))
    [ 2.  0. -1.]
    """
    return jnp.where(
        jnp.abs(weights) > threshold,
        weights - jnp.sign(weights) * threshold,
        jnp.zeros_like(weights),
    )


def shrink_columns(weights: jax.Array, threshold: ArrayLike) -> jax.Array:
    """The proximal step of the group lasso: what feeds a unit shrinks as a whole.

    >>> print(shrink_columns(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0))
    [[2.4 0. ]
     [3.2 0. ]]
    """
    norm = jnp.sqrt(jnp.sum(weights**2, axis=range(weights.ndim - 1), keepdims=True))
    return weights * jnp.maximum(0, 1 - threshold / jnp.maximum(norm, 1e-30))


def den(
    base: Method,
    wiring: Wiring | None,
    start: Mapping[str, int],
    options: DENOptions = DENOptions(),
    *,
    heads: str = HEAD,
) -> Method:
    """DEN: selective retraining, expansion where that does not suffice, split and duplication.

    Each later task trains its head; selects the units that reach it through non-zero weights, and
    retrains them; adds units if its loss is still too high, and drops those whose incoming weights
    become zero; trains everything near to what it was before; and splits the units that drifted
    all the same: one copy gets its old weights back. Each unit has the number of the task that
    brought it for its stamp, and a task is evaluated with the units up to its own.

    Args:
        base: the method that governs the heads: `multihead(finetune(), tasks)`.
        wiring: the table of a network whose layers follow one another, and have room to grow.
        start: for each of its gates, the units that the layer starts with: the first ones.
        options: the numbers, and where to follow the authors' code against the paper.
        heads: regular expression of the leaves that are each task's own.

    Returns:
        A method whose `theta` is that of `base`, kernels after a flattening as `[repeats, units,
        out]`. It does not isolate tasks: retraining and what does not drift far change old weights.

    Raises:
        ValueError: for settings out of range, a network that does not grow unit by unit, or heads
            that are not each task's own.

    >>> import jaxcl
    >>> model = jaxcl.models.mlp(4, (8,), 2)
    >>> start = {gate: 4 for gate in model.wiring.gates}
    >>> method = den(jaxcl.multihead(jaxcl.finetune(), 3), model.wiring, start)
    >>> [phase.name for phase in method.phases]
    ['train', 'select', 'expand', 'pull', 'split']

    Source: Yoon et al., Lifelong Learning with Dynamically Expandable Networks (2018), Sec. 3, and
        the numbers of the authors' code. L1 and group lasso are proximal steps after the optimizer
        with fixed thresholds, which the step size does not scale; squares have no factor 1/2, so
        that a weight decay of d is `l2` = d / 2.
    Differs: cross-entropy instead of a sigmoid for each class. Where it grows depends on the loss
        over all examples; the authors' code has that of the last batch. Copies take over their
        units' biases; there they are drawn from U(0, 1). New weights into old units start at zero.
        The first task trains in the phases "train", "select" and "pull", and skips the others.
    """
    wiring = of_units.check_wiring("den", wiring, start)
    check_pattern("den: heads", heads)
    check_options(DENOptions, vars(options), "den: {}".format)
    of_units.tasks_of("den", base)
    net = _Net(base, wiring, heads, options)
    names = [p for p in {**wiring.inputs, **wiring.outputs} if not re.search(heads, p)]

    def init(key, params):
        params = of_units.split_units(wiring, params)
        theta, inner = base.init(key, params)
        of_units.check_own("den", heads, params, theta)
        leaves, no = masks.leaves_by_path(theta), jnp.bool_(False)
        stamps = of_units.first_units(wiring, start)
        selected = {gate: stamp > 0 for gate, stamp in stamps.items()}
        return theta, DENState(inner, stamps, selected, {p: leaves[p] for p in names}, no, no)

    def begin_task(key, theta, state, task):
        theta, inner = base.begin_task(key, theta, state.base, task)
        theta = of_units.fresh_heads(wiring, key, theta, state.stamps, task)
        leaves, no = masks.leaves_by_path(theta), jnp.bool_(False)
        before = {p: leaves[p] for p in names}
        selected = {gate: stamp > 0 for gate, stamp in state.stamps.items()}
        return theta, DENState(inner, state.stamps, selected, before, no, no)

    def view(theta, state, task, progress=None):
        params = base.view(theta, state.base, task, progress)
        there = {gate: (s > 0) & (s <= task + 1) for gate, s in state.stamps.items()}
        return of_units.join_units(wiring, net.cut(params, there))

    return base._replace(
        init=init,
        begin_task=begin_task,
        view=view,
        trainable=net.everything,
        end_task=lambda theta, state, task: (theta, state),
        phases=net.phases(),
        measures=of_units.measures(wiring),
        used=used_in(view),
        forget_task=None,
    )


class _Net(NamedTuple):
    """What the phases of `den` work with, and what each of them trains and adds to the loss."""

    base: Method
    wiring: Wiring
    heads: str
    options: DENOptions

    def phases(self) -> tuple[Phase, ...]:
        """The five phases; the last but one trains as the last does."""
        early = self.shrinking(self.everything, first_only=True)
        return (
            Phase(
                "train", share=0.2, trainable=self.head_alone,
                project=self.shrinking(self.head_alone),
            ),
            Phase(
                "select", share=0.3, begin=self.select, trainable=self.chosen,
                penalty=self.squares, project=early,
            ),
            Phase(
                "expand", share=0.2, begin=self.expand, trainable=self.new_weights,
                project=self.sparsely, needed=lambda theta, state, task: state.grown,
            ),
            Phase(
                "pull", share=0.15, begin=self.drop, trainable=self.everything,
                penalty=self.distance, project=early,
            ),
            Phase(
                "split", share=0.15, begin=self.split, trainable=self.everything,
                penalty=self.distance, project=early,
                needed=lambda theta, state, task: state.split,
            ),
        )  # fmt: skip

    # What a phase may change.

    def masked(self, theta, state, task, wired, head=lambda path, leaf, mask: mask):
        """`wired(path, leaf)` for the hidden layers' leaves, `head` of the base's for the heads."""
        given = masks.expand(self.base.trainable(theta, state.base, task), theta)

        def share(path, mask, leaf):
            if re.search(self.heads, path):
                return head(path, leaf, mask)
            if path in self.wiring.inputs or path in self.wiring.outputs:
                return (task == 0) | wired(path, leaf)
            return jnp.asarray(task == 0, bool)

        return masks.map_with_path(share, given, theta, is_leaf=masks.is_mask)

    def between(self, values):
        """Both units of a weight have a value; what has no unit has it."""

        def both(path, leaf):
            source, target = of_units.ends(self.wiring, path, leaf, values, True, True)
            return source & target

        return both

    def head_alone(self, theta, state, task):
        """The first task everything, every later one its head."""
        return self.masked(theta, state, task, lambda path, leaf: jnp.bool_(False))

    def chosen(self, theta, state, task):
        """The selected units' weights among themselves, and the head."""
        return self.masked(theta, state, task, self.between(state.selected))

    def new_weights(self, theta, state, task):
        """Whatever a new unit is an end of, and the head's bias."""
        new = {gate: stamp == task + 1 for gate, stamp in state.stamps.items()}

        def wired(path, leaf):
            source, target = of_units.ends(self.wiring, path, leaf, new, False, False)
            return source | target

        def head(path, leaf, mask):
            return mask & wired(path, leaf) if path in self.wiring.inputs else mask

        return self.masked(theta, state, task, wired, head)

    def everything(self, theta, state, task):
        """All weights between units that are there, and the head."""
        here = {gate: stamp > 0 for gate, stamp in state.stamps.items()}
        return self.masked(theta, state, task, self.between(here))

    # What follows a step, or is added to the loss.

    def shrinking(self, trainable, first_only=False):
        """The proximal step of L1 on the kernels that may change."""

        def project(theta, state, task):
            mask = masks.resolve(trainable(theta, state, task), theta)
            on = (task == 0) | (not first_only)

            def step(path, leaf, may):
                if path not in self.wiring.inputs:
                    return leaf
                return jnp.where(may & on, shrink(leaf, self.options.l1), leaf)

            return masks.map_with_path(step, theta, mask)

        return project

    def sparsely(self, theta, state, task):
        """The proximal steps of L1 on new weights, and of the group lasso on each new unit's."""
        theta = self.shrinking(self.new_weights)(theta, state, task)
        new = {gate: stamp == task + 1 for gate, stamp in state.stamps.items()}

        def step(path, leaf):
            if path not in self.wiring.inputs or path not in self.wiring.outputs:
                return leaf
            _, target = of_units.ends(self.wiring, path, leaf, new, False, False)
            return jnp.where(target, shrink_columns(leaf, self.options.group_lasso), leaf)

        return masks.map_with_path(step, theta)

    def squares(self, theta, state, task, progress=None):
        """L2 on the selected weights, for all tasks but the first."""
        leaves, chosen = masks.leaves_by_path(theta), self.between(state.selected)
        total = sum(
            jnp.sum(jnp.where(chosen(path, leaves[path]), leaves[path] ** 2, 0.0))
            for path in state.before
            if path in self.wiring.inputs
        )
        return jnp.where(task > 0, self.options.l2 * total, 0.0)

    def distance(self, theta, state, task, progress=None):
        """The squared distance of older units' weights to those before the task."""
        leaves = masks.leaves_by_path(theta)
        old = self.between({g: (s > 0) & (s <= task) for g, s in state.stamps.items()})
        total = sum(
            jnp.sum(jnp.where(old(path, leaves[path]), (leaves[path] - before) ** 2, 0.0))
            for path, before in state.before.items()
        )
        return jnp.where(task > 0, self.options.pull * total, 0.0)

    # What precedes a phase.

    def cut(self, params: PyTree, there: Mapping[str, jax.Array]) -> PyTree:
        """The weights between units that are there; the others are zero."""
        keep = self.between(there)

        def one(path, leaf):
            if path not in self.wiring.inputs and path not in self.wiring.outputs:
                return leaf
            return jnp.where(keep(path, leaf), leaf, jnp.zeros_like(leaf))

        return masks.map_with_path(one, params)

    def of_task(self, theta, state, task) -> dict[str, jax.Array]:
        """The leaves of the running task's network by path, its own head among them."""
        here = {gate: stamp > 0 for gate, stamp in state.stamps.items()}
        return masks.leaves_by_path(self.cut(self.base.view(theta, state.base, task), here))

    def select(self, context: Context, theta, state):
        """The units that reach the head through weights that are not zero."""
        leaves = self.of_task(theta, state, context.task)
        count = next(leaf.shape[-1] for p, leaf in leaves.items() if self.is_head(p))
        number = count if context.classes is None else jnp.asarray(context.classes)[context.task]
        number = 1 if self.options.columns == "first" else number
        return theta, state._replace(
            selected=reaching(self.wiring, leaves, jnp.arange(count) < number)
        )

    def is_head(self, path: str) -> bool:
        return path in self.wiring.inputs and path not in self.wiring.outputs

    def expand(self, context: Context, theta, state):
        """Adds units where a later task's loss is still too high."""
        task, before, options = context.task, state.stamps, self.options
        missed = (of_units.loss(context, theta, state) >= options.tau) & (task > 0)
        grown = of_units.claim(before, dict.fromkeys(before, options.units), task)
        stamps = {gate: jnp.where(missed, grown[gate], before[gate]) for gate in grown}
        new = {gate: stamps[gate] != before[gate] for gate in grown}
        theta = of_units.fresh_units(self.wiring, context.key, theta, stamps, new, task, self.heads)
        some = jnp.stack([n.any() for n in new.values()]).any()
        return theta, state._replace(stamps=stamps, grown=some)

    def drop(self, context: Context, theta, state):
        """Takes away the new units whose incoming weights are all zero."""
        task, leaves = context.task, self.of_task(theta, state, context.task)
        stamps = dict(state.stamps)
        for path, gate in self.wiring.outputs.items():
            if path in self.wiring.inputs:
                dead = jnp.all(leaves[path] == 0, axis=range(leaves[path].ndim - 1))
                new = (stamps[gate] == task + 1) & (task > 0)
                stamps[gate] = jnp.where(new & dead, 0, stamps[gate])
        return theta, state._replace(stamps=stamps)

    def split(self, context: Context, theta, state):
        """Splits the older units that drifted too far."""
        task, options = context.task, self.options
        leaves = masks.leaves_by_path(theta)
        drift = drift_of(self.wiring, leaves, state.before, state.stamps, task)
        may = (task > 0) & (state.grown | (options.split_when == "always"))
        copies = {
            gate: plan_copies(
                jnp.where(may, drift[gate], 0.0), stamp, options.drift, options.units,
                options.split_first,
            )
            for gate, stamp in state.stamps.items()
        }  # fmt: skip
        theta = split_units(
            self.wiring, theta, state.before, copies, state.stamps, task, self.heads
        )
        stamps = {
            gate: jnp.where(copies[gate].source != jnp.arange(stamp.size), task + 1, stamp)
            for gate, stamp in state.stamps.items()
        }
        some = jnp.stack([copy.split.any() for copy in copies.values()]).any()
        return theta, state._replace(stamps=stamps, split=some)


def _build(problem: Problem, options: DENOptions) -> Built:
    small = problem.network()
    own = f"{problem.own}|{of_units.NORMS}"
    start = of_units.widths("den", small)
    further = problem.tasks * 2 * options.units / min(start.values())
    room = problem.network(min(options.cap, 1 + further))
    grown = den(
        problem._replace(own=own).with_heads(finetune()), room.wiring, start, options, heads=own
    )
    return Built(grown, of_units.with_room(small, room), "per_task")


SPEC = Spec(
    name="den",
    label="DEN",
    build=_build,
    options=DENOptions,
    color="#6d4c41",
    task_limits=of_units.task_limits,
    presets={
        "permuted_digits": {"optimizer": "adam", "learning_rate": 0.003, "pull": 0.05},
        "split_digits": {"optimizer": "adam", "learning_rate": 0.001},
    },
    limit=of_units.LIMIT,
    example="--tau 0.01,0.1 --drift 0.05,0.2",
    reference="Yoon et al., Lifelong Learning with Dynamically Expandable Networks (2018)",
)
