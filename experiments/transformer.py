"""A language model that learns four languages one after the other, on one device or over a mesh.

    python experiments/transformer.py                      # some minutes on two cores
    python experiments/transformer.py --mesh 4 2           # parameters over 4 x 2 devices
    python experiments/transformer.py --equal              # the same on 1, 2, 4 and 8 devices?
    python experiments/transformer.py --compile v5e:4x4    # 1 billion parameters, none allocated

A decoder-only transformer in nnx, its layers stacked and scanned over, predicts the next byte of
what this repository is written in: English (its documentation), Python (its sources), JSON (its
results), SVG (its pictures). The last tenth of each text is held out. Five ways to learn them:

- fine-tuning, which forgets;
- PackNet and HAT on the kernels of attention and MLP. HAT gates the values and the MLPs' hidden
  units; `trace_wiring` finds the table, in which all layers of a stack share their gates;
- PackNet and HAT on adapters of low rank (LoRA: Hu et al., 2021) of a trunk that has learned
  English and is frozen. HAT gates the ranks, by a table written by hand: a kernel that is a product
  of two parameters cannot be traced.

Embeddings, norms and head are each task's own and go on from the previous task's. With adapters the
norms within the blocks belong to the trunk.
"""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxcl
from jaxcl import models, sharding
from jaxcl.report.text import markdown

ROOT = Path(__file__).parents[1]
TEXTS = {
    "English": ("README.md", "CHANGELOG.md", "docs/*.md"),
    "Python": ("jaxcl/*/*.py",),
    "JSON": ("experiments/results/methods/*/*.json",),
    "SVG": ("docs/images/*.svg",),
}
OWN = r"^(params/)?(embed|norm|head)/|_norm/"  # leaves that are each task's own
MOST = 120_000  # bytes of a text
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB of a core
# How a leaf's last axes lie on the mesh: "data" cuts parameters and batches, "model" the units.
RULES = [
    (r"(query|key|value|up)/kernel", PartitionSpec("data", "model")),
    (r"(out|down)/kernel", PartitionSpec("model", "data")),
    (r"adapters/.*/a$", PartitionSpec("data", None)),  # ranks are few
    (r"adapters/.*/b$", PartitionSpec(None, "data")),
    (r"embed/embedding", PartitionSpec(None, "data")),
    (r"head/kernel", PartitionSpec("data", None)),
    (r"(attention|embeddings)/blocks/", PartitionSpec("model")),
]


@dataclass(frozen=True)
class Shape:
    """Of the network.

    Attributes:
        layers: blocks.
        width: of the residual stream.
        heads: of attention.
        hidden: units of an MLP.
        rank: of an adapter.
        dtype: what it computes in; parameters are float32.
    """

    layers: int = 2
    width: int = 96
    heads: int = 4
    hidden: int = 384
    rank: int = 16
    dtype: str = "float32"


BILLION = Shape(layers=20, width=2048, heads=16, hidden=8192, rank=64, dtype="bfloat16")


@dataclass(frozen=True)
class Settings:
    """Everything that is chosen.

    Attributes:
        approaches: which ways to learn.
        steps: of a task; PackNet trains half as many once it has pruned.
        batch: windows of a step.
        length: bytes of a window.
        learning_rate: of AdamW.
        s_max: HAT's steepest gate.
        c: weight of HAT's regularizer.
        seeds: each draws the network and the batches.
        tests: batches of held-out text.
        mesh: devices along "data" and "model".
        shape: of the network.
        equal: compare some steps on 1, 2, 4 and 8 devices instead.
        compile: a TPU topology, such as v5e:4x4: compile a step of 1 billion parameters instead.
        out: folder of the results.
    """

    approaches: tuple[str, ...] = ("finetune", "packnet", "hat", "packnet-lora", "hat-lora")
    steps: int = 120
    batch: int = 16
    length: int = 64
    learning_rate: float = 3e-3
    s_max: float = 50.0
    c: float = 0.1
    seeds: tuple[int, ...] = (0,)
    tests: int = 4
    mesh: tuple[int, int] = (1, 1)
    shape: Shape = Shape()
    equal: bool = False
    compile: str | None = None
    out: Path = ROOT / "experiments" / "results" / "transformer"


