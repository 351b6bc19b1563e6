"""The laws of docs/design.md, 1 to 4: isolation, vmap, compile once, sharding.

Each law is a function that says where it is broken. It is run on the library, which breaks it
nowhere, and on deliberately broken twins, where it must bite.
"""

import functools
import os
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxcl
from jaxcl import data, masks, models, recipes, replicas, study, train
from jaxcl.methods import pnn
from jaxcl.methods.hat import fold
from jaxcl.train import loop

TASKS = 3
CLASSES = 3


# Networks: an MLP, a conv net and a residual net with BatchNorm, each in nnx and in linen; and the
# built-in ones, as narrow as can be.


class Net(NamedTuple):
    """A network of two layers and a head, which laterals enter before the last two."""

    shape: tuple
    laterals: tuple


NETS = {
    "mlp": Net((6,), (models.LateralSpec((5,), (4,)), models.LateralSpec((4,), (CLASSES,)))),
    "conv": Net((6, 6, 2), (models.LateralSpec((36,), (5,)), models.LateralSpec((5,), (CLASSES,)))),
    "residual": Net(
        (5, 5, 2),
        (
            models.LateralSpec((5, 5, 4), (5, 5, 4), (3, 3), (1, 1), "SAME"),
            models.LateralSpec((4,), (CLASSES,)),
        ),
    ),
}


def forward(kind, first, second, head, norms, inputs):
    """Logits, and with laterals also the inputs of the layers that they enter."""
    x, laterals = inputs if isinstance(inputs, tuple) else (inputs, None)
    add = lambda i, z: z if laterals is None or laterals[i] is None else z + laterals[i]  # noqa: E731
    h = jax.nn.relu(norms[0](first(x)))
    if kind == "conv":
        h = nn.max_pool(h, (2, 2), (2, 2)).reshape(x.shape[0], -1)
    z = add(0, norms[1](second(h)))
    last = jax.nn.relu(z + h if kind == "residual" else z)
    last = last.mean((1, 2)) if kind == "residual" else last
    logits = add(1, head(last))
    return logits if laterals is None else (logits, (h, last))


BUILT_IN = {
    "alexnet": ((28, 28, 1), functools.partial(models.alexnet, widths=(2, 2, 2, 3, 3))),
    "resnet18": ((8, 8, 3), functools.partial(models.resnet18, width=2)),
    "vgg16": ((32, 32, 1), functools.partial(models.vgg16, width=1, hidden=(3, 3), norm=False)),
    "vgg16 norm": ((32, 32, 1), functools.partial(models.vgg16, width=1, hidden=(3, 3))),
}


class NnxNet(nnx.Module):
    def __init__(self, kind, rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        dense = functools.partial(nnx.Linear, rngs=rngs)
        self.kind = kind
        self.first = dense(6, 5) if kind == "mlp" else conv(2, 4)
        self.second = {"mlp": lambda: dense(5, 4), "conv": lambda: dense(36, 5)}.get(
            kind, lambda: conv(4, 4)
        )()
        self.head = dense(5 if kind == "conv" else 4, CLASSES)
        widths = {"mlp": (), "conv": (4, 5), "residual": (4, 4)}[kind]
        self.norms = nnx.List([nnx.BatchNorm(n, momentum=0.5, rngs=rngs) for n in widths])

    def __call__(self, inputs):
        norms = self.norms if len(self.norms) else (lambda x: x, lambda x: x)
        return forward(self.kind, self.first, self.second, self.head, norms, inputs)


class LinenNet(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, inputs, train):
        conv = functools.partial(nn.Conv, kernel_size=(3, 3))
        norm = lambda i: nn.BatchNorm(not train, momentum=0.5, name=f"norm{i}")  # noqa: E731
        first = nn.Dense(5, name="first") if self.kind == "mlp" else conv(4, name="first")
        if self.kind == "residual":
            second = conv(4, name="second")
        else:
            second = nn.Dense(4 if self.kind == "mlp" else 5, name="second")
        norms = (lambda x: x,) * 2 if self.kind == "mlp" else (norm(0), norm(1))
        return forward(self.kind, first, second, nn.Dense(CLASSES, name="head"), norms, inputs)


@functools.cache
def network(kind, library):
    """A Model with laterals, and with a wiring that is traced, or given for a built-in network."""
    if kind in BUILT_IN:
        shape, build = BUILT_IN[kind]
        model = build(shape, CLASSES)
        return model._replace(init=jax.jit(model.init))
    if library in ("built in", "bfloat16"):
        dtype = jnp.bfloat16 if library == "bfloat16" else jnp.float32
        return models.mlp(6, (5, 4), CLASSES, dtype=dtype)
    net = NETS[kind]
    sample = jax.ShapeDtypeStruct((4, *net.shape), jnp.float32)
    if library == "nnx":
        model = models.from_nnx(lambda rngs: NnxNet(kind, rngs))
    else:
        model = models.from_linen(LinenNet(kind), jnp.zeros(sample.shape))

    def column(params, statistics, x, laterals, **mode):
        (logits, hiddens), statistics = model.apply(params, statistics, (x, laterals), **mode)
        return logits, hiddens, statistics

    params, statistics = jax.eval_shape(model.init, jax.random.key(0))
    statistics = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), statistics)
    wiring = jaxcl.trace_wiring(lambda p, x: model.apply(p, statistics, x)[0], params, sample)
    return model._replace(
        init=jax.jit(model.init), column=column, laterals=net.laterals, wiring=wiring
    )


