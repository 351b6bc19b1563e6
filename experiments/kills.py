"""Kills real runs at random moments with SIGKILL, and compares what comes out with runs left alone.

    python experiments/kills.py --kills 100 --out experiments/results/kills

For each method of the registry, and for sweeps, a run is left alone; another one is killed again
and again, each time after a random part of the time that the first took, and resumed until it is
done. The accuracies, the curves, the measures and the last checkpoint, all that there is of the
learners, are then compared bit for bit. Kills hit whatever the command does: its start, training, a
save. What was found is written after each chain of kills.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxcl import checkpoint
from jaxcl.methods import REGISTRY

TINY = ["--benchmark", "split_digits", "--tasks", "2", "--seeds", "2", "--hidden", "12"]
TINY += ["--epochs", "150", "--devices", "1", "--save-every", "5epochs"]
KEPT = ("accuracy", "measures", "curves", "diverged", "parameters")


def words(method: str, sweeps: bool, out: Path) -> list[str]:
    """The command of one run."""
    options = [*TINY, "--out", str(out), "--name", "run"]
    if sweeps:
        return ["sweep", method, *options, "--learning-rate", "0.02,0.05"]
    return ["compare", "--methods", method, *options]


def start(command: list[str]) -> subprocess.Popen:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcl", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def undisturbed(command: list[str]) -> float:
    """Runs a command to its end; the seconds that it took."""
    began = time.perf_counter()
    process = start(command)
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said)
    return time.perf_counter() - began


def chain(command: list[str], seconds: float, kills: int, chance: random.Random) -> dict:
    """Kills and resumes a run until it is done; how often, and where it stood."""
    folder = Path(command[command.index("--out") + 1]) / "run" / "checkpoints"
    killed, places = 0, []
    while True:
        process = start([*command, "--resume"])
        if killed < kills:
            try:
                process.wait(chance.uniform(0.3, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        _, said = process.communicate()
        if process.returncode == 0:
            return {"kills": killed, "places": places}
        if process.returncode != -9:
            raise RuntimeError(said)
        killed += 1
        newest = [checkpoint.latest(one) for one in sorted(folder.glob("*"))]
        parts = list(folder.glob("*/*.orbax-checkpoint-tmp*"))
        place = newest[0][1].name if newest and newest[0] else "before the first checkpoint"
        places.append(f"{place}, while saving" if parts else place)


def equal(one: Path, other: Path) -> list[str]:
    """The names of what differs between two finished runs; empty if nothing does."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill runs at random moments and compare.")
    parser.add_argument("--kills", type=int, default=100, help="kills in all, at least")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/kills"))
    parser.add_argument("--methods", default=",".join(spec.name for spec in REGISTRY))
    parser.add_argument("--sweeps", default="finetune,packnet", help="methods to sweep, too")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    kinds = [(name, False) for name in given.methods.split(",") if name]
    kinds += [(name, True) for name in given.sweeps.split(",") if name]
    each = int(np.ceil(given.kills / len(kinds)))
    rows = []
    given.out.mkdir(parents=True, exist_ok=True)
    for method, sweeps in kinds:
        with tempfile.TemporaryDirectory() as folder:
            one, other = Path(folder) / "one", Path(folder) / "other"
            undisturbed(words(method, sweeps, one))  # which fills the cache of programs
            shutil.rmtree(one)
            seconds = undisturbed(words(method, sweeps, one))
            row = {"command": "sweep" if sweeps else "compare", "method": method, "kills": 0}
            row |= {"chains": 0, "places": [], "differences": []}
            while row["kills"] < each:
                shutil.rmtree(other, ignore_errors=True)
                left = each - row["kills"]
                done = chain(words(method, sweeps, other), seconds, left, chance)
                row["kills"] += done["kills"]
                row["chains"] += 1
                row["places"] += done["places"]
                row["differences"] += equal(one / "run", other / "run")
        rows.append(row)
        print(row, flush=True)
        total = {"kills": sum(r["kills"] for r in rows), "chains": sum(r["chains"] for r in rows)}
        total["differences"] = sum(len(r["differences"]) for r in rows)
        content = {"settings": TINY, "seed": given.seed, "total": total, "rows": rows}
        (given.out / "kills.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
