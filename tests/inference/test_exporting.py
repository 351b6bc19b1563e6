"""A task's own network, by itself: equal to the original, smaller, and without jaxcl."""

import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import models, train
from jaxcl.core import masks
from jaxcl.inference import exporting
from jaxcl.inference.inputs import Inputs
from jaxcl.inference.predictor import predictor
from tests.inference import trained_runs
from tests.inference.trained_runs import INPUTS, TASKS, examples

WITHOUT = """
import sys
sys.modules["jaxcl"] = sys.modules["flax"] = None
import jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open("{folder}/network.stablehlo", "rb").read()))
print(program.platforms, np.asarray(program.call(np.load("{folder}/x.npy"))).tolist())
"""


@pytest.mark.parametrize("method", ["packnet", "hat", "pnn", "er"])
def test_program_and_tree_give_the_logits_of_the_original(method, tmp_path):
    found = trained_runs.trained_predictor(method)
    for task in (0, TASKS - 1):
        folder = tmp_path / str(task)
        said = exporting.export(found, folder, task)
        x = examples(task, 5)[0]
        expected = found.logits(x, task)
        program = jax.export.deserialize(bytearray((folder / "network.stablehlo").read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        np.testing.assert_allclose(program.call(x), expected, 1e-4, 1e-5)
        assert said.batch is None
        single = exporting.network(found, task)
        stored = np.load(folder / "params.npz", allow_pickle=False)
        leaves = masks.leaves_by_path({"params": single.params})
        assert {*stored} == {*leaves}
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(stored[path], leaf)
        about = json.loads((folder / "export.json").read_text())
        assert about["inputs"]["classes"] == INPUTS.classes[task]


def test_runs_without_jaxcl(tmp_path):
    found = trained_runs.trained_predictor("packnet")
    exporting.export(found, tmp_path / "out", 1)
    x = examples(1, 4)[0]
    np.save(tmp_path / "out" / "x.npy", x)
    script = WITHOUT.format(folder=tmp_path / "out")
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        env={"JAX_PLATFORMS": "cpu", "PATH": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    platforms, _, logits = run.stdout.partition(") ")
    assert platforms == "('cpu', 'cuda', 'tpu'"
    np.testing.assert_allclose(json.loads(logits), found.logits(x, 1), 1e-4, 1e-5)


def test_the_tree_opens_with_orbax_alone(tmp_path):
    from orbax.checkpoint import v1

    found = trained_runs.trained_predictor("packnet")
    exporting.export(found, tmp_path / "out", 0)
    tree = v1.load(tmp_path / "out" / "params")
    np.testing.assert_array_equal(
        tree["params"]["head"]["kernel"], found.params(0)["head"]["kernel"]
    )


def test_units_that_are_not_used_are_left_out():
    found, (_, learner) = trained_runs.trained_predictor("hat"), trained_runs.trained("hat")
    single = exporting.network(found, 1)
    opened = {g: int((t[1] > 0).sum()) for g, t in learner.theta["embeddings"].items()}
    kernel = single.params["layers"][0]["kernel"]
    assert kernel.shape == (6, max(opened["layer0"], 1))
    assert "gates" not in single.params
    assert single.left_out.endswith("which this task does not use")


def test_zeros_are_those_of_the_other_tasks(tmp_path):
    found, (_, learner) = trained_runs.trained_predictor("packnet"), trained_runs.trained("packnet")
    said = exporting.export(found, tmp_path / "out", 0)
    foreign = sum(int((owner != 1).sum()) for owner in learner.state.owner.values())
    assert foreign <= said.entries[1] <= foreign + 60  # biases may be zero, too
    # The broken twin: an entry that the task does not use.
    single = exporting.network(found, 0)
    wrong = jax.tree.map(lambda leaf: leaf + 1, single.params)
    with pytest.raises(ValueError, match="has entries that the task does not use"):
        exporting._check_masks(found, single._replace(params=wrong), 0)


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch):
    found = trained_runs.trained_predictor("packnet")
    network = exporting.network

    def wrong(*args):
        single = network(*args)
        return single._replace(params=jax.tree.map(lambda leaf: leaf * 1.01, single.params))

    monkeypatch.setattr(exporting, "network", wrong)
    with pytest.raises(ValueError, match="the program's logits differ by"):
        exporting.export(found, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(exporting, "network", network)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        exporting.export(found, tmp_path / "out", 0)


def test_a_cut_that_changes_the_network_is_not_made():
    """The broken twin of a compact network: nothing is left out then."""
    found = trained_runs.trained_predictor("hat")
    method = found.setup.method

    def wrong(*args):
        params, statistics = method.compact(*args)
        return jax.tree.map(lambda leaf: leaf + 1, params), statistics

    other = found._replace(setup=found.setup._replace(method=method._replace(compact=wrong)))
    assert exporting.network(other, 1).left_out == ""
    assert exporting.network(found, 1).left_out != ""


@pytest.mark.parametrize("hard", [True, False])
def test_a_convolutional_network_with_norms(hard, tmp_path):
    """Channels are cut through the flattening, running statistics with them."""
    inputs = Inputs((32, 32, 1), "uint8", 0.4, 0.3, 16.0, (2, 2))
    model = models.vgg16((32, 32, 1), 2, width=3, hidden=(6, 5), dropout=0.0)
    method = jaxcl.multihead(jaxcl.hat(model.wiring, 2, hard=hard), 2, "head|norm")
    setup = train.Setup(
        method, model, optax.sgd(0.1), lambda x: x / 16.0, [2, 2], norm="per_task"
    )  # fmt: skip
    found = predictor(setup, train.start(setup, jax.random.key(1), 2), 2, inputs)
    said = exporting.export(found, tmp_path / "out", 1)
    single, table = exporting.network(found, 1), found.learner.theta["embeddings"]["layer0"]
    opened = int((table[1] > 0).sum()) if hard else single.params["layers"][0]["kernel"].shape[-1]
    assert single.params["layers"][0]["kernel"].shape[-1] == opened
    assert single.statistics["norms"]["0"]["mean"].shape == (opened,)
    assert (said.batch, bool(said.left_out)) == (None, True)