# Law 1: isolation.

OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "lamb": optax.lamb(0.05, weight_decay=0.1),
    "muon": optax.contrib.muon(0.05, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.05, weight_decay=0.1)),
    # Of 3, so that a task's last gradients wait for the next task's first.
    "steps": optax.MultiSteps(optax.adamw(0.05, weight_decay=0.1), 3),
}

METHODS = {
    "packnet zero": lambda m: (jaxcl.packnet(TASKS), m),
    "packnet keep": lambda m: (jaxcl.packnet(TASKS, reinit_free="keep"), m),
    "packnet random": lambda m: (jaxcl.packnet(TASKS, reinit_free="random"), m),
    "hat": lambda m: (jaxcl.hat(m.wiring, TASKS, hard=True), m),
    "pnn linear": lambda m: jaxcl.pnn(m, TASKS, "linear"),
    "pnn adapter": lambda m: jaxcl.pnn(m, TASKS, "adapter"),
}


def any_of(optimizers):
    """All the optimizers in one program; the state's first entry chooses."""

    def init(params):
        return jnp.int32(0), tuple(tx.init(params) for tx in optimizers)

    def update(updates, state, params):
        which, states = state

        def branch(i):
            def run(updates):
                new, inner = optimizers[i].update(updates, states[i], params)
                return new, (*states[:i], inner, *states[i + 1 :])

            return run

        branches = [branch(i) for i in range(len(optimizers))]
        updates, states = jax.lax.switch(which, branches, updates)
        return updates, (which, states)

    return optax.GradientTransformation(init, update)


def make_setup(method, kind, library, norm="frozen", optimizers=("adamw",)):
    model = network(kind, library)
    chosen, model = METHODS[method](model)
    if "pnn" in method:
        norm = "shared"  # each column has its own
    else:
        own = {"per_task": "head|norm", "all_per_task": "head|norm|bias"}.get(norm, "head")
        chosen, norm = jaxcl.multihead(chosen, TASKS, own), norm.removeprefix("all_")
    optimizer = any_of([OPTIMIZERS[name] for name in optimizers])
    return train.Setup(chosen, model, optimizer, batch=4, norm=norm)


def examples(kind):
    """Three tasks of 20, 16 and 12 examples."""
    rng = np.random.default_rng(0)
    shape = BUILT_IN[kind][0] if kind in BUILT_IN else NETS[kind].shape
    x = rng.normal(0, 1, (TASKS, 20, *shape)).astype("f4")
    y = rng.integers(0, CLASSES, (TASKS, 20))
    return train.Data(jnp.asarray(x), jnp.asarray(y), jnp.array([20, 16, 12]))


def essence(setup, view):
    """What of a view reaches the logits."""
    if "gates" in view:
        params = {name: leaf for name, leaf in view.items() if name != "gates"}
        return fold(setup.model.wiring, params, view["gates"]), view["gates"]
    if "columns" in view:
        return view["own"], upto(view["task"], view["columns"])
    return view


