"""Loggers: what they are told, what TensorBoard's files hold, and a package that is missing."""

import struct
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxcl import data, recipes, study
from jaxcl.report import loggers
from jaxcl.study import comparison
from jaxcl.study.points import Evaluated, Every
from jaxcl.study.recipes import Options


@pytest.fixture
def run():
    generator = np.random.default_rng(0)
    y = np.arange(40) % 4
    benchmark = data.split(data.from_arrays("small", [(generator.normal(size=(40, 5)), y)]), 2)
    choice = recipes.choose("packnet", Options(hidden=(6,), epochs=2, batch=8))
    one = jax.devices()[:1]
    return comparison.begin(choice, benchmark, [3, 4], evaluate_every=Every(epochs=1), devices=one)


def train(run, names, folder):
    """Trains with loggers; the accuracy matrices and the losses of all epochs."""
    losses = []
    with loggers.logged(names, run, folder, {"tasks": 2}) as watch:
        for event, now in comparison.advance(run):
            watch(event)
            record = now
            if isinstance(event, study.EpochEnd):
                losses.append(float(np.mean(event.metrics.loss)))
    return record.accuracy, losses


def scalars(folder):
    """What TensorBoard would read: (step, value) by tag."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    (file,) = folder.iterdir()
    content = file.read_bytes()
    while content:  # length, its checksum, the record, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_both_are_told_the_same(run, tmp_path, monkeypatch):
    told, calls = [], []

    def init(**words):
        calls.append(words)
        return SimpleNamespace(
            log=lambda numbers, step: told.append((step, numbers)),
            finish=lambda: calls.append("finish"),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # its three calls
    monkeypatch.delenv("WANDB_MODE", raising=False)
    accuracy, losses = train(run, ("tensorboard", "wandb"), tmp_path)
    found = scalars(tmp_path / "logs" / "tensorboard" / "packnet")
    steps, values = zip(*found["training/loss"])
    np.testing.assert_allclose(values, losses, rtol=1e-5)
    assert list(steps) == sorted(set(steps))  # they count on over the tasks
    _, test = zip(*found["test/task_1"])
    np.testing.assert_allclose(test, accuracy[:, :, 0].mean(axis=0), rtol=1e-5)
    assert {"within/mean", "measures/capacity", "training/accuracy"} <= found.keys()
    assert calls[0]["mode"] == "offline" and calls[-1] == "finish"
    assert sum("training/loss" in numbers for _, numbers in told) == len(losses)
    assert [step for step, _ in told] == sorted(step for step, _ in told)


def test_means_leave_out_what_has_stopped_or_is_not_finite():
    values = np.array([[0.5, np.nan], [np.nan, np.nan]])
    found = loggers.numbers(Evaluated(0, 1, values))
    assert found == {"within/task_1": 0.5, "within/mean": 0.5}


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{module} .*pip install "jaxcl\[{name}\]"'):
        loggers.packages([name])
