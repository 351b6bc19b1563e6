"""Grids, presets and `compare --tune`: words, what is written, and how it goes on."""

import json
import shlex

import pytest

import jaxcl
from jaxcl.cli import compare as comparing
from jaxcl.cli import main as cli
from jaxcl.cli.options import command_line
from jaxcl.cli.parsing import parse
from jaxcl.study import grids
from jaxcl.study.grids import Range
from tests.cli.runs import refused

TINY = shlex.split("--benchmark split_digits --tasks 2 --epochs 1 --seeds 2 --hidden 8 --devices 2")


def test_the_same_words_draw_the_same_settings():
    grid = {"a": Range("log", 1e-3, 1e-1), "b": (1.0, 2.0)}
    drawn = grids.settings(grid, 64)
    assert drawn == grids.settings(grid, 64)
    assert drawn[:5] == grids.settings(grid, 5)
    assert [s["a"] for s in drawn] == [s["a"] for s in grids.settings({"a": grid["a"]}, 64)]
    assert all(1e-3 <= s["a"] <= 1e-1 for s in drawn)
    below = sum(s["a"] < 1e-2 for s in drawn)
    assert 20 < below < 44  # half of them, by the logarithm; evenly drawn it were one in eleven
    assert len({tuple(s.items()) for s in grids.settings({"a": (1, 2, 3), "b": (1, 2)}, 4)}) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep finetune --learning-rate log:0:1:3", "--learning-rate needs a logarithmic range"),
        ("sweep finetune --learning-rate lin:1:0:3", "--learning-rate needs a range from low to"),
        ("sweep finetune --learning-rate log:1e-3:1e-1", "is a range without a count"),
        ("sweep finetune --learning-rate lg:1:2:3", "--learning-rate takes numbers"),
        ("sweep finetune --learning-rate 0.1,x", "--learning-rate takes numbers"),
        ("sweep packnet --prune lin:0.5:2:4", "--prune must be at most 1"),
        ("sweep finetune --learning-rate lin:0.1:0.2 --samples 0", "--samples must be from 1"),
        ("compare --samples 3", "--samples has no effect without --tune"),
        ("compare --tune --methods finetune --learning-rate 0.1", "has nothing to search"),
        ("compare --tune --methods hat --hat.s-max 1:2", "--hat.s-max takes numbers"),
        ("compare --tune --methods finetune --scenario task,class", "searches in one scenario"),
        ("compare --tune --methods finetune --seeds 5,1000000", "--seeds holds 1000000"),
        (
            "compare --preset bst",
            "--preset must be best or none, got 'bst'; the nearest are 'best'",
        ),
        ("compare --seeds 3,3", "--seeds names a seed twice"),
        ("compare --seeds 3,4 --seed 1", "--seed is the first of a number of seeds"),
    ],
)
def test_refused(words, message, tmp_path, capsys):
    err = refused(capsys, *words.split(), "--out", str(tmp_path / "out"))
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "sweep hat --s-max log:50:400 --learning-rate lin:0.1:0.2:3 --samples 5 --seed 3",
        "compare --tune --methods finetune,hat --hat.s-max 50,100 --samples 4 --seeds 3,5",
        "compare --preset none --methods hat --learning-rate 0.05",
    ],
)
def test_words_are_given_again(words):
    command = parse(words.split())
    assert parse(shlex.split(command_line(command))[1:]) == command


def test_presets_are_left_out_where_asked():
    best, none = (
        parse(["compare", "--benchmark", "split_digits", "--methods", "hat", *more]).choices[0]
        for more in ([], ["--preset", "none"])
    )
    assert (best.own.s_max, none.own.s_max) == (200, type(none.own)().s_max)
    assert (best.shared.learning_rate, none.shared.learning_rate) == (0.1, 0.05)


def test_tune_searches_goes_on_and_compares_with_fresh_seeds(tmp_path, monkeypatch):
    """Killed between the search and the comparison."""
    words = ["compare", "--tune", "--methods", "finetune,joint", "--learning-rate", "1e-6,0.1"]
    words += ["--tune-seeds", "1", "--out", str(tmp_path), "--name", "x", *TINY]

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "prepare", stop)
        with pytest.raises(SystemExit):
            cli.main(words)
    folder = tmp_path / "x"
    searched = (folder / "search.json").read_bytes()
    cli.main([*words, "--resume"])
    assert (folder / "search.json").read_bytes() == searched
    found = json.loads(searched)
    assert found["seeds"] == [1_000_000]
    assert [found["methods"][name]["best"] for name in ("finetune", "joint")] == [1, 1]
    run = jaxcl.load(folder)
    assert run.seeds == [0, 1]
    assert run["joint"].choice().shared.learning_rate == pytest.approx(0.1)
    assert run.settings["preset"] == {"finetune": "tuned", "joint": "tuned"}
    table = (folder / "table.md").read_text()
    assert "chosen by a search on validation data" in table
    assert "## The search" in table