def upto(count, tree):
    """The first rows of every leaf."""
    keep = lambda leaf: jnp.arange(leaf.shape[0]) < count  # noqa: E731
    return jax.tree.map(
        lambda leaf: jnp.where(keep(leaf).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), tree
    )


def forgotten(setup, kind, optimizers, retrain=False):
    """Law 1: by optimizer, what of a finished task changes: its view, statistics or logits.

    So do the embeddings of any task but the running one, if there are. The optimizer's state is
    carried over from task to task and into the retraining. At the end of each task it is also seen
    what would change if the task had diverged.
    """
    tasks = examples(kind)
    x = tasks.x[0, :7]

    @jax.jit
    def begin(learner, task):
        return train.begin_task(setup, learner, task)._replace(opt_state=learner.opt_state)

    @jax.jit
    def epoch(learner, task, index):
        task_data = jax.tree.map(lambda leaf: leaf[task], tasks)
        return train.epoch(setup, learner, task_data, task, index)[0]

    @jax.jit
    def end(learner, task):
        return train.end_task(setup, learner, task)

    @jax.jit
    def diverged(learner, task, value):
        """All that the task may move, as it would be after steps that are far too large."""
        mask = setup.method.trainable(learner.theta, learner.state, task)
        theta = jax.tree.map(
            lambda leaf, m: jnp.where(m != 0, value, leaf),
            learner.theta,
            masks.resolve(mask, learner.theta),
        )
        at = {"per_task": task, "shared": (0, task)}.get(setup.norm)  # "frozen" ones stand still
        statistics = jax.tree.map(
            lambda rows: rows if at is None else rows.at[at].set(value), learner.statistics
        )
        return learner._replace(theta=theta, statistics=statistics)

    @jax.jit
    def finished(learner, task):
        view, statistics = train.network(setup, learner, task)
        logits, _ = setup.model.apply(view, statistics, x)
        if "columns" in view:  # each column has its own
            statistics = upto(task + 1, statistics)
        return {"view": essence(setup, view), "statistics": statistics, "logits": logits}

    def look(learner, task):
        return jax.device_get(finished(learner, task))

    def embeddings(learner):
        """Each task's own, in all gates."""
        theta = learner.theta if setup.method.params_prefix else {}
        return np.concatenate(jax.tree.leaves(theta.get("embeddings", np.zeros((TASKS, 0)))), 1)

    def changes(before, after):
        same = {part: jax.tree.map(np.array_equal, before[part], after[part]) for part in before}
        return {part for part in before if not all(jax.tree.leaves(same[part]))}

    def run(which):
        learner = first._replace(opt_state=(jnp.int32(which), first.opt_state[1]))
        kept, changed = [], set()
        for task in range(TASKS):
            learner = begin(learner, task)
            start, rows = look(learner, task), embeddings(learner)
            learner = epoch(learner, task, 0)
            assert "logits" in changes(start, look(learner, task)), "nothing was learned"
            moved = (embeddings(learner) != rows).any(1)
            assert moved[task] == bool(rows.size)
            changed |= {"embeddings"} if np.delete(moved, task).any() else set()
            for k, before in enumerate(kept):
                changed |= changes(before, look(learner, k))
            for value in (jnp.inf, jnp.nan) if kept else ():
                ruined = diverged(learner, task, value)
                for k, before in enumerate(kept):
                    changed |= changes(before, look(ruined, k))
                    changed |= changes(before, look(end(ruined, task), k))
            learner = end(learner, task)
            learner = epoch(learner, task, 1) if retrain else learner
            for k, before in enumerate(kept):
                changed |= changes(before, look(learner, k))
            kept.append(look(learner, task))
            if setup.norm == "frozen":  # by the first task
                changed |= changes(kept[0], kept[-1]) & {"statistics"}
        return changed

    key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster
    first = train.start(setup, key, TASKS)
    found = {name: run(which) for which, name in enumerate(optimizers)}
    return {name: changed for name, changed in found.items() if changed}


