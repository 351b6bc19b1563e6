"""The laws for the methods that replay: vmap, compile once, the kept state, the cost of a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import jaxcl
from jaxcl import data, models, recipes, study, train
from jaxcl.core.method import Batch
from jaxcl.methods import replay
from jaxcl.train.forward import lend

METHODS = ("er", "agem", "der", "derpp")
MAKE = {"er": jaxcl.er, "agem": jaxcl.agem, "der": jaxcl.der, "derpp": jaxcl.derpp}
SEEDS = np.array([3, 1, 2], np.uint32)
RATES = np.array([0.01, 0.02, 0.03], np.float32)


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


def build(method, optimizer, tasks=3, replicas=3, epochs=2):
    options = recipes.Options(hidden=(6,), batch=16, optimizer=optimizer)
    choice = recipes.choose(method, options, memory=12)
    benchmark = digits(tasks)
    settings = {"learning_rate": RATES[:replicas]}
    if "alpha" in recipes.swept(choice.spec):
        settings["alpha"] = 10 * RATES[:replicas]
    return study.build(
        recipes.recipe(choice, benchmark), benchmark, SEEDS[:replicas], epochs=epochs,
        settings=settings, devices=jax.devices()[:1],
    )  # fmt: skip


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def run(built):
    """The learners at the end; [replicas, ...]."""
    *_, last = (event for event in study.run(built) if isinstance(event, study.TaskEnd))
    learners = last.learners._replace(key=jax.random.key_data(last.learners.key))
    return row(jax.device_get(learners), slice(len(built.seeds)))


def same(a, b):
    """Exact for integers, so for what the memory holds; else but for rounding."""
    if not np.issubdtype(a.dtype, np.floating):
        return np.array_equal(a, b)
    return np.allclose(a, b, rtol=1e-3, atol=1e-4)


def differing(together, singles):
    matches = [jax.tree.map(same, single, row(together, i)) for i, single in enumerate(singles)]
    return [i for i, match in enumerate(matches) if not all(jax.tree.leaves(match))]


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("er", "momentum"), ("er", "adam"), ("agem", "adam"), ("der", "momentum"), ("derpp", "adam")],
)
def test_law_2_each_row_is_the_single_run_and_law_3_compile_once(method, optimizer):
    built, one = build(method, optimizer), build(method, optimizer, replicas=1)

    def alone(i):
        settings = {name: values[i : i + 1] for name, values in built.settings.items()}
        return row(run(one._replace(seeds=SEEDS[i : i + 1], settings=settings)), 0)

    singles, together = [alone(i) for i in range(3)], run(built)
    assert differing(together, singles) == []
    # Law 3, of both studies, with three seeds and settings one after the other in the second.
    assert set(built.traces.values()) == {1} and set(one.traces.values()) == {1}
    # The broken twins: the memories, or the networks, are all those of the first replica.
    for name in ("memory", "theta"):
        first = jax.tree.map(lambda leaf: leaf[[0] * 3], getattr(together, name))
        assert differing(together._replace(**{name: first}), singles) == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_memory_goes_back_with_the_kept_state(method):
    """What is restored at a phase's end is the memory of that epoch, not of the last one."""
    benchmark = digits(2)
    choice = recipes.choose(
        method, recipes.Options(hidden=(6,), batch=16, select="loss"), memory=12
    )
    setup = recipes.recipe(choice, benchmark)({})
    split = benchmark.tasks[0].train
    setup = setup._replace(sample=jax.ShapeDtypeStruct(benchmark.shape, split.x.dtype))
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), 2), 0)
    step = jax.jit(functools.partial(train.epoch, setup))
    examples = train.examples(split.x, split.y)
    first = step(learner, examples, 0, 0, validation=examples)[0]
    worse = train.examples(split.x, (split.y + 1) % 10)
    last = step(first, examples, 0, 1, validation=worse)[0]
    ended = train.end_phase(setup, last)
    equal = functools.partial(jax.tree.map, lambda a, b: bool((a == b).all()))
    assert all(jax.tree.leaves(equal(ended.memory, first.memory)))
    assert not jax.tree.leaves(equal(last.memory, first.memory))[0]
    assert int(ended.memory.count.sum()) == 40 < int(last.memory.count.sum())


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_counted_as_cost(method):
    """Bytes, labels, tasks and logits of each example, and a number for each cell."""
    benchmark = digits(3)
    choice = recipes.choose(method, recipes.Options(hidden=(6,)), memory=12)
    built = study.build(recipes.recipe(choice, benchmark), benchmark, [0], epochs=1)
    learners = jax.eval_shape(
        built.programs["start"], jax.ShapeDtypeStruct((4,), jnp.uint32), ({},)
    )
    learner = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), learners)
    of_x = 64 * benchmark.tasks[0].train.x.dtype.itemsize
    logits, cells = 40 if "der" in method else 0, 3 if method == "agem" else 1
    expected = 12 * (of_x + 4 + 4 + logits) + 4 * cells
    assert recipes.cost(choice, benchmark, learner)[1] == expected


