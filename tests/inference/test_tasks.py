"""Which task an example belongs to: each rule against its definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl.inference import tasks
from tests.inference import trained_runs

T, B, C = 3, 10, 4
CLASSES = (2, 4, 3)


def nets():
    """A linear softmax for each task, and examples."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 1.5, (T, 5, C)).astype("f4"), rng.normal(0, 1, (B, 5)).astype("f4")


def logits_of(weights, x, classes=CLASSES):
    """[T, B, C] in float64, -inf where a task lacks a class."""
    logits = x.astype(np.float64) @ weights
    absent = np.arange(C)[None, :] >= np.array(classes)[:, None]
    return np.where(absent[:, None, :], -np.inf, logits)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


def scores(rule, weights, x, temperature):
    """The definitions, straight."""
    z = logits_of(weights, x) / temperature
    if rule == "entropy":
        return -entropy(softmax(z)).T
    if rule == "softmax":
        return np.log(softmax(z).max(-1)).T
    if rule == "energy":
        return temperature * np.log(np.exp(z).sum(-1)).T

    def mixed(a):  # one superposition of all tasks' weights, whose entropy is differentiated
        z = x.astype(np.float64) @ np.tensordot(a, weights.astype(np.float64), 1) / temperature
        return entropy(softmax(np.where(np.arange(C)[None, :] < max(CLASSES), z, -np.inf)))

    even, step = np.full(T, 1 / T), 1e-6 * np.eye(T)
    return np.stack([-(mixed(even + s) - mixed(even - s)) / 2e-6 for s in step], -1)


def infer(rule, weights, x, **options):
    return jaxcl.infer(
        lambda w, x: x @ w, lambda t: jnp.asarray(weights)[t], jnp.asarray(x), T, rule,
        classes=CLASSES, **options,
    )  # fmt: skip