ALL = tuple(OPTIMIZERS)
# Every optimizer; and every method in every network and library, where the optimizers take turns.
# JAXCL_WHOLE_MATRIX=1 asks for all of them everywhere, and for the deepest networks once more with
# what they have in common with others.
WHOLE = bool(os.environ.get("JAXCL_WHOLE_MATRIX"))
DEEP = (
    ("packnet zero", "resnet18", "built in", "frozen"),
    ("hat", "resnet18", "built in", "per_task"),
    ("packnet zero", "vgg16", "built in", "frozen"),
    ("hat", "vgg16 norm", "built in", "frozen"),
)
CASES = [
    ("packnet zero", "mlp", "built in", "frozen", ALL),
    ("hat", "mlp", "built in", "frozen", ALL),
    ("pnn adapter", "mlp", "built in", "shared", ALL),
]
CASES += [
    (*case, ALL if WHOLE else (ALL[i % len(ALL)],))
    for i, case in enumerate(
        [
            ("packnet keep", "mlp", "bfloat16", "frozen"),
            ("hat", "mlp", "bfloat16", "frozen"),
            ("pnn adapter", "mlp", "bfloat16", "shared"),
            ("packnet random", "mlp", "built in", "frozen"),
            ("packnet zero", "mlp", "linen", "frozen"),
            ("packnet keep", "conv", "nnx", "frozen"),
            ("packnet random", "conv", "linen", "per_task"),
            ("packnet zero", "residual", "nnx", "all_per_task"),
            ("packnet keep", "residual", "linen", "frozen"),
            ("hat", "mlp", "linen", "frozen"),
            ("hat", "conv", "nnx", "per_task"),
            ("hat", "conv", "linen", "frozen"),
            ("hat", "residual", "nnx", "frozen"),
            ("hat", "residual", "linen", "per_task"),
            ("pnn linear", "mlp", "linen", "shared"),
            ("pnn adapter", "conv", "nnx", "shared"),
            ("pnn linear", "conv", "linen", "shared"),
            ("pnn linear", "residual", "nnx", "shared"),
            ("pnn adapter", "residual", "linen", "shared"),
            ("hat", "resnet18", "built in", "frozen"),
            ("packnet zero", "resnet18", "built in", "frozen"),
            ("packnet keep", "resnet18", "built in", "per_task"),
            ("hat", "resnet18", "built in", "per_task"),
            ("pnn adapter", "resnet18", "built in", "shared"),
            ("hat", "alexnet", "built in", "frozen"),
            ("packnet zero", "alexnet", "built in", "frozen"),
            ("pnn linear", "alexnet", "built in", "shared"),
            ("hat", "vgg16", "built in", "frozen"),
            ("packnet zero", "vgg16", "built in", "frozen"),
            ("pnn adapter", "vgg16", "built in", "shared"),
            ("hat", "vgg16 norm", "built in", "frozen"),
            ("packnet zero", "vgg16 norm", "built in", "per_task"),
            ("pnn adapter", "vgg16 norm", "built in", "shared"),
        ]
    )
    if WHOLE or case not in DEEP
]


@pytest.mark.parametrize(("method", "kind", "library", "norm", "optimizers"), CASES)
def test_law_1_isolation(method, kind, library, norm, optimizers):
    setup = make_setup(method, kind, library, norm, optimizers)
    assert forgotten(setup, kind, optimizers, retrain="packnet" in method) == {}


@pytest.mark.parametrize(
    ("method", "state"),
    [
        ("packnet keep", {"uint8"}),
        ("hat", {"float32"}),
        ("pnn adapter", {"float32", "int32"}),
    ],
)
def test_bfloat16_is_for_arithmetic_alone(method, state):
    """What is learned, protects or gates stays in float32, owners and tasks in integers."""
    setup = make_setup(method, "mlp", "bfloat16")

    def learn(key):
        learner = train.begin_task(setup, train.start(setup, key, TASKS), 0)
        learner, _ = train.epoch(setup, learner, row(examples("mlp"), 0), 0, 0)
        learner = train.end_task(setup, learner, 0)
        gates = setup.method.view(learner.theta, learner.state, 0, 0.5).get("gates", {})
        trainable = setup.method.trainable(learner.theta, learner.state, 1)
        return (learner.theta, gates), learner.state, jax.tree.map(jnp.asarray, trainable)

    def types(tree):
        return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}

    program, shapes = jax.make_jaxpr(learn, return_shape=True)(jax.random.key(0))
    learned, kept, trainable = shapes
    assert "bf16" in str(program)
    assert types(learned) == {"float32"}
    assert types(kept) == state
    assert types(trainable) <= {"float32", "bool"}


