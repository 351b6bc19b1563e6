"""`jaxcl compare --dry-run`: what a study would need, without training."""

import pytest

from jaxcl.cli import main as cli
from jaxcl.study import events

pytestmark = pytest.mark.usefixtures("command")

WORDS = ["compare", "--dry-run", "--methods", "er", "--tasks", "2", "--seeds", "2"]
WORDS += ["--hidden", "4", "--devices", "2", "--no-cache"]


def test_it_says_what_is_needed_and_neither_trains_nor_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(events, "run", None)
    cli.main(WORDS)
    out = capsys.readouterr().out
    assert "2 tasks, 2 seeds, on 2 CPU devices of" in out
    (row,) = [line for line in out.splitlines() if line.startswith("| er |")]
    _, _, seeds, at_once, learners, memories, training, seconds, checkpoint, _ = row.split("|")
    assert seeds.strip() == at_once.strip() == "1"
    assert seconds.strip().endswith(" s")
    assert all(cell.strip().endswith("kB") for cell in (learners, memories, training, checkpoint))
    assert float(checkpoint.split()[0]) > 2 * float(learners.split()[0])  # of both seeds
    assert not list(tmp_path.iterdir())


def test_what_a_device_has_not_is_said(monkeypatch, capsys):
    monkeypatch.setattr("jaxcl.cli.dry.limit_bytes", lambda layout: 1000)
    cli.main(WORDS)
    assert "er does not fit: a device has 1.0 kB of the" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v5e:2x2"], "give --dry-run as well"),
        (["--dry-run", "--distributed"], "--dry-run takes one process"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
