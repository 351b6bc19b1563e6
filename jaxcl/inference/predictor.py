"""A trained learner as a function of stored examples: batched, compiled once."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import train
from jaxcl.core import masks
from jaxcl.core.checks import check_count
from jaxcl.core.method import Batch
from jaxcl.core.trees import PyTree
from jaxcl.inference import tasks as inferring
from jaxcl.inference.inputs import Inputs
from jaxcl.inference.tasks import Calibration, Inferred, Rule
from jaxcl.train.outputs import visible

SIZE = 256  # examples at a time


class Predictor(NamedTuple):
    """A trained network; make it by `predictor`, or by `jaxcl.load`.

    Attributes:
        setup: method, network and preparation of the inputs.
        learner: what was trained.
        tasks: number of tasks that have a network: the finished ones.
        inputs: what an input is; None if nothing is known of it.
        programs: the compiled functions. Learners of one setup share them: `_replace(learner=...)`.
        forgotten: the tasks that have none any more.
        rule: how the task is inferred.
        calibration: of that rule; None for none.
    """

    setup: train.Setup
    learner: train.Learner
    tasks: int
    inputs: Inputs | None
    programs: dict[str, Callable]
    forgotten: tuple[int, ...] = ()
    rule: Rule = "entropy"
    calibration: Calibration | None = None

    def logits(self, images: Any, task: int | None = None) -> np.ndarray:
        """The network's answers, float [N, C]: one column for each class that it can give.

        Args:
            images: examples [N, ...] as they are stored, such as integers from 0 to 255; a network
                of vectors also takes images, and flattens them.
            task: the task, counted from 0; None where the network is not told one.

        Raises:
            ValueError: for examples that are none of this network's, or a task that it lacks.
        """
        number = self._task(task)
        found = self._in_parts("logits", images, np.int32(number))
        return found[:, self._visible(found.shape[1], number)]

    def probabilities(self, images: Any, task: int | None = None) -> np.ndarray:
        """The softmax of `logits`, float [N, C].

        Raises:
            ValueError: as `logits`, or for a network that gives numbers.
        """
        if self.inputs is not None and self.inputs.targets:
            raise ValueError("this network gives numbers, not classes: see logits.")
        return np.asarray(jax.nn.softmax(jnp.asarray(self.logits(images, task)), -1))

    def predict(self, images: Any, task: Any = None) -> np.ndarray:
        """The class of each example, int [N], counted from 0 within its task.

        Of a network that gives numbers it is they, float [N, D].

        Args:
            images: as in `logits`.
            task: the task; or one for each example, int [N]; or `"infer"`, for what `infer` finds;
                None where the network is not told one.

        Raises:
            ValueError: as `logits`.
        """
        if isinstance(task, str):
            if task != "infer":
                raise ValueError(
                    f"task must be a number, one for each image or 'infer', got {task!r}."
                )
            task = self.infer(images).task
        answer: Callable = lambda outputs: outputs.argmax(-1)  # noqa: E731
        if self.inputs is not None and self.inputs.targets:
            answer = np.asarray
        if task is None or np.ndim(task) == 0:
            return answer(self.logits(images, task))
        chosen = np.asarray(task)
        for number in np.unique(chosen).tolist():
            self._task(number)
        each = self.every_logits(images)
        if chosen.shape != each.shape[1:2]:
            raise ValueError(f"task has shape {chosen.shape} for {each.shape[1]} images.")
        return answer(each[chosen, np.arange(len(chosen))])

    def infer(self, images: Any, batch: int | None = None) -> Inferred:
        """The task of each example, by this predictor's rule and calibration: see `jaxcl.infer`.

        Args:
            images: as in `logits`, of unknown tasks.
            batch: so many, one after the other, are known to be of one task.
        """
        self._check_told()
        if batch is not None:
            check_count("infer: batch", batch)
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        scores = self._in_parts(f"scores {self.rule}", images, np.float32(temperature))
        offset = None if self.calibration is None else self.calibration.offset
        if self.forgotten:
            scores[:, list(self.forgotten)] = -np.inf
        task = np.asarray(inferring.decide(jnp.asarray(scores), offset, batch))
        return Inferred(task, scores, self.every_logits(images))

    def calibrated(
        self, examples: Sequence[Any], rule: Rule | None = None, **options: Any
    ) -> "Predictor":
        """This predictor with a rule, and its temperature and offsets fitted: see `calibrate`.

        Args:
            examples: for each task, examples [N, ...] that were not trained on.
            rule: by default the predictor's.
            **options: what else `calibrate` takes.
        """
        self._check_told()
        rule, arrays = rule or self.rule, [self._stored(x) for x in examples]
        task = np.repeat(np.arange(len(arrays)), [len(x) for x in arrays])
        apply, view = network_of(self.setup, self.learner)
        fitted = inferring.calibrate(
            apply, view, np.concatenate(arrays), task, self.tasks, rule,
            classes=self.setup.classes, **options,
        )  # fmt: skip
        return self._replace(rule=rule, calibration=fitted)

    def params(self, task: int | None = None) -> PyTree:
        """The parameters that a task's network computes with: its view, for `setup.model.apply`."""
        return self.programs["network"](self.learner, np.int32(self._task(task)))[0]

    def statistics(self, task: int | None = None) -> PyTree:
        """The running statistics that go with them, {} if there are none."""
        return self.programs["network"](self.learner, np.int32(self._task(task)))[1]

    def masks(self, task: int | None = None) -> PyTree:
        """Which of the entries of `params` the task's network uses: a tree of bool arrays."""
        number, params = self._task(task), self.params(task)
        used = self.setup.method.used
        if used is None:
            return jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params)
        given = used(self.learner.theta, self.learner.state, number)
        return jax.tree.map(
            lambda mask, leaf: jnp.broadcast_to(mask, jnp.shape(leaf)),
            masks.expand(given, params), params, is_leaf=masks.is_mask,
        )  # fmt: skip

    def arrange(self, images: Any, task: int) -> np.ndarray:
        """Images of one's own in the order of pixels of a task, where each task has its own order.

        Args:
            images: [N, ...], upright.
            task: the task, counted from 0.

        Returns:
            The images as the task has them, for the other functions.
        """
        images = self._stored(images)
        return images if self.inputs is None else self.inputs.arrange(images, self._task(task))

    def _stored(self, images: Any) -> np.ndarray:
        return np.asarray(images) if self.inputs is None else self.inputs.stored(images)

    def _check_told(self) -> None:
        if self.setup.scenario != "task":
            raise ValueError(
                f"this network was trained in the scenario {self.setup.scenario!r}, and is the "
                f"same for all tasks: there is no task to infer."
            )

    def _task(self, task: Any) -> int:
        """The number of the network that a task has."""
        if task is None:
            if self.setup.scenario == "task":
                raise ValueError("this network is told the task: give its number, or task='infer'.")
            return self.tasks - 1
        whole = isinstance(task, (int, np.integer)) and not isinstance(task, bool)
        if not whole or not 0 <= task < self.tasks:
            raise ValueError(
                f"task must be a whole number from 0 to {self.tasks - 1}, the finished tasks, got "
                f"{task!r}."
            )
        if task in self.forgotten:
            raise ValueError(f"task {task} was forgotten: it has no network any more.")
        return int(task)

    def _visible(self, columns: int, task: int) -> np.ndarray:
        """The logits that answers are among, bool [C]."""
        found = visible(
            self.setup, (1, columns), Batch(None, None), task, min(self.tasks - 1, task)
        )
        return np.asarray(found[0])

    def every_logits(self, images: Any) -> np.ndarray:
        """The answers of every task's network, float [tasks, N, C]; see `tasks.every_logits`.

        Args:
            images: as in `logits`.
        """
        return np.moveaxis(self._in_parts("every logits", images), 1, 0)

    def _in_parts(self, program: str, images: Any, *rest: Any) -> np.ndarray:
        """A program's answers for all examples, a few at a time, always in one of a few shapes."""
        images, run = self._stored(images), self.programs[program]
        if len(images) == 0:
            raise ValueError("there are no images.")
        size = min(SIZE, 1 << math.ceil(math.log2(len(images))))
        answers = []
        for begin in range(0, len(images), size):
            part = images[begin : begin + size]
            filled = np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))
            answers.append(np.asarray(run(self.learner, filled, *rest))[: len(part)])
        return np.concatenate(answers)