# Its broken twins.


def gradients_only(inner, trainable=True):
    """The twin that every method's original code is: the mask stands before the optimizer."""
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return jaxcl.isolate(inner, trainable).init(params)

    def update(updates, state, params=None):
        updates, _ = jaxcl.isolate(optax.identity(), state.trainable).update(
            updates, jaxcl.IsolateState(state.trainable, optax.EmptyState())
        )
        updates, new = inner.update(updates, state.inner, params)
        return updates, jaxcl.IsolateState(state.trainable, new)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("method", ["packnet zero", "hat"])
def test_law_1_bites_a_mask_in_front_of_the_optimizer(method, monkeypatch):
    monkeypatch.setattr(loop, "isolate", gradients_only)
    optimizers = ("momentum", "adamw")
    setup = make_setup(method, "mlp", "built in", optimizers=optimizers)
    # With the other tasks' rows within the twin's reach.
    setup = setup._replace(method=setup.method._replace(rows=None))
    broken = forgotten(setup, "mlp", optimizers, retrain="packnet" in method)
    parts = {"view", "logits", *(["embeddings"] if method == "hat" else [])}
    assert broken == {"momentum": parts, "adamw": parts}


def test_law_1_bites_running_statistics():
    optimizers = ("adamw",)
    setup = make_setup("packnet keep", "conv", "nnx", "shared", optimizers)
    broken = forgotten(setup, "conv", optimizers, retrain=True)
    assert broken == {"adamw": {"statistics", "logits"}}


def test_law_1_bites_norms_that_all_tasks_train():
    """Statistics are frozen, but the scales and shifts beside them are owned by nobody."""
    optimizers = ("momentum",)
    setup = make_setup("packnet keep", "conv", "nnx", "frozen", optimizers)
    method = setup.method

    def trainable(theta, state, task):
        return method.trainable(theta, state, task) | {"norms": True}

    broken = forgotten(
        setup._replace(method=method._replace(trainable=trainable)), "conv", optimizers, True
    )
    assert broken == {"momentum": {"view", "logits"}}


def test_law_1_bites_soft_attention():
    """Gates that are not quite 1 let a little through, as the HAT paper says."""
    optimizers = ("momentum",)
    setup = make_setup("hat", "mlp", "built in", optimizers=optimizers)
    wiring = setup.model.wiring
    method = jaxcl.multihead(jaxcl.hat(wiring, TASKS, s_max=5.0, hard=False), TASKS)
    broken = forgotten(setup._replace(method=method), "mlp", optimizers)
    assert broken == {"momentum": {"view", "logits"}}


def test_law_1_bites_a_column_that_goes_on_learning():
    optimizers = ("adam",)
    setup = make_setup("pnn linear", "mlp", "built in", optimizers=optimizers)
    method = setup.method

    def view(theta, state, task, progress=None):
        return method.view(theta, state, task, 0.0)  # the running column, whatever the task

    broken = forgotten(setup._replace(method=method._replace(view=view)), "mlp", optimizers)
    assert broken == {"adam": {"view", "logits"}}


def test_law_1_bites_fine_tuning():
    optimizers = ("momentum",)
    setup = make_setup("packnet zero", "mlp", "built in", optimizers=optimizers)
    method = jaxcl.multihead(jaxcl.finetune(), TASKS)
    assert forgotten(setup._replace(method=method), "mlp", optimizers) == {
        "momentum": {"view", "logits"}
    }


# Laws 2 to 4, on whole studies.


@functools.cache
def digits(tasks):
    """Permuted digits, of which a few are enough here; tasks differ in length."""
    full = data.permuted_digits(tasks)

    def cut(split, count):
        return data.Split(split.x[:count], split.y[:count])

    return full._replace(
        tasks=tuple(
            task._replace(
                train=cut(task.train, 40 + 3 * number), val=cut(task.val, 9), test=cut(task.test, 9)
            )
            for number, task in enumerate(full.tasks)
        )
    )


