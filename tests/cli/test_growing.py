"""A finished run grows by what it lacks, and is then the run that was done at once."""

import json
import shlex

import jax
import numpy as np
import pytest

import jaxcl
from jaxcl.cli import growing
from jaxcl.cli import main as cli
from tests.cli.runs import refused, snapshot

TINY = shlex.split("--benchmark split_digits --tasks 2 --epochs 1 --hidden 8 --devices 2")


def compare(out, name, *words):
    words = ["compare", "--out", str(out), "--name", name, "--reproducible", *TINY, *words]
    return [str(word) for word in words]


def test_more_seeds_and_methods_are_those_of_a_run_at_once(tmp_path, monkeypatch, capsys):
    cli.main(compare(tmp_path, "grown", "--methods", "finetune", "--seeds", 2))
    (tmp_path / "grown" / "inferred.json").write_text("{}")  # as if measured
    more = compare(tmp_path, "grown", "--methods", "finetune,packnet", "--seeds", 4)
    before = snapshot(tmp_path)
    assert "add --resume to train only what it lacks" in refused(capsys, *more)
    epochs = compare(tmp_path, "grown", "--methods", "finetune", "--seeds", 2, "--epochs", 2)
    assert "to which none can be added" in refused(capsys, *epochs, "--resume")
    assert snapshot(tmp_path) == before

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed when all is joined, but not yet in its place
        patch.setattr(growing, "_take_places", stop)
        with pytest.raises(SystemExit):
            cli.main([*more, "--resume"])
    assert jaxcl.load(tmp_path / "grown").seeds == [0, 1]
    assert "jaxcl infer measured of the smaller run is removed then" in capsys.readouterr().err
    assert (tmp_path / "grown" / "inferred.json").exists()
    cli.main([*more, "--resume"])
    assert not (tmp_path / "grown" / "inferred.json").exists()
    cli.main([*more, "--resume"])
    cli.main(compare(tmp_path, "once", "--methods", "finetune,packnet", "--seeds", 4))
    grown, once = (jaxcl.load(tmp_path / name) for name in ("grown", "once"))
    assert not (tmp_path / "grown" / "growing").exists()
    for name in ("finetune", "packnet"):
        for seed in range(4):
            a, b = (run[name].learner(seed) for run in (grown, once))
            for x, y in zip(*map(jax.tree.leaves, ((a.theta, a.state), (b.theta, b.state)))):
                np.testing.assert_array_equal(x, y)
    a, b = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("grown", "once"))
    for name in ("finetune", "packnet"):
        assert a["methods"][name]["accuracy"] == b["methods"][name]["accuracy"]
