"""Ready-made setups: each method by its name, with the settings that the command offers."""

import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxcl import models, study
from jaxcl.core import masks
from jaxcl.core.checks import check_choice, check_number
from jaxcl.core.heads import HEAD, multihead
from jaxcl.core.method import Method
from jaxcl.core.model import Model
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark, normalize
from jaxcl.methods.finetune import finetune
from jaxcl.methods.hat import hat
from jaxcl.methods.packnet import packnet
from jaxcl.methods.pnn import pnn
from jaxcl.study.programs import Study
from jaxcl.train.types import Setup

METHODS = ("finetune", "joint", "independent", "pnn", "hat", "packnet")
SWEPT = ("learning_rate", "s_max", "c", "prune", "alpha", "weight_decay")

LIMITS: dict[str, dict[str, float]] = {  # of the numbers in Options
    "learning_rate": {"above": 0},
    "s_max": {"above": 1},
    "column_width": {"above": 0},
    "weight_decay": {"least": 0},
    "c": {"least": 0},
    "prune": {"least": 0, "most": 1},
    **{name: {"least": 1} for name in ("hidden", "batch", "epochs", "patience")},
}

COLUMNS = 8  # that the first program of PNN has room for


@dataclass(frozen=True)
class Options:
    """How every method of a comparison trains.

    Attributes:
        network: the architecture.
        hidden: widths of the MLP's hidden layers.
        optimizer: the same for all methods; momentum is 0.9.
        learning_rate: step size.
        weight_decay: share of the step size by which kernels decay in a step; biases, norms and
            HAT's embeddings do not.
        batch: examples in a step.
        epochs: epochs on each task; PackNet prunes after two thirds of them, and trains at least
            one before and one after.
        select: keep the epoch with the best validation loss or accuracy; None keeps the last one.
        patience: epochs without a better one, by the loss unless select says otherwise, before the
            step size is divided by 3, and a task ends below 0.002 of it; None trains all epochs.
        s_max: HAT: scale of the gates at the end of each epoch.
        c: HAT: weight of the regularizer.
        hard: HAT: threshold the gates once a task ends, so that nothing is forgotten.
        prune: PackNet: share of its weights that a task gives up; None makes all shares equal.
        lateral: PNN: kind of lateral connections.
        alpha: PNN: start value of the adapters' learned scale.
        column_width: PNN: width of each column's hidden layers, as a share of the network's; the
            HAT paper's PNN has 1.117 over the number of tasks.
        norm: statistics, scales and shifts of norm layers under HAT and PackNet.
        precision: type of the network's arithmetic; parameters, masks and gates are float32.
    """

    network: Literal["mlp", "alexnet", "resnet18", "vgg16"] = "mlp"
    hidden: tuple[int, ...] = (100, 100)
    optimizer: Literal["sgd", "momentum", "adam"] = "momentum"
    learning_rate: float = 0.05
    weight_decay: float = 0.0
    batch: int = 32
    epochs: int = 30
    select: Literal["loss", "accuracy"] | None = None
    patience: int | None = None
    s_max: float = 400.0
    c: float = 0.75
    hard: bool = True
    prune: float | None = None
    lateral: Literal["adapter", "linear"] = "adapter"
    alpha: float = 1.0
    column_width: float = 1.0
    norm: Literal["frozen", "per_task"] = "frozen"
    precision: Literal["float32", "bfloat16"] = "float32"


def defaults(benchmark: str) -> Options:
    """The options that suit a benchmark of this name.

    >>> defaults("split_mnist").hidden
    (400, 400)
    """
    if benchmark.endswith("mnist"):
        return Options(hidden=(400, 400), batch=64, epochs=2)
    if benchmark.endswith("cifar100"):
        return Options(network="alexnet", batch=64, epochs=30)
    return Options(epochs=10 if benchmark == "permuted_digits" else 30)


