"""A run of the command, opened: networks, results and settings, and what is wrong with a folder."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxcl
from jaxcl import data, train
from jaxcl.cli import main as cli
from jaxcl.inference.forgetting import forget
from jaxcl.methods import REGISTRY
from jaxcl.report.runs import digest
from jaxcl.study import checkpoint

TASKS, SEEDS = 2, 3
WORDS = ["compare", "--methods", "packnet,pnn", "--benchmark", "permuted_digits", "--no-cache"]
WORDS += ["--tasks", "2", "--epochs", "1", "--seeds", "3", "--hidden", "8", "--name", "mine"]
WORDS += ["--devices", "2", "--packnet.hidden", "9"]

WITHOUT = """
import sys
for name in ("tyro", "matplotlib", "sklearn", "tensorflow_datasets", "flatbuffers"):
    sys.modules[name] = None
import jaxcl, numpy as np
found = jaxcl.load({folder!r})["packnet"].seed(1)
print(found.predict(np.load({images!r}), task=1).tolist())
"""


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Those of conftest.py; from here on the command takes them as they are."""
    jax.devices()
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run, which no test may change."""
    out = tmp_path_factory.mktemp("runs")
    cli.main([*WORDS, "--out", str(out)])
    return out / "mine"


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "mine")
    return tmp_path / "mine"


def test_networks_are_those_of_the_study(finished):
    run, benchmark = jaxcl.load(finished), data.permuted_digits(TASKS)
    assert run.methods == ("packnet", "pnn")
    assert run.settings["benchmark"] == "permuted_digits"
    assert run["packnet"].choice().shared.hidden == (9,)
    for method in run.methods:
        accuracy = run.results.methods[method].accuracy
        assert accuracy.shape == (SEEDS, TASKS, TASKS)
        np.testing.assert_allclose(run[method].accuracy, accuracy)
        assert run[method].tasks == TASKS
        for seed in range(SEEDS):
            found = run[method].seed(seed)
            right = [
                (found.predict(t.test.x, k) == t.test.y).mean()
                for k, t in enumerate(benchmark.tasks)
            ]
            np.testing.assert_allclose(right, accuracy[seed, -1], atol=1e-6)
        assert found.programs is run[method].seed(0).programs  # compiled once for all seeds


def test_arrays_are_those_of_the_checkpoint_to_the_bit(finished):
    """The padded axis is not seen: three seeds on two devices are four rows."""
    trained = jaxcl.load(finished)["packnet"]
    path = finished / "checkpoints" / "packnet" / "task_2"
    assert checkpoint.shapes(path)["learners/key"].shape[0] == SEEDS + 1
    for seed in range(SEEDS):
        learner = trained.learner(seed)
        stored = trained.content["learners"]
        jax.tree.map(
            lambda one, all_: np.testing.assert_array_equal(one, all_[seed]),  # noqa: B023
            (learner.theta, learner.state), (stored.theta, stored.state),
        )  # fmt: skip
        x = data.permuted_digits(TASKS).tasks[1].test.x[:7]
        found = trained.seed(seed)
        again = found._replace(learner=jax.tree.map(jax.numpy.copy, learner))
        np.testing.assert_array_equal(found.logits(x, 1), again.logits(x, 1))
        view = train.network(found.setup, learner, 1)[0]
        jax.tree.map(np.testing.assert_array_equal, found.params(1), view)
    assert not np.array_equal(trained.learner(0).key, trained.learner(1).key)


def test_ones_own_images_in_the_order_of_a_task(finished):
    found, tasks = jaxcl.load(finished)["pnn"].seed(0), data.permuted_digits(TASKS).tasks
    upright = tasks[0].test.x[:6].reshape(6, 8, 8)
    np.testing.assert_array_equal(found.arrange(upright, 1), tasks[1].test.x[:6])
    np.testing.assert_array_equal(
        found.predict(found.arrange(upright, 1), 1), found.predict(tasks[1].test.x[:6], 1)
    )


def test_needs_neither_data_nor_the_extras(finished, tmp_path):
    x = data.permuted_digits(TASKS).tasks[1].test.x[:9]
    np.save(tmp_path / "x.npy", x)
    script = WITHOUT.format(folder=str(finished), images=str(tmp_path / "x.npy"))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    expected = jaxcl.load(finished)["packnet"].seed(1).predict(x, task=1)
    assert json.loads(run.stdout) == expected.tolist()


def test_an_unfinished_run_gives_the_finished_tasks(copy):
    """Killed after its first task of the first method."""
    (copy / "results.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "pnn")
    shutil.rmtree(copy / "checkpoints" / "packnet" / "task_2")
    run = jaxcl.load(copy)
    assert run.results is None
    found = run["packnet"].seed(0)
    assert (found.tasks, run["packnet"].tasks) == (1, 1)
    accuracy = run["packnet"].accuracy
    assert np.isfinite(accuracy[:, 0, 0]).all() and np.isnan(accuracy[:, 1]).all()
    x, y = data.permuted_digits(TASKS).tasks[0].test
    np.testing.assert_allclose((found.predict(x, 0) == y).mean(), accuracy[0, 0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="has no network of pnn yet: no task is finished"):
        run["pnn"].seed(0)


@pytest.mark.parametrize(
    ("seed", "said"), [(3, "from 0 to 2, got 3"), (-1, "got -1"), ("0", "got '0'"), (True, "True")]
)
def test_seeds_that_are_none(finished, seed, said):
    with pytest.raises(ValueError, match=said):
        jaxcl.load(finished)["packnet"].seed(seed)


def test_methods_that_are_none(finished):
    with pytest.raises(ValueError, match="no method 'packnt'; the nearest are 'packnet'; it has"):
        jaxcl.load(finished)["packnt"]


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        jaxcl.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no run of jaxcl: there is no settings\.json"):
        jaxcl.load(tmp_path)


def test_damage_is_named(copy):
    path = copy / "checkpoints" / "packnet" / "task_2" / "state"
    shutil.rmtree(path)
    with pytest.warns(UserWarning, match="task_2 cannot be read; the networks are those of task_1"):
        assert jaxcl.load(copy)["packnet"].seed(0).tasks == 1  # an older one is there
    shutil.rmtree(copy / "checkpoints" / "packnet" / "task_1")
    with pytest.raises(ValueError, match="task_2"):
        jaxcl.load(copy)["packnet"].seed(0)


def test_nothing_is_forgotten_beside_a_damaged_checkpoint(copy):
    """The older one would go, as it knows the task too, and the damaged one stay."""
    checkpoints = copy / "checkpoints" / "packnet"
    for path in (checkpoints / "task_2" / "state" / "ocdbt.process_0" / "d").iterdir():
        path.write_bytes(b"")
    before = sorted(checkpoints.rglob("*"))
    with (
        pytest.warns(UserWarning, match="task_2 cannot be read"),
        pytest.raises(ValueError, match="task_2 cannot be read, so nothing can be taken out of it"),
    ):
        forget(jaxcl.load(copy)["packnet"], 0)
    assert sorted(checkpoints.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": None}, "inputs must have the entries"),
        ({"methods": ["../packnet"]}, "unknown method '../packnet'"),
        ({"methods": [3]}, "methods must be names"),
        ({"methods": ["os:system"]}, r"a method of your own, os:system: give its Spec"),
        ({"tasks": 0}, "tasks must be a whole number"),
        ({"tasks": 3}, "2 tasks have classes, not 3"),
        ({"seeds": "5"}, "seeds must be a whole number"),
    ],
)
def test_settings_that_are_none(copy, change, said):
    _change(copy, change)
    with pytest.raises(ValueError, match=said) as error:
        jaxcl.load(copy)
    assert "settings.json" in str(error.value)


def test_networks_of_other_settings(copy):
    """What does not change a shape would else give other predictions without a word."""
    run = jaxcl.load(copy)
    _change(copy, {"inputs": {**run.settings["inputs"], "mean": 0.5}})
    with pytest.raises(ValueError, match=r"settings\.json was changed since .*task_2 was written"):
        jaxcl.load(copy)["packnet"].seed(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": [10**6]}, "the options of pnn|leaf"),
        ({"hidden": ["a"]}, "the options of"),
        ({"network": "rnn"}, "are none: network is 'rnn'"),
        ({"optimizer": "adam"}, "has no leaf|not expected"),
        ({"options": {"pnn": {"nothing": 1}}}, "has no option 'nothing'"),
    ],
)
def test_options_that_are_others(copy, change, said):
    """Shapes are compared before memory is taken."""
    _change(copy, change)
    with pytest.raises(ValueError, match=said):
        jaxcl.load(copy)["pnn"].seed(0)


def _change(folder, change):
    file = folder / "settings.json"
    content = json.loads(file.read_text())
    content["settings"].update(change)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_settings_give_a_sentence_or_the_right_network(copy, seed):
    """Entries go, or become something else, or bytes of the file flip."""
    rng = np.random.default_rng(seed)
    file = copy / "settings.json"
    good = file.read_bytes()
    values = [None, -1, 0, 2**70, 1.5, "", "x", [], {}, [[]], True, float("nan")]
    refused = 0
    for _ in range(40):
        content = json.loads(good)
        settings = content["settings"]
        name = rng.choice(sorted(settings))
        if rng.random() < 0.3:
            del settings[name]
        elif isinstance(settings[name], dict) and settings[name] and rng.random() < 0.7:
            settings[name][rng.choice(sorted(settings[name]))] = values[rng.integers(len(values))]
        else:
            settings[name] = values[rng.integers(len(values))]
        text = json.dumps(content).encode()
        if rng.random() < 0.3:
            text = bytearray(text)
            text[rng.integers(len(text))] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(text))
        try:
            found = jaxcl.load(copy)
            for method in found.methods:
                found[method].setup()
        except ValueError:
            refused += 1
    assert refused > 5


def test_a_method_of_ones_own_is_given(copy):
    spec = next(s for s in REGISTRY if s.name == "packnet")._replace(name="mine", label="Mine")
    held = jaxcl.load(copy)["packnet"].content
    content = json.loads((copy / "settings.json").read_text())
    settings = content["settings"]
    settings["methods"] = ["somewhere:SPEC"]
    settings["options"] = {"mine": settings["options"]["packnet"]}
    (copy / "settings.json").write_text(json.dumps(content))
    path = copy / "checkpoints" / "mine" / "task_2"
    checkpoint.save(path, held, {"settings": digest(settings)})
    assert jaxcl.load(copy, methods=[spec])["mine"].seed(0).tasks == TASKS


def test_the_folder_of_several_scenarios_names_its_runs(tmp_path):
    for name in ("task", "class"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"in scenarios, each a run: give .*task or .*class\."):
        jaxcl.load(tmp_path)
