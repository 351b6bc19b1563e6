"""Ready-made setups: any method of the registry, or of a user's own, with its options."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import models
from jaxcl.core import masks
from jaxcl.core.checks import nearest
from jaxcl.core.heads import HEAD
from jaxcl.core.method import Method
from jaxcl.core.model import Model
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark, normalize
from jaxcl.methods import Built, Problem, Spec, find
from jaxcl.methods.spec import check_options, grid_of, option, swept_names
from jaxcl.study.fitting import augmentation, check_order, check_targets, judged_by
from jaxcl.study.programs import Study, build, divide
from jaxcl.train.types import Setup

ADAM_RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # step sizes that a search tries
NORMS = "norm"  # in the paths of the built-in networks' norms
MOST_EPOCHS, MOST_STEPS = 10**6, 2**31 - 1  # steps are counted in int32


@dataclass(frozen=True)
class Options:
    """How every method of a comparison trains.

    Attributes:
        network: the architecture.
        hidden: widths of the MLP's hidden layers.
        init: an `.npz` of weights to start from, as `jaxcl export` writes it; heads, and what it
            leaves out, start afresh.
        optimizer: momentum is 0.9; adamw is adam with a weight decay of 1e-4 unless said otherwise.
        learning_rate: step size.
        weight_decay: share of the step size by which kernels decay in a step; biases, norms and
            embeddings do not. None is 1e-4 with adamw, else 0.
        clip_norm: largest norm of the gradient of all parameters together; None for any.
        schedule: course of the step size over each phase of training: constant, or down to zero
            along a cosine or a line.
        reset_optimizer: start every task with a fresh state of the optimizer.
        batch: examples in a step.
        epochs: epochs on each task. A method with several phases divides them, and trains at least
            one in each.
        steps: steps on each task, in the place of epochs; None trains by epochs.
        select: keep the epoch with the best validation loss or accuracy; None keeps the last one.
        patience: divide the step size by 3 after this many epochs without a better validation
            loss, and end the task once it is below 0.002 of the first; None trains all epochs.
        norm: statistics, scales and shifts of norm layers under methods that isolate tasks.
        scenario: what a network is told: the task, and has a head for it; nothing, with one head
            for all tasks (domain); or nothing, and tells the classes of all tasks apart (class).
            "jaxcl compare" takes several, as in task,class, and shows them side by side; a method
            that has to be told the task trains so, and infers it in the others.
        unseen: in the scenario class, whether logits of classes still to come are masked or kept.
        order: of the examples in an epoch: each seed draws its own, or one serves all, as what is
            streamed needs; then a task's boundary sees a sample of its examples.
        augment: random crops of padded images on the device, or those and reflections, in training.
        precision: type of the network's arithmetic; parameters and masks are float32.

    >>> Options(hidden=(32,), epochs=3).learning_rate
    0.05
    """

    network: Literal["mlp", "alexnet", "resnet18", "vgg16"] = "mlp"
    hidden: tuple[int, ...] = option((100, 100), least=1)
    init: str | None = None
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "momentum"
    learning_rate: float = option(0.05, above=0, sweep=True, tune=(0.02, 0.05, 0.1, 0.2))
    weight_decay: float | None = option(None, least=0, sweep=True)
    clip_norm: float | None = option(None, above=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    reset_optimizer: bool = True
    batch: int = option(32, least=1)
    epochs: int = option(30, least=1, most=MOST_EPOCHS)
    steps: int | None = option(None, least=1, most=MOST_STEPS)
    select: Literal["loss", "accuracy"] | None = None
    patience: int | None = option(None, least=1)
    norm: Literal["frozen", "per_task"] = "frozen"
    scenario: Literal["task", "domain", "class"] = "task"
    unseen: Literal["masked", "kept"] = "masked"
    order: Literal["each", "one"] = "each"
    augment: Literal["none", "crop", "crop_flip"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"


SCHEDULES: dict[str, Callable[[jax.Array], jax.Array] | None] = {
    "constant": None,
    "cosine": lambda done: (1 + jnp.cos(jnp.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


class Choice(NamedTuple):
    """A method with all of its options.

    Attributes:
        spec: the method.
        shared: the options that every method has.
        own: an instance of `spec.options`.
        model: a network that takes the place of the options' one; or a function of the share of
            the hidden units that gives it.

    >>> from jaxcl.methods import REGISTRY
    >>> choose(REGISTRY[0], epochs=3).shared.epochs
    3
    """

    spec: Spec
    shared: Options
    own: Any
    model: Any = None


def defaults(benchmark: str) -> Options:
    """The options that suit a benchmark of this name.

    >>> defaults("split_mnist").hidden
    (400, 400)
    """
    if benchmark.endswith("mnist5k"):
        return Options(epochs=10 if benchmark.startswith("split") else 5)
    if benchmark.endswith("mnist"):
        return Options(hidden=(400, 400), batch=64, epochs=2)
    if benchmark.endswith("cifar100"):
        return Options(network="alexnet", batch=64, epochs=30)
    return Options(epochs=20 if benchmark == "permuted_digits" else 30)


def choose(method: str | Spec, options: Options | None = None, **changes: Any) -> Choice:
    """A method with its options.

    Args:
        method: a name in the registry, or a Spec.
        options: the shared options.
        **changes: options by name, the method's own or shared ones.

    Raises:
        ValueError: for an unknown method or option, or a value that no run can have.

    >>> from jaxcl.methods import REGISTRY
    >>> choose(REGISTRY[0], epochs=3).shared.epochs
    3
    """
    spec, shared = find(method), options or Options()
    common, own = {}, {}
    for name, value in changes.items():
        if name in _names(spec.options):
            own[name] = value
        elif name in _names(Options):
            common[name] = value
        else:
            raise ValueError(
                f"{spec.name} has no option '{name}'"
                f"{nearest(name, [*_names(spec.options), *_names(Options)])}."
            )
    choice = Choice(spec, dataclasses.replace(shared, **common), spec.options(**own))
    check(choice)
    return choice


def check(choice: Choice) -> None:
    """Raises ValueError, naming the option, for a value that no run can have.

    >>> from jaxcl.methods import REGISTRY
    >>> check(Choice(REGISTRY[0], Options(epochs=0), REGISTRY[0].options()))
    Traceback (most recent call last):
    ValueError: Options: epochs must be at least 1, got 0.
    """
    check_options(Options, vars(choice.shared), "Options: {}".format)
    check_options(choice.spec.options, vars(choice.own), f"{choice.spec.name}: {{}}".format)
    if not choice.shared.hidden:
        raise ValueError("Options: hidden needs at least one width.")
    if choice.shared.scenario not in choice.spec.scenarios:
        raise ValueError(
            f"{choice.spec.name} is trained in the scenario {', '.join(choice.spec.scenarios)}, "
            f"not in {choice.shared.scenario!r}: it has to be told the task."
        )


def swept(spec: Spec) -> list[str]:
    """The options of a method that a sweep can vary.

    >>> from jaxcl.methods import REGISTRY
    >>> "learning_rate" in swept(REGISTRY[0])
    True
    """
    return [*swept_names(Options), *swept_names(spec.options)]


def tuning(choice: Choice) -> dict[str, tuple[float, ...]]:
    """The grid of a method: the values among which a search chooses where nothing else is said.

    >>> from jaxcl.methods import REGISTRY
    >>> tuning(choose(REGISTRY[0], optimizer="adam"))
    {'learning_rate': (0.0003, 0.001, 0.003, 0.01)}
    """
    shared = grid_of(Options)
    if choice.shared.optimizer in ("adam", "adamw"):
        shared["learning_rate"] = ADAM_RATES
    return {**shared, **grid_of(choice.spec.options)}


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _choice(method: str | Spec | Choice, options: Options | None) -> Choice:
    return method if isinstance(method, Choice) else choose(method, options)


def epochs_of(choice: Choice, benchmark: Benchmark) -> tuple[int, int]:
    """Epochs before and after a task's end, by the shares of the method's phases.

    >>> from jaxcl import data
    >>> from jaxcl.methods import REGISTRY
    >>> epochs_of(choose(REGISTRY[0], epochs=3), data.split_digits())
    (3, 0)
    """
    phases = _built(choice, benchmark, len(benchmark.tasks)).method.phases
    planned = divide(phases, choice.shared.epochs, None)
    after = sum(count for phase, count in zip(phases, planned) if phase.closed)
    return sum(planned) - after, after


def studies(
    method: str | Spec | Choice,
    benchmark: Benchmark,
    options: Options | None = None,
    seeds: Sequence[int] = (0,),
    **options_of_build: Any,
) -> list[Study]:
    """The studies of one method, one for each of its `task_limits`, for `study.run`.

    Args:
        method: a method, by name or by its Spec; or with options of its own, from `choose`.
        benchmark: the sequence of tasks.
        options: the shared options; None for the usual ones, or those of a Choice.
        seeds: one for each replica.
        **options_of_build: what else `study.build` takes: settings, devices, chunk.

    >>> from jaxcl import data
    >>> from jaxcl.methods import REGISTRY
    >>> quick = Options(hidden=(8,), epochs=1)
    >>> [study] = studies(REGISTRY[0], data.split_digits(), quick, seeds=[0, 1])
    >>> study.seeds
    array([0, 1], dtype=uint32)
    """
    choice = _choice(method, options)
    made = []
    for limit in choice.spec.task_limits(len(benchmark.tasks)):
        recipe_of = recipe(choice, benchmark, tasks=limit)
        before, after = epochs_of(choice, benchmark)
        made.append(
            build(
                recipe_of, benchmark._replace(tasks=benchmark.tasks[:limit]), seeds,
                epochs=before, retrain_epochs=after, steps=choice.shared.steps,
                **options_of_build,
            )
        )  # fmt: skip
    return made


def network(benchmark: Benchmark, options: Options, width: float = 1.0) -> Model:
    """The network of a comparison, for one benchmark's inputs and classes.

    Its hidden layers have the share `width` of their usual units, rounded down, and at least one.

    >>> from jaxcl import data
    >>> model = network(data.permuted_digits(2), Options(hidden=(32,)))
    >>> jax.eval_shape(model.init, jax.random.key(0))[0]["head"]["kernel"].shape
    (32, 10)
    """
    each = [task.classes for task in benchmark.tasks]
    classes = sum(each) if options.scenario == "class" else max(each)
    model = _built_in(
        options.network, benchmark.shape, classes, tuple(options.hidden), options.precision, width
    )
    if options.init is None or width > 1:  # room to grow into starts as it is
        return model
    return models.start_from(model, models.read_weights(options.init))


@functools.lru_cache(maxsize=64)
def _built_in(
    name: str, shape: tuple[int, ...], classes: int, hidden: tuple[int, ...], precision: str,
    width: float,
) -> Model:  # fmt: skip
    """A built-in network, which many programs ask for, and which is traced to be made."""

    def scaled(*widths):
        return [max(1, math.floor(width * units + 1e-6)) for units in widths]

    options: dict[str, Any] = {"classes": classes, "dtype": jnp.dtype(precision)}
    if name == "mlp":
        return models.mlp(math.prod(shape), hidden=scaled(*hidden), **options)
    make, widths = {
        "alexnet": (models.alexnet, {"widths": scaled(64, 128, 256, 2048, 2048)}),
        "resnet18": (models.resnet18, {"width": scaled(64)[0]}),
        "vgg16": (models.vgg16, {"width": scaled(64)[0], "hidden": scaled(512, 512)}),
    }[name]
    return make(shape, **widths, **options)


def problem_of(choice: Choice, benchmark: Benchmark, tasks: int | None = None) -> Problem:
    """What a method is built for.

    >>> from jaxcl import data
    >>> from jaxcl.methods import REGISTRY
    >>> problem_of(choose(REGISTRY[0]), data.split_digits()).tasks
    5
    """
    shared = choice.shared
    own = f"{HEAD}|{NORMS}" if shared.norm == "per_task" else HEAD
    return Problem(
        tasks or len(benchmark.tasks),
        lambda width=1.0: _network(choice, benchmark, width),
        own if shared.scenario == "task" else None,
        shared.norm,
        shared.scenario,
    )


def _network(choice: Choice, benchmark: Benchmark, width: float) -> Model:
    """The network of a method, that of `Choice.model` if there is one."""
    model = choice.model
    if model is None:
        return network(benchmark, choice.shared, width)
    if not isinstance(model, Model):
        return model(width)
    if width != 1.0:
        raise ValueError(
            f"{choice.spec.name} needs the network with {width:g} of its hidden units: give model "
            f"as a function from that share to a network."
        )
    return model


def recipe(
    method: str | Spec | Choice,
    benchmark: Benchmark,
    options: Options | None = None,
    tasks: int | None = None,
) -> Callable[[Mapping[str, jax.Array]], Setup]:
    """The setup of one method, as a function of the settings that are swept.

    Args:
        method: a method, by name or by its Spec; or with options of its own, from `choose`.
        benchmark: the sequence of tasks.
        options: the shared options; None for the usual ones, or those of a Choice.
        tasks: number of tasks, the first of the sequence, that the method has room for; all by
            default.

    Returns:
        A function from a mapping of swept settings, which may be traced and take the place of the
        options of the same name, to a `train.Setup`.

    Raises:
        ValueError: for an unknown method, or an option that no run can have.

    >>> from jaxcl import data
    >>> from jaxcl.methods import REGISTRY
    >>> setup = recipe(REGISTRY[0], data.split_digits(), Options(hidden=(8,)))({})
    >>> setup.classes
    Array([2, 2, 2, 2, 2], dtype=int32)
    """
    choice = _choice(method, options)
    check(choice)
    limit = tasks or len(benchmark.tasks)
    check_scenario(choice.shared.scenario, benchmark)
    loss, metric = judged_by(benchmark)
    augment = augmentation(benchmark, choice.shared.augment)
    check_order(benchmark, choice.shared.order)
    prepare, x = normalize(benchmark), benchmark.tasks[0].train.x
    sample = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    classes = jax.device_put(np.array([task.classes for task in benchmark.tasks[:limit]], np.int32))
    if choice.model is None:  # every program asks for it, and no setting changes it
        choice = choice._replace(model=functools.cache(partial(network, benchmark, choice.shared)))

    def setup(settings: Mapping[str, jax.Array]) -> Setup:
        chosen = with_settings(choice, settings)
        built, shared = _built(chosen, benchmark, limit), chosen.shared
        if benchmark.regression:
            check_targets(choice.spec.name, built)
        if built.mixed and shared.order == "one":
            raise ValueError(
                f"{choice.spec.name} trains on the examples of several tasks at once, which order "
                f"one does not give; choose order each, or leave {choice.spec.name} out."
            )
        return Setup(
            method=built.method,
            model=built.model,
            optimizer=optimizer(shared),
            prepare=prepare,
            classes=classes,
            batch=shared.batch,
            norm=built.norm,
            mixed=built.mixed,
            select=shared.select,
            patience=shared.patience,
            reset=shared.reset_optimizer,
            schedule=SCHEDULES[shared.schedule],
            sample=sample,
            scenario=shared.scenario,
            unseen=shared.unseen,
            loss=loss,
            metric=metric,
            order=shared.order,
            augment=augment,
        )

    return setup


def check_scenario(scenario: str, benchmark: Benchmark) -> None:
    """Raises ValueError for a benchmark whose tasks do not suit a scenario.

    Args:
        scenario: "task", "domain" or "class".
        benchmark: the sequence of tasks.

    >>> from jaxcl import data
    >>> check_scenario("class", data.load("split_digits,classes=0-1/2-4"))  # unequal tasks fit
    """
    each = {task.classes for task in benchmark.tasks}
    if scenario == "class" and benchmark.regression:
        raise ValueError(f"{benchmark.name}: the scenario 'class' needs classes, not targets.")
    if scenario == "domain" and len(each) > 1:
        raise ValueError(
            f"{benchmark.name}: the scenario 'domain' needs tasks of the same classes, but they "
            f"have {', '.join(map(str, sorted(each)))}."
        )


def with_settings(choice: Choice, settings: Mapping[str, Any]) -> Choice:
    """A method whose options of these names have other values, which may be traced.

    >>> from jaxcl.methods import REGISTRY
    >>> with_settings(choose(REGISTRY[0]), {"learning_rate": 0.3}).shared.learning_rate
    0.3
    """
    own = {name: settings[name] for name in settings if name in _names(choice.spec.options)}
    shared = {name: settings[name] for name in settings if name in _names(Options)}
    can = swept(choice.spec)
    for name in settings:
        if name not in can:
            raise ValueError(
                f"{choice.spec.name} has no numeric setting '{name}'{nearest(name, can)}; it has "
                f"{', '.join(can)}."
            )
    return choice._replace(
        shared=dataclasses.replace(choice.shared, **shared),
        own=dataclasses.replace(choice.own, **own),
    )


def _built(choice: Choice, benchmark: Benchmark, tasks: int) -> Built:
    return choice.spec.build(problem_of(choice, benchmark, tasks), choice.own)


def cost(choice: Choice, benchmark: Benchmark, learner: PyTree) -> tuple[int, int]:
    """What a method has grown to once all tasks are learned.

    Args:
        choice: the method with its options.
        benchmark: the sequence of tasks.
        learner: one learner, or its shapes.

    Returns:
        The number of the network's parameters; and the bytes that parameters, the method's state
        and its memory take beyond those of plain fine-tuning.

    >>> from jaxcl import data
    >>> from jaxcl.methods import REGISTRY
    >>> from jaxcl.study.record import shapes
    >>> choice, benchmark = choose(REGISTRY[0], Options(hidden=(8,))), data.split_digits()
    >>> cost(choice, benchmark, shapes(recipe(choice, benchmark)({}), benchmark))
    (610, 0)
    """
    problem = problem_of(choice, benchmark)
    if choice.spec.parameters is not None:
        parameters = choice.spec.parameters(problem, choice.own, learner)
    else:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(learner.theta))
    plain = problem.with_heads(Method(init=lambda key, params: (params, ())))
    model = problem.network()
    theta = jax.eval_shape(lambda key: plain.init(key, model.init(key)[0])[0], jax.random.key(0))
    held = (learner.theta, learner.state, learner.memory)
    return parameters, masks.size_bytes(held) - masks.size_bytes(theta)


def optimizer(options: Options) -> optax.GradientTransformation:
    """The optimizer that the options name, with decoupled weight decay of the kernels.

    >>> import jax.numpy as jnp
    >>> state = optimizer(Options(optimizer="adam")).init({"kernel": jnp.ones((2, 3))})
    >>> len(jax.tree.leaves(state)) > 1  # moments and a counter
    True
    """
    direction = {
        "sgd": optax.identity,
        "momentum": partial(optax.trace, 0.9),
        "adam": optax.scale_by_adam,
        "adamw": optax.scale_by_adam,
    }[options.optimizer]()
    rate = options.weight_decay
    if rate is None:
        rate = 1e-4 if options.optimizer == "adamw" else 0.0
    none = isinstance(rate, float) and rate == 0
    decay = optax.identity() if none else optax.add_decayed_weights(rate, mask=_kernels)
    parts = [direction, decay, optax.scale_by_learning_rate(options.learning_rate)]
    if options.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(options.clip_norm))
    return optax.chain(*parts)


def _kernels(theta: PyTree) -> PyTree:
    """True for the weights of layers and laterals."""
    return masks.by_path(theta, [(r"(^|/)(kernel|project)$", True), ("", False)])