class Block(nnx.Module):
    """Attention, then an MLP, each of what a norm makes of the stream, and added to it."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        linear = functools.partial(
            nnx.Linear, use_bias=False, dtype=jnp.dtype(shape.dtype), rngs=rngs
        )
        norm = functools.partial(nnx.RMSNorm, shape.width, rngs=rngs)
        self.heads, self.attention_norm, self.mlp_norm = shape.heads, norm(), norm()
        self.query, self.key, self.value, self.out = (
            linear(shape.width, shape.width) for _ in range(4)
        )
        self.up, self.down = linear(shape.width, shape.hidden), linear(shape.hidden, shape.width)

    def __call__(self, x):  # [B, T, width]
        h = self.attention_norm(x)
        q, k, v = (
            f(h).reshape(*x.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value)
        )
        h = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + self.out(h.reshape(x.shape))
        return x + self.down(nnx.relu(self.up(self.mlp_norm(x))))


class Transformer(nnx.Module):
    """Bytes [B, T] to logits [B, T, 256]; the blocks' parameters have a leading axis of layers."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=shape.layers)
        @nnx.vmap
        def stack(rngs):
            return Block(shape, rngs)

        dtype = jnp.dtype(shape.dtype)
        self.embed = nnx.Embed(256, shape.width, dtype=dtype, rngs=rngs)
        self.blocks = stack(rngs)
        self.norm = nnx.RMSNorm(shape.width, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(shape.width, 256, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def through(x, block):
            return block(x).astype(x.dtype)

        x = through(self.embed(tokens), self.blocks)
        return self.head(self.norm(x)).astype(jnp.float32)


def rotated(x):
    """Turns pairs of entries [B, T, heads, N] by their position (RoPE: Su et al., 2021)."""
    frequency = 1e4 ** -jnp.linspace(0, 1, x.shape[-1] // 2, endpoint=False)
    angle = jnp.arange(x.shape[1])[:, None, None] * frequency[None, None]
    sin, cos = jnp.sin(angle)[None].astype(x.dtype), jnp.cos(angle)[None].astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Approach(NamedTuple):
    """A way to learn.

    Attributes:
        method: of jaxcl.
        params: what the method divides, as it starts.
        trunk: what is frozen throughout.
        network: (params, trunk, tokens) -> logits.
    """

    method: jaxcl.Method
    params: Any
    trunk: Any
    network: Callable


def made_on(mesh: Mesh) -> Callable:
    """Calls a function so that each leaf of its result is made where it lies."""

    def make(function, *args):
        places = sharding.by_path(jax.eval_shape(function, *args), mesh, RULES)
        return jax.jit(function, out_shardings=places)(*args)

    return make


def approach(name: str, settings: Settings, tasks: int, params: Any, make: Callable) -> Approach:
    """By its name.

    Args:
        name: of the approach.
        settings: all of them.
        tasks: their number.
        params: the network's, or those of the trunk.
        make: of `made_on`, or `jax.eval_shape`.
    """
    model = models.from_nnx(functools.partial(Transformer, settings.shape))
    kind, _, adapted = name.partition("-")

    def network(params, trunk, tokens):
        return model.apply(params, {}, tokens)[0]

    trunk = ()
    if adapted:
        trunk, whole = params, network
        params = make(functools.partial(adapters, settings.shape.rank), trunk)

        def network(params, trunk, tokens):
            return whole(merged(params, trunk), (), tokens)

    if kind == "finetune":
        method = jaxcl.finetune()
    elif kind == "packnet":
        stacked = r"^(blocks|adapters)/"
        start = "random" if adapted else "zero"  # free ranks start as LoRA's do
        method = jaxcl.packnet(tasks, stacked=stacked, heads=OWN, reinit_free=start)
    else:
        if adapted:
            wiring = by_rank(params["adapters"])
        else:
            tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
            gates = ["blocks/up/kernel", "blocks/value/kernel"]
            wiring = jaxcl.trace_wiring(lambda p, x: network(p, (), x), params, tokens, gates)
        method = jaxcl.hat(wiring, tasks, s_max=settings.s_max, c=settings.c, hard=True)
    return Approach(jaxcl.multihead(method, tasks, OWN, carried=OWN), params, trunk, network)


def adapters(rank: int, trunk: Any) -> dict:
    """Two factors for each kernel of the blocks, the second of which is zero; and what is own."""

    def factors(i, kernel):
        shape = (*kernel.shape[:-1], rank)
        a = jax.random.normal(jax.random.key(i), shape) / math.sqrt(kernel.shape[-2])
        return {"a": a, "b": jnp.zeros((kernel.shape[0], rank, kernel.shape[-1]))}

    kernels = {name: leaf["kernel"] for name, leaf in trunk["blocks"].items() if "kernel" in leaf}
    made = {name: factors(i, kernel) for i, (name, kernel) in enumerate(kernels.items())}
    return {"adapters": made} | {name: trunk[name] for name in ("embed", "norm", "head")}


def merged(params: dict, trunk: dict) -> dict:
    """The network's parameters: each kernel with its adapter's product."""
    blocks = dict(trunk["blocks"])
    for name, factors in params["adapters"].items():
        blocks[name] = {"kernel": blocks[name]["kernel"] + factors["a"] @ factors["b"]}
    return {"blocks": blocks} | {name: params[name] for name in ("embed", "norm", "head")}


def by_rank(factors: dict) -> jaxcl.Wiring:
    """HAT's table for adapters: a gate for each rank of a kernel, shared by its layers."""
    return jaxcl.Wiring(
        gates={f"rank_{name}": leaf["a"].shape[-1] for name, leaf in factors.items()},
        inputs={f"adapters/{name}/b": ((f"rank_{name}", 1),) for name in factors},
        outputs={f"adapters/{name}/a": f"rank_{name}" for name in factors},
    )


class Programs(NamedTuple):
    """What is compiled, once for all tasks.

    Attributes:
        start: (theta, state, task) -> opt_state.
        step: (theta, opt_state, state, trunk, tokens, task, progress) -> (theta, opt_state).
        fit: (theta, state, trunk, windows, task) -> theta; windows [steps, batch, length + 1].
        test: (theta, state, trunk, windows, task) -> (bits per byte, logits of the first batch).
    """

    start: Callable
    step: Callable
    fit: Callable
    test: Callable


def programs(chosen: Approach, settings: Settings, mesh: Mesh) -> Programs:
    method, network = chosen.method, chosen.network
    tx = jaxcl.isolate(optax.adamw(settings.learning_rate))

    def loss(params, trunk, tokens):
        tokens = jax.lax.with_sharding_constraint(
            tokens, NamedSharding(mesh, PartitionSpec("data"))
        )
        logits = network(params, trunk, tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean() / math.log(2), logits

    def start(theta, state, task):
        return jaxcl.set_trainable(tx.init(theta), method.trainable(theta, state, task))

    def step(theta, opt_state, state, trunk, tokens, task, progress):
        def objective(theta):
            bits = loss(method.view(theta, state, task, progress), trunk, tokens)[0]
            return bits + method.penalty(theta, state, task, progress)

        updates, opt_state = tx.update(jax.grad(objective)(theta), opt_state, theta)
        return method.project(optax.apply_updates(theta, updates)), opt_state

    def fit(theta, state, trunk, windows, task):
        def one(carry, i):
            progress = i / max(len(windows) - 1, 1)
            return step(*carry, state, trunk, windows[i], task, progress), None

        carry = theta, start(theta, state, task)
        return jax.lax.scan(one, carry, jnp.arange(len(windows)))[0][0]

    def test(theta, state, trunk, windows, task):
        params = method.view(theta, state, task)
        bits = jax.lax.map(lambda tokens: loss(params, trunk, tokens)[0], windows).mean()
        return bits, loss(params, trunk, windows[0])[1]

    return Programs(start, step, jax.jit(fit, donate_argnums=0), jax.jit(test))


def texts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The bytes of each text: to learn, and the last tenth to test."""
    found = {}
    for name, patterns in TEXTS.items():
        paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
        whole = np.frombuffer(b"".join(path.read_bytes() for path in paths)[:MOST], np.uint8)
        found[name] = tuple(np.split(whole, [len(whole) * 9 // 10]))
    return found


def drawn(text: np.ndarray, settings: Settings, steps: int, seed: Sequence[int]) -> np.ndarray:
    """Windows at random places: int32 [steps, batch, length + 1]."""
    places = np.random.default_rng(seed).integers(
        len(text) - settings.length, size=(steps, settings.batch, 1)
    )
    return text[places + np.arange(settings.length + 1)].astype(np.int32)


def in_turn(text: np.ndarray, settings: Settings) -> np.ndarray:
    """Windows one after the other that fill whole batches, `tests` of them at most."""
    count = (len(text) - 1) // settings.length // settings.batch
    count = settings.batch * min(count, settings.tests)
    places = settings.length * np.arange(count)[:, None] + np.arange(settings.length + 1)
    return text[places].astype(np.int32).reshape(-1, settings.batch, settings.length + 1)


class Learned(NamedTuple):
    """What came out of one approach and seed.

    Attributes:
        bits: per byte of each text, after each task [tasks, tasks].
        same: for each text, whether all its logits are the same bits as when its task ended.
        theta: at the end.
        state: at the end.
        first: theta after the first task, as the network sees it.
    """

    bits: np.ndarray
    same: list[bool]
    theta: Any
    state: Any
    first: Any


def learn(chosen: Approach, settings: Settings, mesh: Mesh, seed: int, data: dict) -> Learned:
    """All texts, one after the other."""
    method, run = chosen.method, programs(chosen, settings, mesh)
    begin, end = jax.jit(method.begin_task), jax.jit(method.end_task)
    tests = [jnp.asarray(in_turn(text, settings)) for _, text in data.values()]
    theta, state = jax.jit(method.init)(jax.random.key(seed), chosen.params)
    bits, before, first = np.full((len(data),) * 2, np.nan), [], None
    for task, (text, _) in enumerate(data.values()):
        theta, state = begin(jax.random.key(task), theta, state, task)
        for number, phase in enumerate(method.phases):
            if phase.closed:
                theta, state = end(theta, state, task)
            steps = round(settings.steps * phase.share / method.phases[0].share)
            windows = drawn(text, settings, steps, (seed, task, number))
            theta = run.fit(theta, state, chosen.trunk, windows, task)
        if not method.phases[-1].closed:
            theta, state = end(theta, state, task)
        for known, test in enumerate(tests):
            bits[task, known], logits = run.test(theta, state, chosen.trunk, test, known)
            before += [np.asarray(logits)] if known == task else []
        first = method.view(theta, state, 0) if task == 0 else first
    after = [run.test(theta, state, chosen.trunk, t, k)[1] for k, t in enumerate(tests)]
    same = [np.array_equal(one, np.asarray(other)) for one, other in zip(before, after)]
    return Learned(bits, same, theta, state, first)


def network_of(settings: Settings, seed: int, make: Callable) -> Any:
    """The parameters of a new network."""
    model = models.from_nnx(functools.partial(Transformer, settings.shape))
    return make(lambda key: model.init(key)[0], jax.random.key(seed))


def mesh_of(shape: tuple[int, int], devices: Sequence | None = None) -> Mesh:
    """Axes "data" and "model" over the first devices; XLA decides what travels (Auto)."""
    devices = (devices or jax.devices())[: math.prod(shape)]
    if len(devices) < math.prod(shape):
        raise SystemExit(f"--mesh needs {math.prod(shape)} devices; there are {len(devices)}.")
    return jax.make_mesh(shape, ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def study(settings: Settings) -> None:
    """All approaches and seeds, written as they come."""
    mesh, data, began = mesh_of(settings.mesh), texts(), time.time()
    make, runs = made_on(mesh), {name: [] for name in settings.approaches}
    for seed in settings.seeds:
        params, trunk = network_of(settings, seed, make), None
        for name in settings.approaches:
            start = time.time()
            if "-" in name and trunk is None:  # fine-tuning has not trained it
                one = approach("finetune", settings, len(data), params, make)
                trunk = learn(one, settings, mesh, seed, dict([*data.items()][:1])).first
            start_from = trunk if "-" in name else params
            chosen = approach(name, settings, len(data), start_from, make)
            learned = learn(chosen, settings, mesh, seed, data)
            trunk = learned.first if name == "finetune" else trunk
            seconds = time.time() - start
            bits = np.where(np.isnan(learned.bits), None, learned.bits).tolist()
            runs[name].append({"bits": bits, "same": learned.same, "seconds": seconds})
            print(f"{name}, seed {seed}, {seconds:.0f} s, the same bits: {learned.same}")
            print(learned.bits.round(2), flush=True)
            found = {
                "settings": dataclasses.asdict(settings) | {"out": None},
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "bytes": {name: [len(part) for part in parts] for name, parts in data.items()},
                "devices": f"{mesh.size} x {jax.devices()[0].device_kind}",
                "minutes": (time.time() - began) / 60,
                "approaches": {name: done for name, done in runs.items() if done},
            }
            write(settings.out / "results.json", json.dumps(found, indent=1))
            write(settings.out / "table.md", table(found))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n")


def table(found: dict) -> str:
    """Bits per byte at the end, what is forgotten, and after each task."""
    names = list(found["bytes"])
    rows, tables = [], []
    for name, runs in found["approaches"].items():
        bits = np.array([run["bits"] for run in runs], float)
        last, own = bits[:, -1], np.diagonal(bits, axis1=1, axis2=2)
        same = all(all(run["same"]) for run in runs)
        rows.append([
            name, f"{last.mean():.3f}", f"{own.mean():.3f}",
            f"{(last - own)[:, :-1].mean():.3f}", "to the bit" if same else "no",
        ])  # fmt: skip
        body = [[f"after {n}", *(f"{v:.3f}" for v in row)] for n, row in zip(names, bits.mean(0))]
        tables.append(f"\n{name}\n\n{markdown(['', *names], body)}")
    head = ["approach", "at the end", "when learned", "forgotten", "the same network"]
    used = found["settings"]
    about = (
        f"Bits per byte of the held-out text, seeds {', '.join(map(str, used['seeds']))}; "
        f"{used['steps']} steps a task, {found['parameters']:,} parameters, {found['devices']}, "
        f"{found['minutes']:.0f} minutes. `python experiments/transformer.py`\n\n"
    )
    return "# Four languages\n\n" + about + markdown(head, rows) + "\n" + "\n".join(tables) + "\n"


def equal(settings: Settings) -> None:
    """Some steps of the first two tasks on 1, 2, 4 and 8 devices: how far they are apart."""
    data = dict([*texts().items()][:2])
    found = {}
    for name in [name for name in settings.approaches if name != "finetune"]:
        ends = {}
        for shape in [(1, 1), (1, 2), (2, 2), (4, 2)]:
            mesh = mesh_of(shape)
            params = network_of(settings, 0, made_on(mesh))
            chosen = approach(name, settings, len(data), params, made_on(mesh))
            ends[shape] = learn(chosen, settings, mesh, 0, data)
        one = jax.tree.leaves((ends[1, 1].theta, ends[1, 1].state))
        for shape, learned in ends.items():
            pairs = list(zip(one, jax.tree.leaves((learned.theta, learned.state))))
            owners = [(a, b) for a, b in pairs if a.dtype == np.uint8]
            others = [np.abs(np.asarray(a) - b).max() for a, b in pairs if a.dtype != np.uint8]
            row = {
                "other owners": sum(int((np.asarray(a) != b).sum()) for a, b in owners),
                "largest difference": float(max(others)),
                "of bits per byte": float(np.nanmax(np.abs(ends[1, 1].bits - learned.bits))),
                "forgotten": not all(learned.same),
            }
            found[f"{name} on {shape[0]} x {shape[1]}"] = row
            print(name, shape, row, flush=True)
            write(settings.out / "equal.json", json.dumps(found, indent=1))


def compiled(settings: Settings) -> None:
    """A step, and what begins and ends a task, compiled from shapes; gigabytes of each core."""
    kind = settings.compile.partition(":")[0]
    devices = topology(settings.compile)
    model_axis = min(4, len(devices))
    mesh = mesh_of((len(devices) // model_axis, model_axis), devices)
    settings = dataclasses.replace(settings, shape=BILLION, batch=64, length=1024)
    params = network_of(settings, 0, jax.eval_shape)

    def laid(tree):
        places = sharding.by_path(tree, mesh, RULES, limit=MEMORY.get(kind, 16) << 30)
        return jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, places
        )

    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    found = {"mesh": dict(mesh.shape), "parameters": size, "shape": dataclasses.asdict(BILLION)}
    for name in settings.approaches:
        chosen = approach(name, settings, len(TEXTS), params, jax.eval_shape)
        method, run = chosen.method, programs(chosen, settings, mesh)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        theta, state = laid(jax.eval_shape(method.init, jax.random.key(0), chosen.params))
        opt_state, trunk = laid(jax.eval_shape(run.start, theta, state, 0)), laid(chosen.trunk)
        tokens = jax.ShapeDtypeStruct((settings.batch, settings.length + 1), jnp.int32)
        progress = jax.ShapeDtypeStruct((), jnp.float32)
        calls = {
            "start": (run.start, (), (theta, state, number)),
            "step": (
                run.step, (0, 1), (theta, opt_state, state, trunk, tokens, number, progress)
            ),
            "end_task": (method.end_task, (0, 1), (theta, state, number)),
        }  # fmt: skip
        for what, (function, donated, arguments) in calls.items():
            began = time.time()
            program = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
            memory, seconds = program.memory_analysis(), time.time() - began
            row = {
                "arguments": memory.argument_size_in_bytes / 1e9,
                "outputs beside them": (memory.output_size_in_bytes - memory.alias_size_in_bytes)
                / 1e9,
                "temporary": memory.temp_size_in_bytes / 1e9,
                "seconds to compile": seconds,
            }
            found[f"{name} {what}"] = row
            print(name, what, {k: round(v, 3) for k, v in row.items()}, flush=True)
            write(
                settings.out / f"{settings.compile.replace(':', '-')}.json",
                json.dumps(found, indent=1),
            )


def topology(name: str) -> Sequence:
    """Devices of TPUs that need not be there; `pip install 'jax[tpu]'` brings their compiler."""
    from jax.experimental import topologies

    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5e-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:
        raise SystemExit(
            f"--compile {name}: {str(error).splitlines()[0]}. It needs libtpu (pip install "
            f"'jax[tpu]'), and a name such as v5e:4x4 or v4:2x2x2."
        ) from None


def main(settings: Settings) -> None:
    jax.config.update("jax_platforms", "cpu" if settings.compile else None)
    cores = 8 if settings.equal else math.prod(settings.mesh)
    jax.config.update("jax_num_cpu_devices", cores)
    run = equal if settings.equal else compiled if settings.compile else study
    run(settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
