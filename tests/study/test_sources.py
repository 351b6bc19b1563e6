"""Training with the columns that exist gives what training with room for all of them gives."""

import jax
import numpy as np
import optax
import pytest

from jaxcl import data, study
from jaxcl.methods.pnn import pnn
from jaxcl.models import mlp
from jaxcl.study import sources
from jaxcl.train import Setup

TASKS = 5


@pytest.fixture(scope="module")
def benchmark():
    generator = np.random.default_rng(0)
    y = np.arange(100) % 10
    x = generator.normal(size=(100, 6)).astype(np.float32) + y[:, None]
    return data.split(data.from_arrays("small", [(x, y)]), TASKS)


def trained(benchmark, lateral, optimizer, worth, monkeypatch):
    """The last learners, and how often each program was compiled."""
    monkeypatch.setattr(sources, "CPU_OPERATIONS", worth)
    method, network = pnn(mlp(6, (5, 4), 2), TASKS, lateral)
    built = study.build(Setup(method, network, optimizer, batch=4), benchmark, [0, 1], epochs=2)
    *_, last = study.run(built)
    return last, built.traces


@pytest.mark.parametrize("lateral", ["adapter", "linear"])
def test_the_numbers_are_those_of_full_room(benchmark, lateral, monkeypatch):
    optimizer = optax.adamw(1e-2)  # which moves what has no gradient, too
    few, traces = trained(benchmark, lateral, optimizer, 0.0, monkeypatch)
    whole, one = trained(benchmark, lateral, optimizer, np.inf, monkeypatch)
    assert [traces[f"epoch{of}"] for of in ("_of_0", "_of_1", "_of_2", "")] == [1, 1, 1, 1]
    assert [name for name in one if name.startswith("epoch")] == ["epoch"]
    np.testing.assert_array_equal(few.accuracy, whole.accuracy)
    learners = (few.learners._replace(key=()), whole.learners._replace(key=()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), *learners)


def test_too_few_sources_give_other_numbers(benchmark, monkeypatch):
    """The comparison above would notice."""
    whole, _ = trained(benchmark, "adapter", optax.sgd(1e-1), np.inf, monkeypatch)
    monkeypatch.setattr(sources, "of_tasks", lambda *args: [0] * TASKS)
    broken, _ = trained(benchmark, "adapter", optax.sgd(1e-1), 0.0, monkeypatch)
    columns = [jax.tree.leaves(last.learners.state.columns) for last in (whole, broken)]
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(*columns))


def test_an_optimizer_that_holds_other_shapes_takes_all(benchmark, monkeypatch):
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=1)
    _, traces = trained(benchmark, "adapter", factored, 0.0, monkeypatch)
    assert [name for name in traces if name.startswith("epoch")] == ["epoch"]
