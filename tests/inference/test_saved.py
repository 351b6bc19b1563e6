"""A learner of one's own loop: saved, and opened as a Predictor by a builder that is named."""

import json
import sys
import types

import jax
import numpy as np
import pytest

import jaxcl
from jaxcl import train
from jaxcl.methods import Built
from tests.inference import trained_runs
from tests.inference.trained_runs import INPUTS, TASKS, examples

OTHERS = {"wrong": lambda: 3, "other": lambda: trained_runs.setup_of("finetune")}


@pytest.fixture
def module(monkeypatch):
    """A module of builders."""
    found = types.ModuleType("my_builders")
    vars(found).update(OTHERS)
    vars(found)["build"] = lambda: trained_runs.setup_of("packnet")
    vars(found)["built"] = lambda: Built(
        trained_runs.setup_of("packnet").method, trained_runs.setup_of("packnet").model
    )
    monkeypatch.setitem(sys.modules, "my_builders", found)
    return found


def test_a_learner_comes_back_to_the_bit(tmp_path, module):
    setup, learner = trained_runs.trained("packnet")
    jaxcl.save(tmp_path / "mine", learner, "my_builders:build", tasks=TASKS, inputs=INPUTS)
    for builder in ("my_builders:build", module.build):
        found = jaxcl.load(tmp_path / "mine", builder=builder)
        jax.tree.map(np.testing.assert_array_equal, found.learner.theta, learner.theta)
        jax.tree.map(np.testing.assert_array_equal, found.learner.opt_state, learner.opt_state)
        assert found.inputs == INPUTS
    run = trained_runs.trained_predictor("packnet").programs["logits"]
    x = examples(1)[0]
    np.testing.assert_array_equal(run(found.learner, x, 1), run(learner, x, 1))
    np.testing.assert_allclose(
        found.logits(x, 1), trained_runs.trained_predictor("packnet").logits(x, 1)
    )
    assert train.begin_task(setup, found.learner, 2).position.task == 2  # and can be trained on


def test_a_learner_comes_back_over_a_mesh(tmp_path, module):
    _, learner = trained_runs.trained("packnet")
    pair, mesh = (
        (learner.theta, learner.state),
        jax.make_mesh((2,), ("x",), devices=jax.devices()[:2]),
    )
    rules = [("layers/0/kernel", jax.sharding.PartitionSpec("x", None))]
    place = lambda tree: jaxcl.sharding.by_path(tree, mesh, rules)  # noqa: E731
    jaxcl.save(tmp_path / "mine", pair, "my_builders:built", tasks=2, room=TASKS)
    found = jaxcl.load(tmp_path / "mine", builder=module.built, shardings=place).learner
    jax.tree.map(np.testing.assert_array_equal, found.theta, learner.theta)
    owner = jaxcl.masks.leaves_by_path(found.state)["owner/layers/0/kernel"]
    assert not owner.is_fully_replicated and len(owner.sharding.device_set) == 2
    with pytest.raises(ValueError, match="no learner that save"):
        jaxcl.load(tmp_path, shardings=place)


def test_theta_and_state_of_a_loop_without_the_engine(tmp_path, module):
    _, learner = trained_runs.trained("packnet")
    pair = learner.theta, learner.state
    jaxcl.save(tmp_path / "mine", pair, "my_builders:built", tasks=2, room=TASKS)
    found = jaxcl.load(tmp_path / "mine", builder="my_builders:built")
    assert found.tasks == 2
    x = np.asarray(trained_runs.setup_of("packnet").prepare(examples(1)[0]))
    expected = trained_runs.trained_predictor("packnet").logits(examples(1)[0], 1)
    np.testing.assert_allclose(found.logits(x, 1)[:, :3], expected, 1e-5, 1e-5)


def test_a_file_does_not_decide_what_is_imported(tmp_path, module):
    jaxcl.save(
        tmp_path / "mine", trained_runs.trained("packnet")[1], "my_builders:build", tasks=TASKS
    )
    with pytest.raises(ValueError, match=r"if you trust it, give .*builder='my_builders:build'"):
        jaxcl.load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("my_builders", "builder must be 'module:function'"),
        ("my_builder:build", "the module of 'my_builder:build' cannot be imported"),
        ("my_builders:buidl", "has no function 'buidl'; the nearest are"),
        ("my_builders:wrong", "must make a train.Setup or a Built, not a int"),
        ("my_builders:other", "makes another learner than this one"),
    ],
)
def test_builders_that_do_not_fit(tmp_path, module, builder, said):
    learner = trained_runs.trained("packnet")[1]
    with pytest.raises(ValueError, match=said):
        jaxcl.save(tmp_path / "mine", learner, builder, tasks=TASKS)
    assert not (tmp_path / "mine").exists()


def test_bad_input_and_damage(tmp_path, module):
    learner = trained_runs.trained("packnet")[1]
    with pytest.raises(ValueError, match=r"expected a train.Learner, \(theta, state\)"):
        jaxcl.save(tmp_path / "mine", learner.theta, "my_builders:build", tasks=TASKS)
    jaxcl.save(tmp_path / "mine", learner, "my_builders:build", tasks=TASKS)
    with pytest.raises(ValueError, match="exists already"):
        jaxcl.save(tmp_path / "mine", learner, "my_builders:build", tasks=TASKS)
    with pytest.raises(ValueError, match=r"has no leaf|is not expected"):
        jaxcl.load(tmp_path / "mine", builder="my_builders:other")
    record = tmp_path / "mine" / "learner.json"
    good = json.loads(record.read_text())
    for change in ({"tasks": "x"}, {"room": -1}, {"parts": 7}, {"format": 9}, {"inputs": {}}):
        record.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=r"learner\.json"):
            jaxcl.load(tmp_path / "mine", builder=module.build)
    record.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        jaxcl.load(tmp_path / "mine", builder=module.build)