def predictor(
    setup: train.Setup,
    learner: train.Learner,
    tasks: int,
    inputs: Inputs | None = None,
    forgotten: Sequence[int] = (),
) -> Predictor:
    """A trained learner as a Predictor.

    Args:
        setup: what the learner was trained with.
        learner: one learner, without a replica axis.
        tasks: how many of the tasks are finished, at least 1.
        inputs: what an input is, for checks; by default everything is taken.
        forgotten: the tasks that were forgotten.
    """
    check_count("predictor: tasks", tasks)

    def logits(learner, x, task):
        params, statistics = train.network(setup, learner, task)
        return setup.model.apply(params, statistics, setup.prepare(x))[0].astype(jnp.float32)

    def every_logits(learner, x):
        found = inferring.every_logits(*network_of(setup, learner), x, tasks, setup.classes)
        return jnp.moveaxis(found, 0, 1)

    def scores(rule):
        def of(learner, x, temperature):
            apply, view = network_of(setup, learner)
            every = inferring.every_logits(apply, view, x, tasks, setup.classes)
            return inferring.score(apply, view, x, every, rule, temperature, setup.classes)

        return of

    programs = {
        "logits": logits,
        "every logits": every_logits,
        "network": lambda learner, task: train.network(setup, learner, task),
        **{f"scores {rule}": scores(rule) for rule in inferring.RULES},
    }
    compiled = {name: jax.jit(function) for name, function in programs.items()}
    return Predictor(setup, learner, tasks, inputs, compiled, tuple(forgotten))


def network_of(setup: train.Setup, learner: train.Learner) -> tuple[Callable, Callable]:
    """A learner's network as `infer` takes it: `apply` and `view`."""

    def apply(view, x):
        params, statistics = view
        return setup.model.apply(params, statistics, setup.prepare(x))[0]

    return apply, lambda task: train.network(setup, learner, task)
