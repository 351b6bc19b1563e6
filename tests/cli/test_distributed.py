"""Two real processes on one machine that share the replicas, or the batch, and one that dies."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxcl import checkpoint, replicas
from jaxcl.cli import main as cli

pytestmark = pytest.mark.usefixtures("command")

TINY = ["--tasks", "3", "--hidden", "8"]
WORDS = ["compare", *TINY, "--epochs", "20"]
REFUSED = 2
PORTS = itertools.count(10_000 + os.getpid() % 20_000)
DIES = """
import os

from jaxcl.cli import main as cli
from jaxcl import replicas

fetch, calls = replicas.fetch, iter(range(52))


def die_in_the_third_task(*args):
    if next(calls, None) is None:
        os._exit(9)
    return fetch(*args)


replicas.fetch = die_in_the_third_task
cli.main()
"""


def launch(*words, program=("-m", "jaxcl"), **environment):
    """A process on a CPU."""
    return subprocess.Popen(
        [sys.executable, *program, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )  # fmt: skip


def start(process, port, *words, **options):
    """One of two processes."""
    where = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(process)]
    return launch(*words, *where, **options)


def start_as_slurm_does(process, job, *words):
    """Likewise, with what Slurm tells it."""
    return launch(
        *words, "--distributed", SLURM_JOB_ID=str(job), SLURM_STEP_NODELIST="127.0.0.1",
        SLURM_NTASKS="2", SLURM_PROCID=str(process), SLURM_LOCALID=str(process),
    )  # fmt: skip


def ends(*processes):
    """For each process: its exit code, what it wrote to stdout, and to stderr."""
    try:
        return [(p.returncode, *texts) for p in processes for texts in [p.communicate(timeout=300)]]
    finally:
        for process in processes:
            process.kill()


def both(*words):
    port = free_port()
    return ends(*(start(process, port, *words) for process in (0, 1)))


def free_port():
    """Below those that the system gives to any connection, so it stays free until it is used."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def numbers(out):
    """Accuracy and capacity, method by method."""
    results = json.loads((out / "permuted_digits" / "results.json").read_text())
    return {name: (m["accuracy"], m["capacity"]) for name, m in results["methods"].items()}


def test_replicas_in_two_processes_one_of_which_dies(tmp_path):
    words = [*WORDS, "--methods", "packnet", "--seeds", "3", "--out"]
    cli.main([*words, str(tmp_path / "one"), "--devices", "2"])
    expected = numbers(tmp_path / "one")

    words += [str(tmp_path / "two"), "--devices", "1"]
    folder, port = tmp_path / "two" / "permuted_digits", free_port()
    other = start(1, port, *words, program=("-c", DIES))
    (code, out, err), (died, *_) = ends(start(0, port, *words), other)
    assert (code, out, died) == (1, "", 9)
    assert "one of the processes failed; the same command with --resume goes on" in err
    assert {path.name for path in folder.iterdir()} == {"settings.json", "checkpoints"}
    newest = checkpoint.latest(folder / "checkpoints" / "packnet", readable=True)
    assert newest and newest[0] in (1, 2)  # the latter may have been half written

    (code, table, progress), other = both(*words, "--resume")
    assert code == 0, progress
    assert "PackNet" in table and "on 2 CPU devices of 2 processes" in progress
    assert other == (0, "", "")  # process 0 alone writes
    assert numbers(tmp_path / "two") == expected
    kept = {path.name for path in folder.glob("checkpoints/packnet/*")}
    assert kept == {"task_2", "task_3"}
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (tmp_path / "one" / "permuted_digits").iterdir()
    }


def test_batches_in_two_processes_of_a_cluster(tmp_path):
    words = [*WORDS, "--methods", "finetune", "--seeds", "1", "--epochs", "2", "--devices", "1"]
    words += ["--out"]
    cli.main([*words, str(tmp_path / "one")])
    words += [str(tmp_path / "two"), "--split", "2"]
    (code, _, err), _ = ends(*(start_as_slurm_does(i, os.getpid(), *words) for i in (0, 1)))
    assert code == 0, err
    accuracy, _ = numbers(tmp_path / "two")["finetune"]
    expected, _ = numbers(tmp_path / "one")["finetune"]
    np.testing.assert_allclose(accuracy, expected, atol=1e-6)