@pytest.mark.parametrize("rule", tasks.RULES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_rules_are_their_definitions(rule, temperature):
    weights, x = nets()
    calibration = tasks.Calibration(temperature, np.zeros(T))
    found = infer(rule, weights, x, calibration=calibration)
    expected = scores(rule, weights, x, temperature)
    np.testing.assert_allclose(found.scores, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(found.task, expected.argmax(-1))
    assert len({*np.asarray(found.task).tolist()}) > 1
    # The broken twins: the wrong way round, and the classes that a task lacks among its logits.
    assert not np.allclose(found.scores, -expected, atol=1e-2)
    if rule != "gradient":
        unmasked = jaxcl.infer(lambda w, x: x @ w, lambda t: jnp.asarray(weights)[t], x, T, rule)
        assert not np.allclose(unmasked.scores, expected, atol=1e-2)


def test_the_gradient_is_that_of_the_mixture_of_parameters_and_not_of_logits():
    """The two differ in a network of two layers."""
    rng = np.random.default_rng(1)
    first, second = (rng.normal(0, 1, (T, 4, 4)).astype("f4") for _ in range(2))
    x = rng.normal(0, 1, (B, 4)).astype("f4")

    def apply(view, x):
        return jax.nn.relu(x @ view[0]) @ view[1]

    def view(task):
        return jnp.asarray(first)[task], jnp.asarray(second)[task]

    def mixed(a):
        hidden = np.maximum(x @ np.tensordot(a, first.astype(np.float64), 1), 0)
        return entropy(softmax(hidden @ np.tensordot(a, second.astype(np.float64), 1)))

    def mixed_logits(a):
        each = [np.maximum(x @ first[t], 0) @ second[t] for t in range(T)]
        return entropy(softmax(np.tensordot(a, np.stack(each), 1)))

    def slopes(of):
        even, step = np.full(T, 1 / T), 1e-6 * np.eye(T)
        return np.stack([-(of(even + s) - of(even - s)) / 2e-6 for s in step], -1)

    found = jaxcl.infer(apply, view, jnp.asarray(x), T, "gradient").scores
    np.testing.assert_allclose(found, slopes(mixed), rtol=1e-3, atol=1e-3)
    assert not np.allclose(found, slopes(mixed_logits), atol=1e-1)


def test_offsets_and_batches_of_one_task():
    weights, x = nets()
    each = scores("entropy", weights, x, 1.0)
    offset = np.array([0.3, -0.2, 0.1])
    found = infer("entropy", weights, x, calibration=tasks.Calibration(1.0, offset))
    np.testing.assert_array_equal(found.task, (each + offset).argmax(-1))
    x, each = x[:8], each[:8]  # three groups, of 3, 3 and 2
    groups = [each[i : i + 3].mean(0).argmax() for i in range(0, 8, 3)]
    found = infer("entropy", weights, x, batch=3).task
    np.testing.assert_array_equal(found, np.repeat(groups, 3)[:8])
    assert len({*groups}) > 1
    assert not np.array_equal(infer("entropy", weights, x).task, found)


def test_one_mapped_pass_does_once_what_all_tasks_share():
    calls = []
    weights, x = nets()

    def apply(w, x):
        calls.append(w.shape)
        return x @ w

    jaxcl.infer(apply, lambda t: jnp.asarray(weights)[t], x, T)
    assert calls == [weights.shape[1:]]


def test_calibration_finds_the_offset_that_was_hidden():
    """All networks are alike surer of their own examples, but one boasts."""
    rng = np.random.default_rng(2)
    task = np.repeat(np.arange(T), 40)
    right = rng.normal(0, 0.3, (len(task), T)) + 2.0 * np.eye(T)[task]
    boast = np.array([0.0, 3.0, 0.0])
    strength = (right + boast).astype("f4")  # what apply makes a logit of, by the task's view

    def apply(view, x):
        return x @ view

    def view(t):
        return jnp.stack([jnp.eye(T)[t], jnp.zeros(T)], 1)

    before = jaxcl.infer(apply, view, strength, T, "softmax").task
    fitted = jaxcl.calibrate(apply, view, strength, task, T, "softmax", size=50)
    after = jaxcl.infer(apply, view, strength, T, "softmax", calibration=fitted).task
    assert (np.asarray(before) == task).mean() < 0.7
    assert (np.asarray(after) == task).mean() > 0.95
    assert fitted.offset[1] < min(fitted.offset[0], fitted.offset[2])


def test_offsets_are_those_of_a_logistic_regression():
    """At the optimum each task is expected as often as it is there."""
    rng = np.random.default_rng(3)
    task = rng.integers(0, T, 60)
    values = (rng.normal(0, 1, (60, T)) + np.eye(T)[task]).astype("f4")
    weight = np.full(60, 1 / 60, "f4")
    _, offset = jax.jit(tasks.fit_offsets)(values, task, weight)
    slopes = np.geomspace(0.2, 5, 60)

    def loss(slope, offset):
        z = slope * (values + offset)
        return np.mean(np.log(np.exp(z).sum(-1)) - z[np.arange(60), task])

    best = min(slopes, key=lambda slope: loss(slope, np.asarray(offset)))
    expected = softmax(best * (values + np.asarray(offset))).mean(0)
    np.testing.assert_allclose(expected, np.bincount(task) / 60, atol=0.02)
    assert not np.allclose(softmax(best * values).mean(0), np.bincount(task) / 60, atol=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "surest"}, "infer: rule must be one of 'entropy'"),
        ({"tasks": 0}, "infer: tasks must be a whole number of at least 1"),
        ({"batch": 0}, "infer: batch must be a whole number"),
        ({"classes": (2, 2)}, "classes has 2 entries for 3 tasks"),
        ({"classes": (2, 0, 2)}, "classes must be at least 1"),
        ({"calibration": tasks.Calibration(0.0, np.zeros(T))}, "temperature must be above 0"),
    ],
)
def test_bad_input(options, said):
    weights, x = nets()
    options = {"tasks": T, **options}
    with pytest.raises(ValueError, match=said):
        jaxcl.infer(lambda w, x: x @ w, lambda t: jnp.asarray(weights)[t], x, **options)


def test_what_cannot_be_mixed_is_named():
    found = trained_runs.trained_predictor("pnn")._replace(rule="gradient")
    with pytest.raises(ValueError, match="'0/task' is int32; choose another rule"):
        found.infer(trained_runs.examples(0)[0])
    with pytest.raises(ValueError, match=r"each of 3 tasks needs examples, got \[10, 0, 0\]"):
        jaxcl.calibrate(lambda w, x: x @ w, lambda t: nets()[0][t], nets()[1], [0] * 10, T)
