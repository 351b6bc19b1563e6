"""A whole study on split MNIST, from the start of the command to its table, beside Avalanche's."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcl import data

HIDDEN, EPOCHS, TASKS = 400, 2, 5
STUDIES = {  # methods, seeds, and the peer's words for the same
    "3 methods, 5 seeds": (("finetune", "packnet", "pnn"), 5, ("naive", "packnet", "pnn")),
    "9 methods, 5 seeds": (
        ("finetune", "ewc", "si", "mas", "er", "agem", "derpp", "packnet", "pnn"), 5,
        ("naive", "ewc", "si", "mas", "replay", "agem", "derpp", "packnet", "pnn"),
    ),
    "fine-tuning, 1 seed": (("finetune",), 1, ("loop",)),
}  # fmt: skip


class Measured(NamedTuple):
    """Seconds of a study.

    Attributes:
        cold: of `jaxcl compare` with an empty cache of compiled programs, by round.
        warm: of the same once more.
        peer: of the script in PyTorch, by round; empty where it cannot run.
    """

    cold: list[float]
    warm: list[float]
    peer: list[float]


def study(rounds: int, names: tuple[str, ...], peer: bool) -> dict[str, Measured]:
    """Times each study, its two starts and its peer in turn.

    Args:
        rounds: how often.
        names: of STUDIES.
        peer: whether Avalanche and PyTorch can run here.
    """
    found = {name: Measured([], [], []) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "tasks.npz"
        write_tasks(arrays)
        for _ in range(rounds):
            for name, seconds in found.items():
                time_both(name, seconds, Path(folder), arrays if peer else None)
    return found


def time_both(name: str, seconds: Measured, folder: Path, arrays: Path | None) -> None:
    """Adds a round of a study."""
    methods, seeds, theirs = STUDIES[name]
    ours = [
        sys.executable, "-m", "jaxcl", "compare", "--benchmark", "split_mnist", "--preset", "none",
        "--methods", ",".join(methods), "--seeds", str(seeds), "--hidden", f"{HIDDEN},{HIDDEN}",
        "--epochs", str(EPOCHS), "--batch", "64", "--optimizer", "sgd",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for kind in ("cold", "warm"):  # the second finds the programs that the first compiled
            words = [*ours, "--out", f"{cache}/{kind}"]
            getattr(seconds, kind).append(timed(words, {"XDG_CACHE_HOME": cache}))
    if arrays is not None:
        script = str(Path(__file__).with_name("peers.py"))
        words = [sys.executable, script, "--study", str(arrays), "--methods", *theirs]
        words += ["--seeds", str(seeds), "--epochs", str(EPOCHS)]
        words += ["--hidden", str(HIDDEN), str(HIDDEN)]
        seconds.peer.append(timed(words, {}))
    line = f"{name}: {seconds.cold[-1]:.0f} s, with compiled programs {seconds.warm[-1]:.0f} s"
    print(line + (f"; PyTorch {seconds.peer[-1]:.0f} s" if arrays else ""), flush=True)


def timed(words: list[str], environment: dict[str, str]) -> float:
    """Seconds that a program takes from its start to its end."""
    begin = time.perf_counter()
    subprocess.run(words, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def write_tasks(path: Path) -> None:
    """The tasks of split MNIST, normalized, for who reads no tensorflow-datasets."""
    benchmark = data.load("split_mnist", tasks=TASKS)
    arrays = {}
    for t, task in enumerate(benchmark.tasks):
        for prefix, part in (("", task.train), ("test_", task.test)):
            x = (np.asarray(part.x, np.float32) / benchmark.scale - benchmark.mean) / benchmark.std
            arrays[f"{prefix}x{t}"] = x.reshape(len(x), -1).astype(np.float32)
            arrays[f"{prefix}y{t}"] = np.asarray(part.y)
    np.savez(path, **arrays)


def rows(found: dict[str, Measured]) -> list[dict]:
    """What is recorded: medians, and how many times as long the peer takes."""
    made = []
    for name, (cold, warm, peer) in found.items():
        row = {"name": name, "cold": statistics.median(cold), "warm": statistics.median(warm)}
        if peer:
            row["peer"] = statistics.median(peer)
            for kind, own in (("cold", cold), ("warm", warm)):
                row[f"times_{kind}"] = statistics.median(p / o for p, o in zip(peer, own))
        made.append(row)
    return made
