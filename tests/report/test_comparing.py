"""A comparison from Python finds what the command finds, on one's own data and network too."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxcl
from jaxcl import data, models, recipes, report
from jaxcl.cli import main as cli
from jaxcl.methods import find
from jaxcl.study import EpochEnd
from jaxcl.study.recipes import Options

QUICK = Options(hidden=(6,), epochs=2, batch=8)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    jax.devices()  # from here on the command takes them as they are
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def benchmark():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 4
    x = generator.normal(size=(60, 5)) + y[:, None]
    return data.split(data.from_arrays("mine", [(x, y)]), 2)


def same(one, other):
    """The same numbers, but for times."""
    for name in one.methods:
        a, b = one.methods[name], other.methods[name]
        np.testing.assert_array_equal(a.accuracy, np.float32(b.accuracy))
        for key in ("measures", "curves"):
            assert getattr(a, key).keys() == getattr(b, key).keys()
            for values, others in zip(getattr(a, key).values(), getattr(b, key).values()):
                np.testing.assert_array_equal(values, np.float32(others))
        assert a._replace(accuracy=0, measures=0, curves=0, seconds=0) == b._replace(
            accuracy=0, measures=0, curves=0, seconds=0
        )


def test_what_the_command_finds(tmp_path):
    words = "compare --benchmark split_digits --tasks 2 --epochs 2 --seeds 2 --hidden 4 --devices 1"
    names = ["--methods", "finetune,hat", "--finetune.learning-rate", "0.05"]
    names += ["--hat.learning-rate", "0.05", "--select", "loss"]
    cli.main([*words.split(), *names, "--out", str(tmp_path), "--no-cache"])
    expected = report.read(tmp_path / "split_digits")
    options = dataclasses.replace(recipes.defaults("split_digits"), epochs=2, hidden=(4,))
    options = dataclasses.replace(options, select="loss", learning_rate=0.05)
    shown, methods = [], expected.settings["options"]
    chosen = [
        recipes.choose(name, options, **{k: v for k, v in own.items() if k != "learning_rate"})
        for name, own in methods.items()
    ]
    found = jaxcl.compare(
        data.load("split_digits", tasks=2), chosen, options, seeds=[0, 1],
        devices=jax.devices()[:1], watch=lambda name, event: shown.append((name, type(event))),
    )  # fmt: skip
    same(found, expected)
    assert (found.chance, found.seeds, found.tasks) == (expected.chance, [0, 1], 2)
    assert shown.count(("hat", EpochEnd)) == 4
    assert found.sentence() == expected.sentence()
    paths = found.save(tmp_path / "again")
    assert "results.json" in {path.name for path in paths}
    same(found, report.read(tmp_path / "again"))


def test_ones_own_network_and_method(benchmark):
    mine = find("finetune")._replace(name="mine", label="Mine")
    widths = []

    def network(width):
        widths.append(width)
        return models.mlp(5, hidden=(max(1, round(7 * width)),), classes=2)

    found = jaxcl.compare(benchmark, [mine, "pnn"], QUICK, seeds=[3], model=network)
    kernels = 5 * 7 + 7 + 2 * (7 * 2 + 2)
    assert found.methods["mine"].parameters == kernels
    assert found.methods["mine"].shown.label == "Mine"
    assert found.seeds == [3] and found.settings["methods"] == ["mine", "pnn"]
    assert {*widths} == {1.0}
    plain = jaxcl.compare(benchmark, [mine], QUICK, seeds=[3], model=network(1.0))
    np.testing.assert_array_equal(plain.methods["mine"].accuracy, found.methods["mine"].accuracy)


def test_what_cannot_be_compared(benchmark):
    compare = functools.partial(jaxcl.compare, benchmark, options=QUICK, seeds=[0])
    for methods in ("hat", []):
        with pytest.raises(ValueError, match="methods must be a list"):
            compare(methods)
    with pytest.raises(ValueError, match="unknown method 'hatt'"):
        compare(["hatt"])
    with pytest.raises(ValueError, match="two methods are called 'hat'"):
        compare(["hat", "hat"])
    narrow = recipes.choose("pnn", QUICK, column_width=0.5)
    with pytest.raises(ValueError, match=r"pnn needs the network with 0\.5 of its hidden units"):
        compare([narrow], model=models.mlp(5, hidden=(6,), classes=2))
    for model in (nn.Dense(2), lambda share: share, 3):
        with pytest.raises(ValueError, match="model must be a Model, as functions of"):
            compare(["hat"], model=model)  # pyright: ignore
    with pytest.raises(ValueError, match=r"seeds must be a list .* such as range\(5\), got 5"):
        jaxcl.compare(benchmark, ["hat"], QUICK, seeds=5)  # pyright: ignore
    with pytest.raises(ValueError, match="epochs is an option of training: give it in options="):
        jaxcl.compare(benchmark, ["hat"], epochs=1)
    with pytest.raises(
        ValueError, match=r"benchmark must be a name or a data.Benchmark, .*ndarray"
    ):
        jaxcl.compare(np.zeros(3), ["hat"], QUICK)  # pyright: ignore
    with pytest.raises(ValueError, match=r"evaluate_every must be a number of epochs .* got '0'"):
        jaxcl.compare(benchmark, ["hat"], QUICK, evaluate_every=0)  # pyright: ignore
    with pytest.raises(ValueError, match="seeds must be whole numbers"):
        jaxcl.compare(benchmark, ["finetune"], QUICK, seeds=[-1])
