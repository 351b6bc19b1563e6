"""What holds for every method that adds a term to the loss: laws 2 and 3, scenarios, strength 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import data, models, recipes, study, train
from jaxcl.methods import find
from jaxcl.methods.spec import Problem

METHODS = ("ewc", "si", "mas", "lwf")
# Not lwf under adam, which makes steps of the rounding between a network and itself as teacher.
OPTIMIZERS = [
    ("ewc", "adam"),
    ("si", "momentum"),
    ("si", "adam"),
    ("mas", "momentum"),
    ("lwf", "momentum"),
]
STRONG = {"ewc": 1e5, "si": 1e3, "mas": 1e2, "lwf": 10.0}
TASKS = 3
SEEDS = [3, 1, 3]
STRENGTH = np.array([0.0, 20.0, 50.0], np.float32)


@functools.cache
def digits():
    """Split digits, a few of each task, which differ in length."""
    full = data.load("split_digits")

    def cut(split, count):
        return data.Split(split.x[:count], split.y[:count])

    tasks = tuple(
        task._replace(train=cut(task.train, 40 + i), val=cut(task.val, 9), test=cut(task.test, 9))
        for i, task in enumerate(full.tasks[:TASKS])
    )
    return full._replace(tasks=tasks)


def build(method, optimizer="momentum", rows=slice(None), **settings):
    """A study of several strengths."""
    shared = recipes.Options(
        hidden=(6,), batch=16, epochs=2, optimizer=optimizer, learning_rate=0.02,
        reset_optimizer=False,
    )  # fmt: skip
    [built] = recipes.studies(
        recipes.choose(method, shared), digits(), seeds=SEEDS[rows],
        settings={name: value[rows] for name, value in settings.items()},
        devices=jax.devices()[:1], chunk=3,
    )  # fmt: skip
    return built


def run(built):
    """All that it gives."""
    ends = [event for event in study.run(built) if isinstance(event, study.TaskEnd)]
    learners = ends[-1].learners
    learners = jax.device_get(learners._replace(key=jax.random.key_data(learners.key)))
    return learners, np.stack([end.accuracy for end in ends], 1)


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def close(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.allclose(x, y, 1e-3, 1e-4), a, b)))


@pytest.mark.parametrize(("method", "optimizer"), OPTIMIZERS)
def test_laws_2_and_3_with_traced_strengths(method, optimizer):
    built = build(method, optimizer, strength=STRENGTH)
    learners, accuracy = run(built)
    single = build(method, optimizer, slice(0, 1), strength=STRENGTH)
    for i in range(len(SEEDS)):
        one = {"seeds": built.seeds[i : i + 1], "settings": {"strength": STRENGTH[i : i + 1]}}
        alone, expected = run(single._replace(**one))
        assert close(row(learners, i), row(alone, 0)), i
        np.testing.assert_allclose(accuracy[i], expected[0], atol=1e-6)
    assert set((built.traces + single.traces).values()) == {2}  # once each
    # Rows 0 and 2 have one seed, but not one strength: a strength that is lost would be seen.
    assert not close(row(learners.theta, 0), row(learners.theta, 2))


@pytest.mark.parametrize("method", METHODS)
def test_without_strength_there_is_fine_tuning(method):
    found, _ = run(build(method, "momentum", slice(0, 1), strength=STRENGTH))
    plain, _ = run(build("finetune", "momentum", slice(0, 1)))
    assert close(found.theta["layers"], plain.theta["layers"])  # old heads may coast under lwf


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("method", METHODS)
def test_protects_in_every_scenario(method, scenario):
    """The first task's network moves less than under fine-tuning."""
    spec, classes = find(method), 2 * TASKS if scenario == "class" else 2
    assert scenario in spec.scenarios
    model = models.mlp(64, (12,), classes)
    own = jaxcl.core.heads.HEAD if scenario == "task" else None
    problem = Problem(TASKS, lambda width=1.0: model, own, scenario=scenario)
    tasks = [train.examples(*task.train, length=48) for task in digits().tasks]

    def moved(strength):
        built = spec.build(problem, spec.options(strength=strength))
        setup = train.Setup(
            built.method, built.model, optax.adam(0.01), data.normalize(digits()),
            classes=(2,) * TASKS, batch=16, scenario=scenario, norm=built.norm,
            sample=jax.ShapeDtypeStruct((64,), jnp.uint8),
        )  # fmt: skip
        begin, epoch, end = (
            jax.jit(functools.partial(f, setup))
            for f in (train.begin_task, train.epoch, train.end_task)
        )
        learner, seen = train.start(setup, jax.random.key(0), TASKS), []
        for task in range(2):
            learner = begin(learner, task)
            for index in range(3):
                learner, _ = epoch(learner, tasks[task], task, index)
            learner = end(learner, task, tasks[task])
            view, _ = train.network(setup, learner, 0)
            logits = model.apply(view, {}, data.normalize(digits())(tasks[0].x))[0][:40, :2]
            seen.append(jax.nn.log_softmax(logits))
        return float(jnp.abs(seen[1] - seen[0]).mean())

    assert 0 < moved(STRONG[method]) < 0.9 * moved(0.0)