OPTIONS = recipes.Options(hidden=(6,), batch=16)
SEEDS = np.array([3, 1, 2, 1], np.uint32)
RATES = np.array([0.01, 0.02, 0.03, 0.04], np.float32)


def build(method, tasks=2, replicas=4, epochs=2, devices=1, **layout):
    benchmark = digits(tasks)
    return study.build(
        recipes.recipe(method, benchmark, OPTIONS),
        benchmark,
        SEEDS[:replicas],
        epochs=epochs,
        retrain_epochs=1 if method == "packnet" else 0,
        settings={"learning_rate": RATES[:replicas]},
        devices=jax.devices()[:devices],
        **layout,
    )


def row(result, i):
    return jax.tree.map(lambda leaf: leaf[i], result)


def run(built):
    """All that a study gives: its learners, and the accuracy after each task; [replicas, ...]."""
    events = [event for event in study.run(built) if isinstance(event, study.TaskEnd)]
    learners = events[-1].learners
    learners = learners._replace(key=jax.random.key_data(learners.key), stopping=None)
    learners = row(jax.device_get(learners), slice(len(built.seeds)))
    return learners, np.stack([event.accuracy for event in events], 1)


def same(a, b):
    """Exact for integers, owners and masks; else but for rounding."""
    if not np.issubdtype(a.dtype, np.floating) or np.isin(a, (0, 1)).all():
        return np.array_equal(a, b)
    return np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


def alone(method):
    """Each seed and setting on its own, by one study of a single replica."""
    built = build(method, replicas=1)
    for i in range(len(SEEDS)):
        one = slice(i, i + 1)
        yield row(run(built._replace(seeds=SEEDS[one], settings={"learning_rate": RATES[one]})), 0)
    assert set(built.traces.values()) == {1}


def rows_that_differ(built, singles):
    """Laws 2 and 4: which rows of a study are not the single run of that seed and setting."""
    together = run(built)
    assert set(built.traces.values()) == {1}
    matches = [jax.tree.map(same, single, row(together, i)) for i, single in enumerate(singles)]
    return [i for i, match in enumerate(matches) if not all(jax.tree.leaves(match))]


LAYOUTS = {
    "packnet": [{}, {"devices": 4}, {"devices": 2, "devices_per_replica": 2}],
    "hat": [
        {"chunk": 2},
        {"devices": 4, "devices_per_replica": 2},
        {"devices": 4, "devices_per_replica": 4},
    ],
    "pnn": [{"devices": 3}],
}


@pytest.mark.parametrize("method", LAYOUTS)
def test_law_2_vmap_and_law_4_sharding(method):
    """However the replicas lie over devices, chunks and mapped axes, each is the single run."""
    singles = list(alone(method))
    assert not all(jax.tree.leaves(jax.tree.map(same, singles[1], singles[3])))
    for layout in LAYOUTS[method]:
        assert rows_that_differ(build(method, **layout), singles) == [], layout


def test_law_2_and_law_4_bite_leaks_between_replicas(monkeypatch):
    singles = list(alone("packnet"))
    built = build("packnet", devices=2)
    start = built.programs["start"]

    def twin(start):
        return built._replace(programs=built.programs | {"start": start})

    def one_seed(seeds, fixed):
        return start(jnp.full_like(seeds, SEEDS[0]), fixed)

    def one_order(seeds, fixed):
        learners = start(seeds, fixed)
        return learners._replace(key=learners.key[jnp.zeros_like(seeds)])

    assert rows_that_differ(built, singles) == []
    assert rows_that_differ(twin(one_seed), singles) == [1, 2, 3]
    assert rows_that_differ(twin(one_order), singles) == [1, 2, 3]
    one_rate = {"learning_rate": np.full_like(RATES, RATES[0])}
    assert rows_that_differ(built._replace(settings=one_rate), singles) == [1, 2, 3]

    honest = train.start

    def where_it_runs(setup, key, tasks):
        return honest(setup, jax.random.fold_in(key, jax.lax.axis_index(replicas.AXIS)), tasks)

    by_device = build("packnet", devices=2).programs["start"]
    monkeypatch.setattr(train, "start", where_it_runs)  # before it is traced
    assert rows_that_differ(twin(by_device), singles) == [0, 1, 2, 3]


