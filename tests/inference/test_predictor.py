"""A trained learner as a function of stored inputs, and what it is measured to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import train
from jaxcl.core import masks
from jaxcl.inference import inputs
from jaxcl.inference.inputs import Inputs
from jaxcl.inference.measuring import after_each, measure
from jaxcl.inference.predictor import SIZE, predictor
from jaxcl.methods import REGISTRY
from tests.inference import trained_runs
from tests.inference.trained_runs import INPUTS, TASKS, examples

ISOLATING = [s.name for s in REGISTRY if trained_runs.setup_of(s.name).method.isolates]


def test_there_are_methods_that_isolate():
    assert {"packnet", "hat", "pnn", "independent"} <= {*ISOLATING}


@pytest.mark.parametrize("method", [*ISOLATING, "er"])
def test_logits_are_those_of_the_engine(method):
    """One column for each class of the task, from the bytes that were stored."""
    found, (setup, learner) = trained_runs.trained_predictor(method), trained_runs.trained(method)
    for task in range(TASKS):
        x, y = examples(task, 9, seed=5)
        params, statistics = train.network(setup, learner, task)
        expected = setup.model.apply(params, statistics, setup.prepare(jnp.asarray(x)))[0]
        logits = found.logits(x, task)
        assert logits.shape == (9, INPUTS.classes[task])
        np.testing.assert_allclose(logits, expected[:, : logits.shape[1]], 1e-5, 1e-5)
        np.testing.assert_array_equal(found.predict(x, task), logits.argmax(-1))
        np.testing.assert_allclose(found.probabilities(x, task).sum(-1), 1, 1e-6)
        data = train.examples(x, y)
        told = train.evaluate(setup, learner, data, task).accuracy
        np.testing.assert_allclose((found.predict(x, task) == y).mean(), told, 1e-6)


def test_batches_make_no_difference_but_rounding():
    found = trained_runs.trained_predictor("packnet")
    x = examples(1, SIZE + 3)[0]
    whole = found.logits(x, 1)
    np.testing.assert_allclose(whole[:3], found.logits(x[:3], 1), 1e-5, 1e-6)
    assert len(whole) == SIZE + 3
    np.testing.assert_array_equal(whole, found.logits(x, 1))


def test_a_task_for_each_image_and_the_inferred_one():
    found = trained_runs.trained_predictor("hat")
    x = np.concatenate([examples(task, 4)[0] for task in range(TASKS)])
    each = np.repeat(np.arange(TASKS), 4)
    expected = np.concatenate([found.predict(x[each == t], t) for t in range(TASKS)])
    np.testing.assert_array_equal(found.predict(x, each), expected)
    inferred = found.infer(x)
    np.testing.assert_array_equal(found.predict(x, "infer"), found.predict(x, inferred.task))
    assert inferred.scores.shape == (12, TASKS)
    assert inferred.logits.shape == (TASKS, 12, max(INPUTS.classes))


@pytest.mark.parametrize(
    ("method", "rule"),
    [*((name, "entropy") for name in ISOLATING), ("packnet", "gradient"), ("hat", "gradient")],
)
def test_measured_told_and_inferring(method, rule):
    """By hand from the logits; heads of 2, 3 and 2 classes."""
    found = trained_runs.trained_predictor(method)
    tests = [examples(task, 10 + task, seed=7) for task in range(TASKS)]
    found = found.calibrated([examples(task, 8, seed=6)[0] for task in range(TASKS)], rule)
    result = measure(found, tests)
    assert result.confusion.shape == (TASKS, TASKS)
    np.testing.assert_allclose(result.confusion.sum(-1), 1)
    for task, (x, y) in enumerate(tests):
        chosen = found.infer(x).task
        answers = [found.logits(x[i : i + 1], int(t)).argmax() for i, t in enumerate(chosen)]
        told, right = found.predict(x, task) == y, np.array(answers) == y
        np.testing.assert_allclose(result.told[task], told.mean())
        np.testing.assert_allclose(result.tasks[task], (chosen == task).mean())
        np.testing.assert_allclose(result.classes[task], right.mean())
        np.testing.assert_allclose(result.inferred[task], (right & (chosen == task)).mean())
    assert np.all(result.inferred <= np.minimum(result.classes, result.tasks) + 1e-9)


def test_after_each_task_as_it_was_measured_then():
    """Of networks that stay as they are: what each learner on the way is measured to do."""
    tests = [examples(task, 10 + task, seed=7) for task in range(TASKS)]
    held_out = [examples(task, 8, seed=6)[0] for task in range(TASKS)]
    found = after_each(trained_runs.trained_predictor("packnet"), held_out, tests)
    for count in range(1, TASKS + 1):
        then = trained_runs.trained_predictor("packnet", count).calibrated(held_out[:count])
        for one, other in zip(found[count - 1], measure(then, tests[:count])):
            np.testing.assert_allclose(one, other)
    # The broken twin: the calibration of the end, of which some row differs.
    assert not np.array_equal(found[1].confusion, found[2].confusion[:2, :2])
    with pytest.raises(ValueError, match="after_each: rule must be one of 'entropy'"):
        after_each(
            trained_runs.trained_predictor("packnet")._replace(rule="gradient"), held_out, tests
        )


@pytest.mark.parametrize("method", [*ISOLATING, "den", "finetune"])
def test_masks_say_what_changes_the_logits(method):
    """Noise where a task uses nothing is not seen; the broken twin has noise where it does."""
    found, setup = trained_runs.trained_predictor(method), trained_runs.trained(method)[0]
    x = examples(1)[0]
    params, statistics, used = found.params(1), found.statistics(1), found.masks(1)
    assert jax.tree.structure(params) == jax.tree.structure(used)

    def run(params):
        return np.asarray(setup.model.apply(params, statistics, setup.prepare(jnp.asarray(x)))[0])

    def noisy(keep):
        def change(leaf, mask):
            return leaf if leaf.dtype != jnp.float32 else jnp.where(mask == keep, leaf, leaf + 1)

        return jax.tree.map(change, params, used)

    if method in ("hat", "packnet", "expandnet", "cpg"):
        assert not all(mask.all() for mask in jax.tree.leaves(used))
    zeros = jax.tree.map(lambda leaf, mask: jnp.asarray(leaf)[~mask], params, used)
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))
    assert not np.allclose(run(noisy(False)), run(params))
    if method == "hat":  # its closed gates hide what is there
        np.testing.assert_array_equal(run(noisy(True)), run(params))


def test_masks_are_those_of_the_owners():
    found, (_, learner) = trained_runs.trained_predictor("packnet"), trained_runs.trained("packnet")
    used = masks.leaves_by_path(found.masks(1))
    for path, owner in learner.state.owner.items():
        np.testing.assert_array_equal(used[path], (owner > 0) & (owner <= 2))


def test_shared_heads_need_no_task_and_have_none_to_infer():
    setup = trained_runs.setup_of("finetune", scenario="class")
    learner = train.start(setup, jax.random.key(0), TASKS)
    learner = train.begin_task(setup, learner, 1)
    found = predictor(setup, learner, 2, INPUTS)
    assert found.logits(examples(0)[0]).shape == (12, 5)  # 2 + 3 classes so far
    with pytest.raises(ValueError, match="there is no task to infer"):
        found.predict(examples(0)[0], "infer")


@pytest.mark.parametrize(
    ("images", "task", "said"),
    [
        (np.zeros((2, 7), np.uint8), 0, r"expected images \[N, 6\], got shape \(2, 7\)"),
        (np.zeros(6, np.uint8), 0, r"got shape \(6,\)"),
        (np.zeros((0, 6), np.uint8), 0, "there are no images"),
        (np.full((2, 6), 0.5), 0, "uint8 .* got float64 from 0.5 to 0.5"),
        (np.full((2, 6), 300), 0, "got int64 from 300 to 300"),
        (np.full((2, 6), -1), 0, "from -1 to -1"),
        (np.zeros((0, 6)), 0, "there are no images"),
        (np.full((2, 6), "a"), 0, "expected images of numbers, got <U1"),
        (np.full((2, 6), None), 0, "expected images of numbers, got object"),
        ([[0] * 6, [0] * 5], 0, "expected one array of images"),
        (np.zeros((2, 6), np.uint8), 3, "from 0 to 2, the finished tasks, got 3"),
        (np.zeros((2, 6), np.uint8), True, "got True"),
        (np.zeros((2, 6), np.uint8), None, "is told the task: give its number"),
        (np.zeros((2, 6), np.uint8), "guess", "one for each image or 'infer', got 'guess'"),
        (np.zeros((2, 6), np.uint8), [0, 1, 2], r"task has shape \(3,\) for 2 images"),
        (np.zeros((2, 6), np.uint8), [0, 5], "the finished tasks, got 5"),
    ],
)
def test_bad_input(images, task, said):
    with pytest.raises(ValueError, match=said):
        trained_runs.trained_predictor("packnet").predict(images, task)


def test_only_finished_tasks_have_a_network():
    setup, learner = trained_runs.trained("packnet", 2)
    found = predictor(setup, learner, 2, INPUTS)
    assert found.infer(examples(0)[0]).scores.shape == (12, 2)
    with pytest.raises(ValueError, match="0 to 1, the finished tasks"):
        found.predict(examples(2)[0], 2)
    with pytest.raises(ValueError, match="task 0 was forgotten"):
        found._replace(forgotten=(0,)).predict(examples(0)[0], 0)
    assert set(found._replace(forgotten=(0,)).infer(examples(0)[0]).task) == {1}


# Inputs


def test_values_that_no_network_was_trained_on():
    tokens = Inputs((2,), "int64", 0.0, 1.0, 1.0, (2,))
    with pytest.raises(ValueError, match=r"int64 .* from 0 to 1.09951e\+12"):  # it would wrap
        tokens.stored(np.array([[0, 2**40]]))
    numbers = Inputs((2,), "float32", 0.0, 1.0, 1.0, (2,))
    with pytest.raises(ValueError, match="NaN or infinite"):
        numbers.stored(np.array([[0.0, np.nan]], np.float32))


def test_images_for_a_network_of_vectors_and_integers_of_any_type():
    flat = Inputs((12,), "uint8", 0.0, 1.0, 255.0, (2,))
    images = np.arange(36).reshape(3, 4, 3)
    assert flat.stored(images).dtype == np.uint8
    np.testing.assert_array_equal(flat.stored(images), images.reshape(3, 12))
    grey = flat._replace(shape=(4, 3, 1))
    assert grey.stored(images.astype(np.uint8)).shape == (3, 4, 3, 1)


def test_inputs_survive_json():
    import json

    from jaxcl import data

    benchmark = data.permuted_digits(3)
    found = inputs.read(json.loads(json.dumps(inputs.plain(inputs.of(benchmark)))))
    assert found == inputs.of(benchmark)
    hollow = found.benchmark("permuted_digits")
    assert hollow._replace(tasks=()) == benchmark._replace(tasks=(), **_extra(benchmark, hollow))
    split = inputs.of(data.split_digits(2))
    assert split.names == (("0", "1", "2", "3", "4"), ("5", "6", "7", "8", "9"))
    assert inputs.read(json.loads(json.dumps(inputs.plain(split)))) == split
    x = benchmark.tasks[0].test.x[:5]
    np.testing.assert_array_equal(found.arrange(x, 2), benchmark.tasks[2].test.x[:5])
    assert not np.array_equal(x, benchmark.tasks[2].test.x[:5])


def _extra(benchmark, hollow):
    """What a benchmark says of its examples, which the hollow one does not have."""
    known = {"name", "tasks", "mean", "std", "shape", "scale", "permutation"}
    return {name: getattr(hollow, name) for name in {*benchmark._fields} - known}


def test_a_network_that_gives_numbers():
    found = trained_runs.trained_predictor("packnet")
    found = found._replace(inputs=INPUTS._replace(targets=True))
    x = examples(1)[0]
    np.testing.assert_array_equal(found.predict(x, 1), found.logits(x, 1))
    assert found.predict(x, [1] * len(x)).shape == (len(x), 3)
    with pytest.raises(ValueError, match="gives numbers, not classes"):
        found.probabilities(x, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": []}, "shape must be a list of 1 to"),
        ({"shape": [-1]}, "shape must be a whole number from 1"),
        ({"shape": [2**30, 2**30]}, "more entries than an array can have"),
        ({"dtype": "object"}, "dtype must be that of images or tokens, got 'object'"),
        ({"classes": "ab"}, "classes must be a list"),
        ({"classes": [2, True]}, "classes must be a whole number"),
        ({"std": 0}, "std must be above 0"),
        ({"mean": [1.0, 2.0]}, "mean has 2 numbers for 6 channels"),
        ({"scale": None}, "scale must be a number"),
        ({"mean": float("inf")}, "mean must be finite"),
        ({"permutation": -1}, "permutation must be a seed"),
        ({"more": 1}, "inputs must have the entries shape, dtype"),
        ({"names": [["a", "b"], ["c"], ["d", "e"]]}, "a name for each of its classes"),
        ({"names": "abc"}, "names must have, for each task"),
        ({"targets": 1}, "targets must be true or false"),
    ],
)
def test_inputs_of_a_damaged_file(change, said):
    with pytest.raises(ValueError, match=said):
        inputs.read({**inputs.plain(INPUTS), **change})
