"""Options from a file: the same command as with words, which win; and what is refused."""

import dataclasses
import json

import pytest

from jaxcl.cli.parsing import parse
from tests.cli.runs import refused


@pytest.fixture
def file(tmp_path):
    def write(text, name="study.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


STUDY = """
benchmark: split_digits
methods: [finetune, hat]
epochs: 3
learning-rate: 1e-2
hidden: [8, 9]
reproducible: true
cache: false
clip_norm: null
hat: {s_max: 100, hard: false, epochs: 4}
packnet.prune: 0.5
"""
WORDS = "compare --benchmark split_digits --methods finetune,hat --epochs 3 --learning-rate 1e-2"
WORDS += " --hidden 8,9 --reproducible --no-cache --hat.s-max 100 --hat.no-hard --hat.epochs 4"


def test_a_file_is_the_same_as_its_words(file):
    path = file(STUDY)
    expected = parse(WORDS.split())
    for words in (["--config", path], [f"--config={path}"]):
        assert parse(["compare", *words]) == expected


def test_the_command_line_wins(file):
    path = file(STUDY)
    found = parse(["compare", "--epochs", "7", "--config", path, "--cache", "--hat.s-max", "9"])
    assert (found.training.epochs, found.run.cache, found.choices[1].own.s_max) == (7, True, 9)
    found = parse(["compare", "--config", path, "--methods", "packnet"])
    assert found.methods == ("packnet",)
    assert found.choices[0].own.prune == 0.5


def test_settings_of_a_run_are_a_file_too(file):
    run = parse([*WORDS.split(), "--prune", "0.5", "--methods", "packnet,hat"])
    own = {c.spec.name: {**vars(c.own), "epochs": c.shared.epochs} for c in run.choices}
    settings = {"benchmark": "split_digits", "tasks": 5, "seeds": 5, "methods": [*run.methods]}
    settings |= {"options": own, **dataclasses.asdict(run.training)}
    found = parse(["compare", "--config", file(json.dumps({"settings": settings}), "s.json")])
    assert found.training == run.training
    assert [(c.own, c.shared) for c in found.choices] == [(c.own, c.shared) for c in run.choices]


def test_a_sweep_from_a_file(file):
    path = file("method: hat\nbenchmark: split_digits\ns_max: [50, 400]\nc: 0.1\n")
    found = parse(["sweep", "--config", path])
    assert found.method == "hat"
    assert found.swept == {"s_max": (50.0, 400.0)}
    assert parse(["sweep", "packnet", "--config", file("prune: [0.1, 0.2]")]).method == "packnet"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "there is no option 'epoch'; the nearest are 'epochs'"),
        ("hat: {smax: 3}", "there is no option 'smax' of hat; the nearest are 's_max'"),
        ("hatt: {c: 3}", "there is no method 'hatt'; the nearest are 'hat'"),
        ("choices: 3", "there is no option 'choices'"),
        ("epochs: {1: [", "cannot be read"),
        ("- epochs", "must hold options and their values"),
        ("hidden: [[1]]", "hidden must be a number, a text or a list, got list"),
        ("epochs: 2020-01-01", "epochs must be a number, a text or a list, got date"),
        ("epochs: 0", "--epochs must be at least 1, got 0"),
    ],
)
def test_refused(text, message, file, capsys):
    assert message in refused(capsys, "compare", "--config", file(text))


def test_no_file(capsys):
    assert "there is no file 'nowhere.yaml'" in refused(
        capsys, "compare", "--config", "nowhere.yaml"
    )
    assert "there is no file ''" in refused(capsys, "compare", "--config")
