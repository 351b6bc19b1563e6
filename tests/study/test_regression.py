"""Losses other than cross-entropy, from the data to the table: a sequence of sines."""

import json
import math
import shlex
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import data, models, recipes, study, train
from jaxcl.cli import main as cli
from jaxcl.methods import units
from jaxcl.study import fitting
from jaxcl.train.forward import lend
from jaxcl.train.losses import explained

SINES = """
import numpy as np
from jaxcl import data

def sines(tasks=2):
    x = np.linspace(-1, 1, 120, dtype=np.float32)[:, None]
    return data.from_arrays("sines", [(x, np.sin(3 * x + 2 * t)) for t in range(tasks)])
"""


@pytest.fixture
def sines(tmp_path, monkeypatch):
    (tmp_path / "sines_of_a_user.py").write_text(textwrap.dedent(SINES))
    monkeypatch.syspath_prepend(str(tmp_path))
    import sines_of_a_user

    return sines_of_a_user.sines


OPTIONS = recipes.Options(hidden=(32,), epochs=60, batch=8, optimizer="adam", learning_rate=0.01)


def ends(method, benchmark):
    built = recipes.studies(method, benchmark, OPTIONS, seeds=[0])
    *_, last = study.run(built)
    return last


def test_sines_are_learned_and_kept(sines):
    last = ends("packnet", sines())
    assert last.accuracy.min() > 0.9  # of the variance
    assert last.loss.max() < 0.05


def test_the_metric_is_the_share_of_the_variance(sines):
    benchmark = sines()
    _, metric = fitting.judged_by(benchmark)
    y = np.concatenate([task.train.y for task in benchmark.tasks])
    mean = np.broadcast_to(y.mean(0), y.shape)
    assert abs(float(metric(jnp.asarray(mean), jnp.asarray(y)).mean())) < 1e-5
    assert (metric(jnp.asarray(y), jnp.asarray(y)) == 1).all()


def test_a_loss_and_a_metric_of_ones_own_reach_the_training():
    """Labels that are ignored: -1 in the second column of the targets."""

    def loss(outputs, targets):
        known = targets[:, 1] >= 0
        return jnp.where(known, train.squared_error(outputs[:, :1], targets[:, :1]), 0)

    def metric(outputs, targets):
        return jnp.abs(outputs[:, 0] - targets[:, 0]) < 0.2

    x = np.linspace(-1, 1, 90, dtype=np.float32)[:, None]
    known = np.where(np.arange(90) % 3, 1.0, -1.0)[:, None]
    y = np.where(known > 0, x, 100.0)  # what is ignored would spoil all
    whole = np.concatenate([y, known], 1)
    seen = np.concatenate([x, np.ones_like(x)], 1)
    pairs = ((x, whole), (x, seen), (x, seen))
    made = data.from_arrays("ignoring", [pairs], loss=loss, metric=metric)
    assert ends("finetune", made).accuracy[0, 0] > 0.9
    spoiled = made._replace(loss=lambda o, t: train.squared_error(o[:, :1], t[:, :1]))
    assert ends("finetune", spoiled).accuracy[0, 0] < 0.5


@pytest.mark.parametrize("shape", [(5,), (5, 2)])
def test_what_a_goal_is_compared_with_is_the_metric_of_the_evaluation(shape):
    model, rng = models.mlp(2, (3,), math.prod(shape[1:])), np.random.default_rng(0)
    setup = train.Setup(
        jaxcl.finetune(), model, optax.sgd(0.1), loss=train.squared_error, metric=explained(1.0)
    )
    learner = train.start(setup, jax.random.key(0), 1)
    rows = train.examples(rng.normal(0, 1, (5, 2)), rng.normal(0, 1, shape))
    context = lend(setup, learner.statistics, 0, learner.key, None, rows)
    reached = units.accuracy(context, learner.theta, learner.state)
    np.testing.assert_allclose(reached, train.evaluate(setup, learner, rows, 0).accuracy, rtol=1e-4)


def test_methods_that_speak_of_classes_are_refused(sines):
    for name in ("ewc", "lwf", "er"):
        with pytest.raises(ValueError, match=f"{name} is defined for classes"):
            recipes.studies(name, sines(), OPTIONS)
    with pytest.raises(ValueError, match="the scenario 'class' needs classes"):
        recipes.studies("finetune", sines(), recipes.Options(scenario="class"))


def test_the_command_takes_a_benchmark_of_ones_own(sines, tmp_path, capsys):
    jax.devices()
    words = (
        "compare --methods finetune,packnet,joint --benchmark sines_of_a_user:sines --tasks 2 "
        "--seeds 2 --epochs 4 --hidden 8 --batch 8 --devices 1 --no-cache "
        f"--out {tmp_path}/runs"
    )
    try:
        cli.main(shlex.split(words))
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    found = json.loads((tmp_path / "runs/sines_of_a_user_sines/results.json").read_text())
    assert found["chance"] == 0 and found["settings"]["data"]["sets"][0]["set"] == "sines"
    assert "Fine-tuning" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:x", "the module of 'no_such_module:x' cannot be imported"),
        ("sines_of_a_user:cosines", "the module 'sines_of_a_user' has no 'cosines'"),
        ("sines_of_a_user:np", "gives a"),
    ],
)
def test_what_is_no_benchmark_is_refused(sines, tmp_path, capsys, name, words, monkeypatch):
    if words == "gives a":
        import sines_of_a_user

        monkeypatch.setattr(sines_of_a_user, "np", lambda: 3)
    with pytest.raises(SystemExit):
        cli.main(["compare", "--benchmark", name, "--out", str(tmp_path / "runs")])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
