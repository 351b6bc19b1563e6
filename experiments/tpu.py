"""Every method compiled for TPUs by their own compiler, on a machine without one.

    pip install ".[experiments,tpu]" && python experiments/tpu.py
    python experiments/tpu.py --parts chips seeds --methods hat     # some of it; other rows stay

First the programs of every method for a v5e slice of 2 x 2 chips; from there the training of an
epoch with one thing at a time otherwise. Nothing runs: the compiler says whether a program fits,
and its text what a training step moves. Rows are kept as they come, and a table beside them.
"""

import dataclasses
import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from benchmark import METHODS, TASKS, gflop_of, options, sequence
from rich.console import Console

from jaxcl import masks, recipes
from jaxcl.core.checks import install
from jaxcl.methods import REGISTRY
from jaxcl.report import text
from jaxcl.study import compiled, lowering, topology
from jaxcl.study.memory import limit_bytes

CONSOLE = Console(width=140)
STEPS = 100  # of an epoch, which the programs are not compiled for


@dataclass(frozen=True)
class Case:
    """One thing to compile for.

    Attributes:
        method: its name.
        topology: the slice.
        seeds: replicas in all.
        network: of `benchmark.NETWORKS`.
        precision: of its arithmetic.
        split: devices that share a replica.
    """

    method: str
    topology: str = "v5e:2x2"
    seeds: int = 4
    network: str = "mlp400"
    precision: Literal["float32", "bfloat16"] = "float32"
    split: int = 1


CHANGES: dict[str, list[dict[str, Any]]] = {
    "chips": [
        {"topology": "v4:2x2x1", "seeds": 8},
        {"topology": "v5p:2x2x1"},
        {"topology": "v6e:2x2"},
        {"topology": "v5e:4x4", "seeds": 16},
    ],
    "seeds": [{"seeds": 64}],
    "precision": [{"precision": "bfloat16"}],
    "networks": [{"network": "alexnet"}, {"network": "resnet18"}],
    "split": [{"seeds": 1, "split": 4}],
}


@dataclass(frozen=True)
class Config:
    """What to compile.

    Attributes:
        parts: methods: every program of every method for v5e 2 x 2; chips: other kinds and a slice
            of 16; seeds: 16 a core; precision: bfloat16; networks: AlexNet-like and ResNet-18;
            split: one replica over four cores.
        methods: of the parts but the first.
        out: folder for results.json and table.md.
    """

    parts: tuple[Literal["methods", "chips", "seeds", "precision", "networks", "split"], ...] = (
        "methods",
        "chips",
        "seeds",
        "precision",
        "networks",
        "split",
    )
    methods: tuple[str, ...] = METHODS
    out: Path = Path(__file__).parent / "results" / "tpu"


def main(config: Config) -> None:
    """Compiles, and writes after every case."""
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "results.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    cases = []
    if "methods" in config.parts:
        cases += [(Case(spec.name), lowering.PROGRAMS) for spec in REGISTRY]
    for part in config.parts:
        for change in CHANGES.get(part, []):
            cases += [(Case(method, **change), ("epoch",)) for method in config.methods]
    for case, names in cases:
        about = dataclasses.asdict(case)
        rows = [row for row in rows if any(row[k] != v for k, v in about.items())]
        rows += measure(case, names)
        found = {"jax": jax.__version__, "libtpu": version("libtpu"), "rows": rows}
        path.write_text(json.dumps(found, indent=1) + "\n")
        (config.out / "table.md").write_text(table(found))


def version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def measure(case: Case, names: tuple[str, ...]) -> list[dict]:
    """A row for each program."""
    began, rows = time.perf_counter(), []
    about = dataclasses.asdict(case)
    try:
        benchmark = sequence(case.network, TASKS, STEPS)
        study = recipes.studies(
            case.method, benchmark, options(case.network, case.precision), range(case.seeds),
            devices=topology.tpu(case.topology), devices_per_replica=case.split,
        )[-1]  # fmt: skip
        lowered = lowering.lower(study, names)
    except Exception as error:  # it is what is to be found out
        return [about | {"program": names[0], "error": f"{type(error).__name__}: {error}"[:300]}]
    seconds = time.perf_counter() - began
    learners = lowering.learners(study)
    theta = masks.size_bytes(learners.theta) // study.layout.padded
    for name in names:
        row = about | {
            "program": name, "devices": study.layout.mesh.size, "chunk": study.layout.chunk,
            "lower_seconds": seconds, "limit_bytes": limit_bytes(study.layout),
            "theta_bytes": theta,
        }  # fmt: skip
        began = time.perf_counter()
        try:
            program = lowered[name].compile()
        except Exception as error:
            rows.append(row | {"error": f"{type(error).__name__}: {error}"[:300]})
        else:
            row["compile_seconds"] = time.perf_counter() - began
            rows.append(row | facts(program))
            if name == "epoch":
                rows[-1] |= floor(case, study, theta)
        done = rows[-1]
        CONSOLE.print(
            f"{case.topology} {case.method} x{case.seeds} {case.network} {case.precision} "
            f"/{case.split} {name}: "
            + (done.get("error") or f"{done['compile_seconds']:.1f} s, {done['bytes']}"),
            markup=False,
        )
    return rows