def test_a_sweep_in_two_processes(tmp_path):
    words = ["sweep", "hat", "--c", "0.1,2", *TINY, "--epochs", "2", "--seeds", "1", "--out"]
    cli.main([*words, str(tmp_path / "one"), "--devices", "2"])
    words += [str(tmp_path / "two"), "--devices", "1"]
    (code, table, err), other = both(*words)
    assert code == 0, err
    assert "The best of 2 settings" in table
    assert other == (0, "", "")
    one, two = (
        json.loads((tmp_path / name / "sweep_hat_permuted_digits" / "results.json").read_text())
        for name in ("one", "two")
    )
    for name in ("combinations", "best", "test", "compilations"):
        assert one[name] == two[name]


def test_more_processes_than_replicas(tmp_path):
    words = [*WORDS, "--seeds", "1", "--devices", "1", "--out", str(tmp_path / "never")]
    for code, out, err in both(*words):
        assert (code, out) == (REFUSED, "")
        assert "some of 2 processes have no work with 1 replicas" in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_idle_devices_are_spread():
    devices = jax.devices()[:4]
    assert list(replicas.layout(2, 0, devices=devices).mesh.devices.flat) == devices[::2]
    split = replicas.layout(1, 0, devices=devices, devices_per_replica=2).mesh.devices
    assert list(split.flat) == devices[:2]


def test_processes_with_other_options(tmp_path):
    port, words = free_port(), [*WORDS, "--devices", "1", "--out", str(tmp_path / "never")]
    for code, out, err in ends(
        start(0, port, *words), start(1, port, *words, "--weight-decay", "0.5")
    ):
        assert (code, out) == (REFUSED, "")
        assert "weight_decay is None in process 0, but weight_decay is 0.5 in process 1" in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_others_do_not_come(tmp_path):
    words = [*WORDS, "--timeout", "1", "--out", str(tmp_path / "never")]
    port, nobody = free_port(), free_port()
    (*alone, why), (*lost, reason), (*by_itself, advice) = ends(
        start(0, port, *words), start(1, nobody, *words), launch(*words, "--distributed")
    )
    assert alone == lost == by_itself == [REFUSED, ""]
    assert "no cluster here" in advice and "Give --coordinator HOST:PORT" in advice
    assert why == f"jaxcl: not all 2 processes came to 127.0.0.1:{port} within 1 s (--timeout).\n"
    assert f"process 0 at 127.0.0.1:{nobody}, did not answer within 1 s (--timeout)." in reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--coordinator here --processes 2 --process 0", "must be HOST:PORT"),
        ("--coordinator here:70000 --processes 2 --process 0", "must be HOST:PORT"),
        ("--coordinator here:1 --processes 2 --process 2", "must be 0 to 1"),
        ("--coordinator here:1 --processes 2 --process -1", "must be at least 0"),
        ("--coordinator here:1 --processes 2", "go together"),
        ("--processes 2 --process 0", "go together"),
        ("--timeout 0", "must be at least 1"),
    ],
)
def test_options(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*WORDS, "--out", str(tmp_path / "never"), *words.split()])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (REFUSED, "")
    assert message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


STOPS = """
import os, signal
from jaxcl.cli import main as cli
from jaxcl.study import pace

after, calls = pace.Pace.after, iter(range(8))


def ask_in_the_first_task(self, event):
    if next(calls, None) == 7:
        os.kill(os.getpid(), signal.SIGTERM)
    return after(self, event)


pace.Pace.after = ask_in_the_first_task
cli.main()
"""


def test_one_of_two_processes_is_asked_to_stop(tmp_path):
    """Both save and leave, and both go on."""
    words = [*WORDS, "--methods", "packnet", "--seeds", "2", "--devices", "1", "--out"]
    cli.main([*words[:-2], "2", "--out", str(tmp_path / "one")])
    words += [str(tmp_path / "two")]
    folder, port = tmp_path / "two" / "permuted_digits", free_port()
    asked = start(1, port, *words, program=("-c", STOPS))
    (code, out, err), (other, *_) = ends(start(0, port, *words), asked)
    assert (code, out, other) == (143, "", 143), err
    assert "stopped, and all is saved; the same command with --resume goes on" in err
    (name,) = (path.name for path in folder.glob("checkpoints/packnet/*"))
    assert name.startswith("task_1_epoch_")
    (code, _, err), _ = both(*words, "--resume")
    assert code == 0, err
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one")