# What a step computes.


def products(jaxpr):
    """The multiplications of all matrix products of a program, each loop's body once."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * int(np.prod([left[i] for i in contracted]))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: isinstance(p, (Jaxpr, ClosedJaxpr))
        ):
            if isinstance(inner, ClosedJaxpr):
                total += products(inner.jaxpr)
            elif isinstance(inner, Jaxpr):
                total += products(inner)
    return total


def step_products(method, tasks, heads="(^|/)head(/|$)"):
    sample, batch, classes = jax.ShapeDtypeStruct((50,), jnp.float32), 8, 2
    made = MAKE[method](jaxcl.multihead(jaxcl.finetune(), tasks, heads), 16)
    model = models.mlp(50, (40, 30), classes)
    setup = train.Setup(
        made, model, optax.sgd(0.1), batch=batch, sample=sample, classes=[classes] * tasks
    )
    examples = train.examples(np.zeros((32, 50), "f4"), np.zeros(32, "i4"))
    learner = jax.eval_shape(lambda key: train.start(setup, key, tasks), jax.random.key(0))
    program = jax.make_jaxpr(functools.partial(train.epoch, setup))(learner, examples, 0, 0)
    return products(program.jaxpr)


@pytest.mark.parametrize("method", METHODS)
def test_only_heads_are_computed_for_each_task(method):
    """A pass over rows of several tasks repeats what depends on the task, and not the trunk."""
    batch, classes, trunk, last = 8, 2, 50 * 40 + 40 * 30, 30
    passes = {"er": 2, "agem": 1, "der": 1, "derpp": 2}[method]  # of so many batches, per-row heads
    head = 3 * passes * batch * last * classes  # forward, and the gradients of head and input
    few, many = step_products(method, 2), step_products(method, 12)
    dots = 2 * (last + 1) * classes if method == "agem" else 0  # of gradients, per head
    assert many - few == 10 * (head + dots)
    whole = 3 * batch * (trunk + last * classes) - batch * 50 * 40  # raw inputs need no gradient
    gradients = 2 * (trunk + 70) if method == "agem" else 0
    assert few < (passes + (method != "er")) * whole + gradients + 2 * (head + dots)
    everything = step_products(method, 12, heads="") - step_products(method, 2, heads="")
    assert everything > 10 * passes * batch * trunk  # the twin: all leaves are each task's own


@pytest.mark.parametrize("method", METHODS)
def test_replay_passes_leave_running_statistics_alone(method):
    """Those move by the pass over the batch: in ER with what it replays, else as without memory."""
    model = models.from_nnx(functools.partial(normalized))
    sample = jax.ShapeDtypeStruct((5,), jnp.float32)
    x = np.random.default_rng(0).normal(0, 1, (2, 8, 5)).astype("f4")
    tasks = [train.examples(x[t] + 3 * t, np.arange(8, dtype="i4") % 3) for t in range(2)]

    def statistics(method):
        setup = train.Setup(
            method, model, optax.sgd(0.0), batch=8, sample=sample, classes=[3, 3], norm="shared"
        )
        step = jax.jit(functools.partial(train.epoch, setup))
        learner = train.start(setup, jax.random.key(0), 2)
        for task in range(2):
            learner = train.begin_task(setup, learner, task)
            learner, _ = step(learner, tasks[task], task, 0)
        return jax.tree.leaves(learner.statistics)[0]

    base = jaxcl.multihead(jaxcl.finetune(), 2)
    plain, own = statistics(base), statistics(MAKE[method](base, 16))
    assert np.allclose(plain, own, atol=1e-5) == (method != "er")


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_memory_has_no_part_in_the_first_step_of_a_network_with_norms(method):
    base, x = jaxcl.multihead(jaxcl.finetune(), 2), np.eye(4, 5, dtype="f4")
    sample = jax.ShapeDtypeStruct((5,), jnp.float32)

    def after_a_step(method):
        model = models.from_nnx(functools.partial(normalized))
        setup = train.Setup(
            method, model, optax.sgd(0.1), batch=4, sample=sample, classes=[3, 3], norm="shared"
        )
        learner = train.begin_task(setup, train.start(setup, jax.random.key(0), 2), 0)
        step = jax.jit(functools.partial(train.epoch, setup))
        return step(learner, train.examples(x, np.arange(4) % 3), 0, 0)[0].theta

    plain, own = after_a_step(base), after_a_step(MAKE[method](base, 16))
    assert method == "er" or all(map(np.allclose, *map(jax.tree.leaves, (plain, own))))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own))


@pytest.mark.parametrize("method", METHODS)
def test_examples_are_stored_as_they_are_and_augmented_whenever_they_are_replayed(method):
    def apply(params, statistics, x, train=False, key=None):
        logits = x @ params["kernel"]
        return jnp.where(x[:, :1] < 5, jnp.nan, logits) if train else logits, statistics

    model = jaxcl.Model(lambda key: ({"kernel": jnp.ones((4, 2))}, {}), apply)
    rings = {"tasks": 2} if method == "agem" else {}
    setup = train.Setup(
        MAKE[method](jaxcl.finetune(), 6, **rings), model, optax.sgd(1e-3), batch=4, classes=[2, 2],
        scenario="domain", sample=jax.ShapeDtypeStruct((4,), jnp.float32),
        augment=lambda key, x: x + 10,
    )  # fmt: skip
    x = np.random.default_rng(0).random((6, 4), np.float32)
    learner = train.start(setup, jax.random.key(0), 2)
    for task in range(2):
        learner = train.begin_task(setup, learner, task)
        step = jax.jit(functools.partial(train.epoch, setup))
        learner, _ = step(learner, train.examples(x, np.arange(6) % 2), task, 0)
    assert {*map(bytes, np.asarray(learner.memory.x))} <= {*map(bytes, x)}
    assert np.isfinite(learner.theta["kernel"]).all()


def normalized(rngs):
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(5, momentum=0.5, rngs=rngs)
            self.head = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(x))

    return Net()


def test_passes_with_keys_of_their_own_drop_other_units():
    model = models.mlp(5, (50,), 3, dropout=0.5)
    setup = train.Setup(jaxcl.finetune(), model, optax.sgd(0.1), classes=[3, 3])
    learner, rows = train.start(setup, jax.random.key(0), 2), Batch(jnp.ones((4, 5)), None)
    context = lend(setup, learner.statistics, 0, jax.random.key(1), 0.5)
    keys = [jax.random.fold_in(context.key, use) for use in (replay.PASS, replay.SECOND_PASS)]

    def logits(**key):
        return np.asarray(context.logits(learner.theta, (), rows, train=True, **key))

    first, second = (logits(key=key) for key in keys)
    assert np.array_equal(logits(), logits(key=context.key)) and np.array_equal(
        first, logits(key=keys[0])
    )
    assert not np.allclose(first, second) and not np.allclose(first, logits())
