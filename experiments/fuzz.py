"""Damages copies of what a finished run holds, opens them as a user does, and counts the outcomes.

    python experiments/fuzz.py --copies 1000 --out experiments/results/fuzz

Each copy has one file damaged at random: bits flipped, the end cut off, bytes repeated or zeroed,
the file deleted, or, in JSON and archives that stay readable, values replaced (huge numbers and
shapes, NaN, other types), swapped, repeated or left out. One reader, each in turn, opens it in this
process. The outcome is

- refused: an error of one sentence (ValueError, OSError, or exit code 2 with it);
- right: the value of the undamaged run;
- as written: another value, which is what the file says: it is a whole file that somebody might
  have written, or removed, of a kind that has no digest;
- older: what the checkpoint before the damaged one holds, and a sentence that says so;
- wrong: another value without a word;
- crash: any other error, or more than a minute, or 1 GB of memory.

Figures are drawn, but not rendered, which would take most of the time.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import logging
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxcl
from jaxcl import data
from jaxcl.cli.main import main as command
from jaxcl.data.benchmark import fingerprint
from jaxcl.report import figures
from jaxcl.report.results import to_json
from jaxcl.report.text import markdown
from jaxcl.study.checkpoint import FORMAT  # noqa: F401  (imports what a checkpoint needs)

OUTCOMES = ("refused", "right", "as written", "older", "wrong", "crash")
OLDER = "cannot be read"  # in the sentence that says so
COMPARE = ["compare", "--methods", "finetune,packnet", "--benchmark", "split_digits"]
COMPARE += ["--tasks", "2", "--hidden", "8", "--epochs", "2", "--devices", "1"]
SECONDS, BYTES = 60, 10**9
ODD = [None, True, -1, 0, 1, 3, 2**31, 2**70, 10**12, 1.5, 1e300, math.nan, math.inf, -math.inf]
ODD += ["", "x", "\u0000", "../..", [], {}, [[]], [10**12, 10**12], {"x": 1}]


class Slow(BaseException):
    """A reader has taken too long; nothing catches it by mistake."""


# Damage


def damage_bytes(file: Path, chance: random.Random) -> str:
    """Damages a file whatever it holds; how."""
    found, how = (
        bytearray(file.read_bytes()),
        chance.choice(["flip", "cut", "repeat", "zero", "gone"]),
    )
    if how == "gone" or not found:
        file.unlink()
        return "gone"
    at = chance.randrange(len(found))
    end = min(len(found), at + chance.randint(1, 64))
    if how == "flip":
        for _ in range(chance.choice([1, 1, 3])):
            found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del found[at:]
    elif how == "repeat":
        found[at:at] = found[at:end]
    else:
        found[at:end] = bytes(end - at)
    file.write_bytes(found)
    return f"{how} at {at}"


def damage_json(file: Path, chance: random.Random) -> str:
    """Changes one place in a JSON file; how."""
    tree = json.loads(file.read_text())
    places = list(_places(tree))
    holder, key = chance.choice(places)
    other, there = chance.choice(places)
    how = chance.choice(["replace", "replace", "swap", "repeat", "drop"])
    if how == "replace":
        holder[key] = copy.deepcopy(chance.choice(ODD))
    elif how == "swap":
        holder[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(holder[key])
    elif how == "repeat" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif how == "repeat":
        holder[f"{key} "] = copy.deepcopy(holder[key])
    else:
        del holder[key]
    file.write_text(json.dumps(tree))
    return f"{how} at {key}"


def _places(tree: Any):
    """Each place in a tree, as what holds it and its key."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def damage_archive(file: Path, chance: random.Random) -> str:
    """Writes an archive anew, whole, with one of its arrays changed; how."""
    arrays = dict(np.load(file))
    name = chance.choice(sorted(arrays))
    how = chance.choice(["huge", "shape", "nan", "objects", "swap", "drop", "values"])
    if how in ("huge", "shape"):  # the header says more or less than there is
        *first, last = arrays[name].shape
        return _write_header(file, arrays, name, (*first, 10**12 if how == "huge" else last // 2))
    if how == "nan":
        arrays[name] = np.where(
            np.arange(arrays[name].size).reshape(arrays[name].shape), 1.0, np.nan
        )
    elif how == "objects":
        arrays[name] = np.array([{}], object)
    elif how == "swap":
        arrays = dict(zip(arrays, reversed(arrays.values())))
    elif how == "drop":
        del arrays[name]
    else:
        arrays[name] = arrays[name] + np.ones((), arrays[name].dtype)
    np.savez(file, **arrays)
    return f"{how} {name}"


def _write_header(file: Path, arrays: dict, name: str, shape: tuple[int, ...]) -> str:
    with zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            whole = io.BytesIO()
            header = np.lib.format.header_data_from_array_1_0(array)
            header |= {"shape": shape} if key == name else {}
            np.lib.format.write_array_header_1_0(whole, header)
            archive.writestr(f"{key}.npy", whole.getvalue() + array.tobytes())
    return f"shape of {name} is {shape}"


# Reading


def said_by(*words: Any) -> str:
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command([str(word) for word in words])
    return out.getvalue()


def load(work: Path) -> str:
    """Every learner, what makes its network, and the results."""
    run, found = jaxcl.load(work / "run"), hashlib.sha256()
    for method in run.methods:
        learner = run[method].learner(run.seeds[0])
        for leaf in jax.tree.leaves(learner._replace(key=jax.random.key_data(learner.key))):
            found.update(np.asarray(leaf).tobytes())
        found.update(repr((run[method].choice(), run[method].tasks)).encode())
    results = run.results and to_json(run.results)
    return f"{found.hexdigest()} {run.inputs} {run.forgotten} {run.seeds} {results}"


def show(work: Path) -> str:
    """The numbers of the results."""
    return said_by("show", work / "run", "--format", "json")


def report(work: Path) -> str:
    """The page."""
    said_by("report", work / "run", "--output", work / "page.html")
    return (work / "page.html").read_text()


def report_unfinished(work: Path) -> str:
    """The page of a run without results, whose checkpoints are read."""
    (work / "run" / "results.json").unlink(missing_ok=True)
    return report(work)


def plot(work: Path) -> str:
    """The tables that are written anew."""
    said_by("plot", work / "run")
    return (work / "run" / "table.md").read_text() + (work / "run" / "curves.csv").read_text()


def merge(work: Path) -> str:
    """The results of the run and of another one with other seeds."""
    said_by("merge", work / "run", work / "other", "--out", work, "--name", "merged")
    return (work / "merged" / "results.json").read_text()


def resume(work: Path) -> str:
    """The results once the run has gone on; from an older checkpoint, if need be."""
    said_by(*COMPARE, "--out", work, "--name", "run", "--seeds", "2", "--resume")
    methods = json.loads((work / "run" / "results.json").read_text())["methods"]
    kept = ("accuracy", "measures", "curves", "diverged", "parameters")
    return json.dumps({name: [method[key] for key in kept] for name, method in methods.items()})


def arrays(work: Path) -> str:
    """All examples of a set in an archive."""
    return " ".join(fingerprint(data.npz(path)) for path in sorted(work.glob("*.npz")))


# What is damaged, and who reads it


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        pattern: of its files, below the folder of all.
        damages: of which one is chosen.
        readers: each in turn.
        editable: those that give what a whole file says, as it has no digest.
    """

    pattern: str
    damages: tuple[Callable, ...]
    readers: tuple[Callable, ...]
    editable: tuple[Callable, ...] = ()


BOTH = (damage_bytes, damage_json, damage_json)
PAGES = (show, report, plot, merge)
KINDS = {
    "settings.json": Kind("run/settings.json", BOTH, (load, *PAGES, resume), PAGES),
    "results.json": Kind("run/results.json", BOTH, (load, *PAGES, resume), (load, *PAGES)),
    "inferred.json": Kind("run/inferred.json", BOTH, (report,), (report,)),
    "curves.csv": Kind("run/curves.csv", (damage_bytes,), (load, show, report)),
    "checkpoint metadata": Kind(
        "run/checkpoints/*/*/**/*METADATA", BOTH, (load, report_unfinished, load, resume)
    ),
    "checkpoint arrays": Kind(
        "run/checkpoints/*/*/state/**/*[!A]",
        (damage_bytes,),
        (load, report_unfinished, load, resume),
    ),
    "archive of arrays (.npz)": Kind("*.npz", (damage_bytes, damage_archive), (arrays,), (arrays,)),
}
SHARES = {"settings.json": 4, "results.json": 5, "archive of arrays (.npz)": 4, "curves.csv": 0.5}


def says(file: Path) -> str | None:
    """What a damaged file holds if it is a whole one, or ""; None if it is neither."""
    if not file.exists():
        return ""
    with contextlib.suppress(Exception):
        if file.suffix == ".json":
            return json.dumps(json.loads(file.read_text()))
        with zipfile.ZipFile(file) as archive:
            members = [io.BytesIO(archive.read(name)) for name in archive.namelist()]
        arrays = [np.lib.format.read_array(member, allow_pickle=False) for member in members]
        whole = all(not member.read() for member in members)
        return str([array.tolist() for array in arrays]) if whole else None
    return None


def attempt(reader: Callable[[Path], str], work: Path) -> tuple[str, str]:
    """What a reader gives, or how it fails: "value", "refused" or "crash", and what it says."""
    err, before = io.StringIO(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            value = reader(work)
        outcome = "older" if OLDER in value + err.getvalue() else "value", value
    except SystemExit as end:
        said = err.getvalue().splitlines()
        good = end.code == 2 and bool(said) and said[-1].startswith("jaxcl: ")
        outcome = "refused" if good else "crash", "\n".join(said[-1:])
    except (ValueError, OSError) as error:
        outcome = "refused" if str(error) and "\n" not in str(error) else "crash", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = "crash", "".join(traceback.format_exception(error)[-4:])
    finally:
        signal.alarm(0)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return outcome if grown < BYTES else ("crash", f"{grown / 1e9:.1f} GB of memory")


def examine(kind: Kind, number: int, base: Path, work: Path, right: dict) -> dict:
    """Damages one copy, and has it read."""
    chance = random.Random(f"{kind.pattern} {number}")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    file = chance.choice(sorted(path for path in work.glob(kind.pattern) if path.is_file()))
    damages = [one for one in kind.damages if one is not damage_json or _is_json(file)]
    before, how = says(file), chance.choice(damages)(file, chance)
    after, reader = says(file), kind.readers[number % len(kind.readers)]
    outcome, said = attempt(reader, work)
    if outcome in ("value", "older") and said == right[reader]:
        outcome = "right"
    elif outcome == "value":
        edited = reader in kind.editable and after is not None and after != before
        edited = edited and (reader is not show or not after or _shows(said, after))
        outcome = "as written" if edited else "wrong"
    return {
        "number": number, "file": str(file.relative_to(work)), "damage": how,
        "reader": reader.__name__, "outcome": outcome, "said": said,
    }  # fmt: skip


def _shows(shown: str, written: str) -> bool:
    """Whether the numbers that are shown are those that the results have in their file."""

    def finite(text: str) -> Any:
        return json.loads(text, parse_constant=lambda _: None)

    def held(shown: Any, written: Any) -> bool:
        if not isinstance(shown, dict):
            return shown == written
        derived = ("capacity", "free", "reuse", "compression", "shown")
        return isinstance(written, dict) and all(
            held(value, written.get(key)) for key, value in shown.items() if key not in derived
        )

    return held(finite(shown), finite(written))


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except ValueError:
        return False


def make(base: Path) -> None:
    """The runs and the archive that are damaged."""
    for name, seeds in (("run", "2"), ("other", "2,3")):
        said_by(*COMPARE, "--out", base, "--name", name, "--seeds", seeds)
    said_by("infer", base / "run")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8), np.uint8), np.arange(60) % 3
    np.savez(base / "plain.npz", x=x, y=y)
    np.savez_compressed(base / "packed.npz", x=x, y=y)


def unrendered(figure: Any, folder: str | Path, name: str) -> list[Path]:
    """In the place of `figures.save`."""
    return [Path(folder) / f"{name}.{kind}" for kind in ("svg", "png")]


def table(rows: list[dict]) -> str:
    """A row for each kind of file."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    counts = Counter((row["kind"], row["outcome"]) for row in rows)
    cells = [[kind, *(counts[kind, one] for one in OUTCOMES)] for kind in kinds]
    total = ["all", *(sum(column) for column in list(zip(*cells))[1:])]
    body = [[row[0], sum(row[1:]), *row[1:]] for row in [*cells, total]]
    return markdown(["file", "copies", *OUTCOMES], body)


def main() -> None:
    parser = argparse.ArgumentParser(description="Damage copies of a run, and read them.")
    parser.add_argument("--copies", type=int, default=1000, help="in all, about")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--first", type=int, default=0, help="number of the first copy of a kind")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/fuzz"))
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    warnings.simplefilter("always", UserWarning)
    logging.disable()
    figures.save = unrendered
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Slow("too slow")))
    chosen, rows, began = given.kinds.split(","), [], time.perf_counter()
    unit = given.copies / sum(SHARES.get(name, 2) for name in chosen)
    with tempfile.TemporaryDirectory() as folder:
        base, work = Path(folder) / "base", Path(folder) / "work"
        make(base)
        right = {}
        for reader in {reader for name in chosen for reader in KINDS[name].readers}:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(base, work)
            right[reader] = reader(work)
        for name in chosen:
            for number in range(math.ceil(unit * SHARES.get(name, 2))):
                row = examine(KINDS[name], given.first + number, base, work, right)
                rows.append({"kind": name, **row})
                if row["outcome"] in ("wrong", "crash"):
                    print(json.dumps({**rows[-1], "said": row["said"][-600:]}), file=sys.stderr)
            print(name, f"{time.perf_counter() - began:.0f} s", flush=True)
    bad = [row for row in rows if row["outcome"] in ("wrong", "crash")]
    given.out.mkdir(parents=True, exist_ok=True)
    said = f"`experiments/fuzz.py --copies {given.copies}` says what each column counts."
    (given.out / "table.md").write_text(f"# Damaged copies of a run\n\n{said}\n\n{table(rows)}\n")
    content = {"copies": len(rows), "wrong or crash": bad}
    (given.out / "fuzz.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