class Normalized(nnx.Module):
    """A network whose examples are not independent within a batch."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(6, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(jax.nn.relu(self.norm(self.hidden(x)))))


def test_law_4_a_split_batch_is_one_batch(monkeypatch):
    benchmark = digits(2)
    setup = train.Setup(
        jaxcl.multihead(jaxcl.packnet(2), 2), models.from_nnx(Normalized), optax.sgd(0.1),
        data.normalize(benchmark), batch=16, norm="frozen",
    )  # fmt: skip

    def learn(split):
        devices = jax.devices()[:split]
        return run(
            study.build(setup, benchmark, [0], epochs=2, devices=devices, devices_per_replica=split)
        )

    def is_whole(split):
        return all(jax.tree.leaves(jax.tree.map(same, whole, learn(split))))

    def first_part(batch, spec):
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf[: len(leaf) // 2]] * 2), batch)

    whole = learn(1)
    assert is_whole(2) and is_whole(4)
    monkeypatch.setattr(jax.lax, "with_sharding_constraint", first_part)  # the broken twin
    assert not is_whole(2)


@pytest.mark.parametrize(
    ("method", "tasks", "epochs", "count"),
    [("packnet", 5, 1, 1), ("packnet", 10, 3, 3), ("hat", 10, 1, 1), ("pnn", 5, 1, 2)],
)
def test_law_3_compile_once(method, tasks, epochs, count):
    built = build(method, tasks, count, epochs)
    run(built)
    assert {"start", "begin_task", "epoch", "end", "evaluate"} <= set(built.traces)
    assert set(built.traces.values()) == {1}
    # Neither other seeds nor other values of the settings are compiled again.
    run(built._replace(seeds=built.seeds + 7, settings={"learning_rate": RATES[-count:]}))
    assert set(built.traces.values()) == {1}


def test_law_3_pnn_grows_by_doubling_and_gives_the_same_numbers(monkeypatch):
    """A few programs for many columns: how much room they have is not seen in the results."""
    monkeypatch.setattr(pnn, "COLUMNS", 2)
    benchmark, seeds = digits(5), [3, 1]
    studies = recipes.studies("pnn", benchmark, OPTIONS, seeds, devices=jax.devices()[:1])
    assert [len(one.benchmark.tasks) for one in studies] == [2, 4, 5]

    def learn(studies):
        ends = [e for e in study.run(studies) if isinstance(e, study.TaskEnd)]
        columns = jax.device_get(ends[-1].learners.state.columns)
        return columns, np.stack([end.accuracy for end in ends], 1)

    columns, accuracy = learn(studies)
    expected_columns, expected = learn(studies[-1:])
    assert study.compilations(studies) == 3
    jax.tree.map(
        lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-4),
        columns,
        expected_columns,
    )
    finished = np.tril_indices(5)
    np.testing.assert_allclose(accuracy[:, *finished], expected[:, *finished], atol=1e-6)
    assert np.isnan(accuracy[:, :2, 2:]).all() and np.isnan(accuracy[:, :4, 4]).all()


def test_law_3_bites_masks_in_the_closure():
    tasks = 3
    built = build("packnet", tasks, 1, epochs=1)

    @functools.cache
    def compiled(task):
        def epoch(learner, fixed, data, index, first, last):
            mask = masks[task]
            setup = built.recipe({"learning_rate": RATES[0]})
            method = setup.method._replace(trainable=lambda theta, state, task: mask)
            setup = setup._replace(method=method)
            learner = learner._replace(state=fixed[1])
            number = jnp.int32(task)
            learner, metrics = train.steps(setup, learner, data, number, index, first, last)
            return learner._replace(state=()), (metrics, learner.position.finite)

        def count():
            traces["epoch"] += 1

        return replicas.spread(epoch, built.layout, count=count, in_place=True)

    def epoch(learners, fixed, data, task, index, first, last, done):
        theta, state = row(jax.device_get((learners.theta, fixed[1])), 0)
        masks.setdefault(int(task), built.recipe({}).method.trainable(theta, state, task))
        return compiled(int(task))(learners, fixed, data, index, first, last)

    masks, traces = {}, Counter()
    run(built._replace(programs=built.programs | {"epoch_0": epoch}))
    assert traces["epoch"] == tasks
