"""Kills real runs at random moments with SIGKILL, and compares what comes out with runs left alone.

    python experiments/kills.py --kills 100 --out experiments/results/kills

For each method of the registry, for sweeps and for runs that are extended, one run is left alone.
Others are killed again and again, each time after a random part of the time that the first one
took, and resumed until they are done. The accuracies, the curves, the measures and the last
checkpoint, all that there is of the learners, are then compared bit for bit. A kill hits whatever
the command does: its preparation, training, a save, the writing of results. The finished run that
was extended has to be, byte for byte, what it was.

Each run is the command in a process of its own, forked from this one, which has imported what the
command imports, as that takes longer than such a small run, and has started nothing of JAX.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
import numpy as np
from orbax.checkpoint import v1  # noqa: F401

from jaxcl import checkpoint
from jaxcl.cli import compare, extend, sweep  # noqa: F401
from jaxcl.cli.main import main as command
from jaxcl.methods import REGISTRY

TINY = ["--benchmark", "split_digits", "--tasks", "2", "--seeds", "2", "--hidden", "12"]
TINY += ["--epochs", "60"]
MORE = ["--benchmark", "split_digits,classes=0-4"]  # a third task
MACHINE = ["--devices", "1", "--save-every", "3epochs"]
TASKS = {"compare": 2, "sweep": 2, "extend": 3}
BEFORE = {"packnet": ["--room", "1"], "ewc": ["--strength", "1"]}  # of runs to be extended
KEPT = ("accuracy", "measures", "curves", "diverged", "parameters")


def words(kind: str, method: str, out: Path) -> list[str]:
    """The command of one run; the run that `extend` goes on from lies beside it."""
    options = [*MACHINE, "--out", str(out), "--name", "run"]
    if kind == "sweep":
        return ["sweep", method, *TINY, *options, "--learning-rate", "0.02,0.05"]
    if kind == "extend":
        return ["extend", str(out.parent / "old" / "run"), *MORE, *options]
    return ["compare", "--methods", method, *TINY, *options]


def start(run: Callable[[], object], log: Path) -> int:
    """The number of a process that runs a function; what it says goes to a file."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(number: int, seconds: float = np.inf) -> int | None:
    """The exit code of a process, or the negative of its signal; None if it still runs."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def undisturbed(given: list[str], log: Path) -> float:
    """Runs a command to its end; the seconds that it took."""
    began = time.perf_counter()
    if finish(start(lambda: command(given), log)):
        raise RuntimeError(log.read_text())
    return time.perf_counter() - began


def chain(given: list[str], log: Path, seconds: float, kills: int, chance: random.Random) -> list:
    """Kills and resumes a run until it is done; where it stood each time that it was killed."""
    folder = Path(given[given.index("--out") + 1]) / "run" / "checkpoints"
    end, places = f"task_{TASKS[given[0]]}", []
    while True:
        number = start(lambda: command([*given, "--resume"]), log)
        patience = chance.uniform(0.0, 1.0) * seconds if len(places) < kills else np.inf
        code = finish(number, patience)
        if code is None:
            os.kill(number, signal.SIGKILL)
            code = finish(number)
        if code == 0:
            return places
        if code != -signal.SIGKILL:
            raise RuntimeError(log.read_text())
        newest = [checkpoint.latest(one) for one in sorted(folder.glob("*"))]
        place = newest[0][1].name if newest and newest[0] else "before the first checkpoint"
        half = list(folder.glob("*/*.orbax-checkpoint-tmp*"))
        places.append(f"{place}, while saving" if half else place)
        if place == end:  # nothing is left to train
            kills = 0


def equal(one: Path, other: Path) -> list[str]:
    """The names of what differs between two finished runs; empty if nothing does."""
    one, other = one / "run", other / "run"
    contents = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    found = []
    if "combinations" in contents[0]:
        found += [k for k in ("combinations", "best", "test") if contents[0][k] != contents[1][k]]
    else:
        for method, results in contents[0]["methods"].items():
            other_results = contents[1]["methods"][method]
            found += [f"{method}/{k}" for k in KEPT if results[k] != other_results[k]]
    for folder in sorted((one / "checkpoints").iterdir()):
        paths = [checkpoint.latest(root / "checkpoints" / folder.name) for root in (one, other)]
        names, trees = zip(*((path[1].name, leaves(path[1])) for path in paths if path))
        found += ["name of the last checkpoint"] if len({*names}) > 1 else []
        found += [name for name in trees[0] if trees[0][name] != trees[1].get(name)]
    return found


def leaves(path: Path) -> dict[str, str]:
    """The digest of each leaf of a checkpoint, but for what times and counts."""
    checkpoint.verify(path)
    digests = checkpoint.digests_of(path)
    return {k: v for k, v in digests.items() if k not in ("seconds", "compilations")}


def contents(folder: Path) -> dict[Path, bytes]:
    """All files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def examine(kind: str, method: str, kills: int, chance: random.Random) -> dict:
    """Chains of kills of one method, until there are enough."""
    row = {"command": kind, "method": method, "kills": 0, "chains": 0}
    places, differences = [], []
    with tempfile.TemporaryDirectory() as folder:
        log, one, old = (Path(folder) / name for name in ("log", "one", "old"))
        if kind == "extend":
            undisturbed(words("compare", method, old) + BEFORE.get(method, []), log)
        before = contents(old)
        seconds = undisturbed(words(kind, method, one), log)
        while len(places) < kills:
            other = Path(folder) / f"chain_{row['chains']}"
            given = words(kind, method, other)
            places += chain(given, log, seconds, kills - len(places), chance)
            finish(start(lambda found=other: print(json.dumps(equal(one, found))), log))
            differences += json.loads(log.read_text())
            row["chains"] += 1
        differences += ["the run that was extended"] if contents(old) != before else []
    return {**row, "kills": len(places), "places": places, "differences": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill runs at random moments and compare.")
    parser.add_argument("--kills", type=int, default=100, help="kills in all, at least")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/kills"))
    parser.add_argument("--methods", default=",".join(spec.name for spec in REGISTRY))
    parser.add_argument("--sweeps", default="finetune,packnet", help="methods to sweep, too")
    parser.add_argument("--extends", default="packnet,pnn,ewc,er", help="methods to extend, too")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    warnings.filterwarnings("ignore", "os.fork")  # no backend and no thread is started here
    asked = {"compare": given.methods, "sweep": given.sweeps, "extend": given.extends}
    kinds = [(kind, name) for kind, names in asked.items() for name in names.split(",") if name]
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, method in kinds:
        rows.append(examine(kind, method, int(np.ceil(given.kills / len(kinds))), chance))
        print(rows[-1], flush=True)
        total = {key: sum(row[key] for row in rows) for key in ("kills", "chains")}
        total["differences"] = sum(len(row["differences"]) for row in rows)
        content = {"settings": [*TINY, *MACHINE], "seed": given.seed, "total": total, "rows": rows}
        (given.out / "kills.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