def facts(program: Any) -> dict:
    """What a compiled program says of itself."""
    printed, cost = program.as_text(), program.cost_analysis() or {}
    used = compiled.bytes_of(program)
    loop = compiled.training_loop(printed)
    found = compiled.computations(printed)
    copies = sum(i.opcode in ("copy", "copy-start") for part in found.values() for i in part)
    return {
        "bytes": used._asdict(),
        "total_bytes": used.total,
        "collectives": dict(compiled.collectives(printed)),
        "copies": copies,
        "loop": dict(compiled.kinds(loop)),
        "loop_collectives": {
            k: n for k, n in compiled.kinds(loop).items() if k.startswith(compiled.COLLECTIVES)
        },
        "loop_copies": sum(i.opcode in ("copy", "copy-start") for i in loop),
        "loop_transposes": sum(i.opcode == "transpose" for i in loop),
        "step_bytes": compiled.step_bytes(printed),
        "accessed_bytes": cost.get("bytes accessed"),
        "flops": cost.get("flops"),
    }


def floor(case: Case, study: Any, theta: int) -> dict:
    """Bytes and operations of a step on a device, as in docs/performance.md."""
    layout = study.layout
    known = case.method in METHODS
    gflop = gflop_of(case.method, case.network, study.benchmark) if known else 0.0
    return {
        "floor_bytes": 6 * theta * layout.chunk,
        "floor_flops": 1e9 * gflop * layout.chunk / case.split,
    }


def table(found: dict) -> str:
    """All rows in Markdown."""
    rows = found["rows"]
    parts = [
        "# Compiled for TPUs",
        f"By libtpu {found['libtpu']}, JAX {found['jax']}, on a machine without a TPU: `python "
        "experiments/tpu.py`. Nothing ran. Batches of 64, plain SGD, five tasks; MLP is "
        "784-400-400. Compile times are those of a machine that others used too.",
        "*Arguments* and *temporaries* are bytes of each device, of which the kind of chip has "
        "*of*. *Collectives* counts exchanges between devices in the whole program. *Copies* "
        "counts those within the training loop and in all of the program. *A step moves* is what "
        "the loop's instructions read and write in main memory (what stays in the fast one is not "
        "counted), and the floor that of [performance.md](../../../docs/performance.md).",
    ]
    plain = dataclasses.asdict(Case("", "v5e:2x2"))
    base = [r for r in rows if all(r[k] == v for k, v in plain.items() if k != "method")]
    header = ["method", "program", "arguments", "temporaries", "of", "compiled in", "collectives"]
    header += ["copies", "a step moves", "floor", "GFLOP a step"]
    parts += ["## Every method, v5e 2 x 2, one seed a core"]
    parts += [text.markdown(header, [cells(r) for r in base])]
    others = [r for r in rows if r not in base]
    parts += ["## One thing at a time: the training of an epoch"]
    parts += [text.markdown(["case", *header[:1], *header[2:]], [other(r) for r in others])]
    return "\n\n".join(parts) + "\n"


def cells(row: dict) -> list[str]:
    start = [row["method"], row["program"]]
    if "error" in row:
        return [*start, f"does not compile: {row['error']}", *[""] * 8]
    moved = row["program"] == "epoch"
    return [
        *start, text.size(row["bytes"]["arguments"]), text.size(row["bytes"]["temporaries"]),
        text.size(row["limit_bytes"]), f"{row['compile_seconds']:.1f} s",
        listed(row["collectives"]), f"{row['loop_copies']} of {row['copies']}",
        text.size(row["step_bytes"]) if moved else "",
        text.size(row["floor_bytes"]) if moved else "",
        f"{row['floor_flops'] / 1e9:.2f}" if moved and row["floor_flops"] > 0 else "",
    ]  # fmt: skip


def other(row: dict) -> list[str]:
    """Like `cells`, with what is otherwise than in the first table."""
    usual = dataclasses.asdict(Case(""))
    said = [
        f"{row[k]} {k}" if k in ("seeds",) else f"{k} {row[k]}" if k == "split" else str(row[k])
        for k in usual
        if k != "method" and row[k] != usual[k]
    ]
    method, _, *rest = cells(row)
    return [", ".join(said), method, *rest]


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"


if __name__ == "__main__":
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit(f"tpu.py needs libtpu: {install('tpu')}")
    jax.config.update("jax_platforms", "cpu")
    main(tyro.cli(Config))