def check(options: Options) -> None:
    """Raises ValueError, naming the option, for a value that no run can have."""
    for name, kind in typing.get_type_hints(Options).items():
        value, kinds = getattr(options, name), (kind, *typing.get_args(kind))
        check_numbers(f"Options: {name}", value, LIMITS.get(name, {}))
        absent = value is None and type(None) in kinds
        for choice in kinds:
            if typing.get_origin(choice) is Literal and not absent:
                check_choice(f"Options: {name}", value, typing.get_args(choice))
    if not options.hidden:
        raise ValueError("Options: hidden needs at least one width.")


def check_numbers(name: str, value: Any, limits: Mapping[str, float]) -> None:
    """Raises ValueError for a number, alone or in a tuple, that is not within the limits."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, (int, float)):
            check_number(name, one, **limits)


def epochs_of(method: str, options: Options) -> tuple[int, int]:
    """Epochs before and after a task's end: all methods train equally long, from 2 epochs on.

    >>> epochs_of("packnet", Options(epochs=30)), epochs_of("hat", Options(epochs=30))
    ((20, 10), (30, 0))
    >>> epochs_of("packnet", Options(epochs=2)), epochs_of("packnet", Options(epochs=1))
    ((1, 1), (1, 1))
    """
    if method != "packnet":
        return options.epochs, 0
    after = max(1, options.epochs // 3)
    return max(1, options.epochs - after), after


def rooms(method: str, tasks: int) -> list[int]:
    """The numbers of tasks that a method's programs have room for, one program after the other.

    PNN computes with all columns that there is room for, in every step. So its room doubles, from
    `COLUMNS` on; `experiments/benchmark.py --parts growth` measures that choice.

    >>> rooms("pnn", 20), rooms("hat", 20)
    ([8, 16, 20], [20])
    """
    smaller = [COLUMNS << i for i in range(tasks) if COLUMNS << i < tasks]
    return [*smaller, tasks] if method == "pnn" else [tasks]


def stages(
    method: str, benchmark: Benchmark, options: Options, seeds: Sequence[int], **build: Any
) -> list[Study]:
    """The studies of one method, one for each of `rooms`, for `study.run`.

    Args:
        method: one of `METHODS`.
        benchmark: the sequence of tasks.
        options: all settings.
        seeds: one for each replica.
        **build: what else `study.build` takes: settings, devices, chunk, split.
    """
    before, after = epochs_of(method, options)
    return [
        study.build(
            recipe(method, benchmark, options, room),
            benchmark._replace(tasks=benchmark.tasks[:room]),
            seeds,
            epochs=before,
            retrain_epochs=after,
            **build,
        )
        for room in rooms(method, len(benchmark.tasks))
    ]


def network(benchmark: Benchmark, options: Options, width: float = 1.0) -> Model:
    """The network of a comparison, for one benchmark's inputs and classes.

    Its hidden layers have the share `width` of their usual units, rounded down, and at least one.
    """
    options_of_all = {
        "classes": max(task.classes for task in benchmark.tasks),
        "dtype": jnp.dtype(options.precision),
    }

    def scaled(*widths):
        return [max(1, math.floor(width * units + 1e-6)) for units in widths]

    if options.network == "mlp":
        size, hidden = math.prod(benchmark.shape), scaled(*options.hidden)
        return models.mlp(size, hidden=hidden, **options_of_all)
    build, widths = {
        "alexnet": (models.alexnet, {"widths": scaled(64, 128, 256, 2048, 2048)}),
        "resnet18": (models.resnet18, {"width": scaled(64)[0]}),
        "vgg16": (models.vgg16, {"width": scaled(64)[0], "hidden": scaled(512, 512)}),
    }[options.network]
    return build(benchmark.shape, **widths, **options_of_all)


def recipe(
    method: str, benchmark: Benchmark, options: Options = Options(), room: int | None = None
) -> Callable[[Mapping[str, jax.Array]], Setup]:
    """The setup of one method, as a function of the settings that are swept.

    Args:
        method: one of `METHODS`.
        benchmark: the sequence of tasks.
        options: all settings.
        room: number of tasks, the first of the sequence, that the method has room for; all by
            default. See `rooms`.

    Returns:
        A function from a mapping of swept settings, which may be traced and take the place of the
        options of the same name, to a `train.Setup`.

    Raises:
        ValueError: for an unknown method, or an option that no run can have.
    """
    check(options)
    check_choice("method", method, METHODS)
    tasks = room or len(benchmark.tasks)
    base = network(benchmark, options, options.column_width if method == "pnn" else 1.0)
    prepare = normalize(benchmark)
    classes = jnp.array([task.classes for task in benchmark.tasks[:tasks]])
    per_task = f"{HEAD}|norm" if options.norm == "per_task" else HEAD

    def setup(settings: Mapping[str, jax.Array]) -> Setup:
        def value(name):
            return settings.get(name, getattr(options, name))

        model, norm = base, "shared"
        if method in ("pnn", "independent"):
            lateral = options.lateral if method == "pnn" else None
            chosen, model = pnn(base, tasks, lateral, alpha=value("alpha"))
        elif method == "hat":
            isolated = hat(
                base.wiring, tasks, s_max=value("s_max"), c=value("c"), hard=options.hard
            )
            chosen, norm = multihead(isolated, tasks, per_task), options.norm
        elif method == "packnet":
            prune = value("prune")
            isolated = packnet(tasks, "equal" if prune is None else prune)
            chosen, norm = multihead(isolated, tasks, per_task), options.norm
        else:
            chosen = multihead(finetune(), tasks)
        if method == "joint":  # the examples of all tasks so far train the heads of all of them
            chosen = chosen._replace(trainable=lambda theta, state, task: True)
        return Setup(
            method=chosen,
            model=model,
            optimizer=optimizer(options, value("learning_rate"), value("weight_decay")),
            prepare=prepare,
            classes=classes,
            batch=options.batch,
            norm=norm,
            mixed=method == "joint",
            select=options.select,
            patience=options.patience,
        )

    return setup


def cost(
    method: str, benchmark: Benchmark, learner: PyTree, options: Options = Options()
) -> tuple[int, int]:
    """What a method has grown to once all tasks are learned.

    Args:
        method: one of `METHODS`.
        benchmark: the sequence of tasks.
        learner: one learner, or its shapes.
        options: all settings.

    Returns:
        The number of the network's parameters, in which a column of PNN counts the laterals from
        its predecessors alone; and the bytes that parameters and the method's state take beyond
        those of plain fine-tuning.
    """
    tasks = len(benchmark.tasks)

    def theta(chosen: Method, model: Model) -> PyTree:
        return jax.eval_shape(
            lambda key: chosen.init(key, model.init(key)[0])[0], jax.random.key(0)
        )

    if method in ("pnn", "independent"):
        lateral = options.lateral if method == "pnn" else None
        column = network(benchmark, options, options.column_width if method == "pnn" else 1.0)
        # The last column of a network of n columns has room for n - 1 laterals and uses all.
        networks = [theta(pnn(column, n + 1, lateral)[0], column) for n in range(tasks)]
    else:
        networks = learner.theta["params"] if method == "hat" else learner.theta
    parameters = sum(leaf.size for leaf in jax.tree.leaves(networks))
    plain = masks.size_bytes(theta(multihead(finetune(), tasks), network(benchmark, options)))
    return parameters, masks.size_bytes((learner.theta, learner.state)) - plain


def optimizer(options: Options, learning_rate, weight_decay) -> optax.GradientTransformation:
    """The optimizer that the options name, with decoupled weight decay of the kernels."""
    direction = {
        "sgd": optax.identity(),
        "momentum": optax.trace(0.9),
        "adam": optax.scale_by_adam(),
    }[options.optimizer]
    none = isinstance(weight_decay, float) and weight_decay == 0
    decay = optax.identity() if none else optax.add_decayed_weights(weight_decay, mask=_kernels)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(learning_rate))


def _kernels(theta: PyTree) -> PyTree:
    """True for the weights of layers and laterals."""
    return masks.by_path(theta, [(r"(^|/)(kernel|project)$", True), ("", False)])
