"""Models as users write them, unchanged, under HAT and PackNet: a linen ResNet, nnx networks."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxcl
from jaxcl import data, masks, models, train

TASKS = 2
CLASSES = 5
SHAPE = (8, 8, 1)
EPOCHS = 2


# A linen ResNet with auto-named layers, so that its head is called "Dense_0".


class ResNetBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    stage_sizes: tuple[int, ...]
    num_filters: int
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.8,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(self.num_filters, (3, 3), name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, blocks in enumerate(self.stage_sizes):
            for j in range(blocks):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = ResNetBlock(self.num_filters * 2**i, conv, norm, strides)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


# An nnx vision transformer, and an nnx ConvNet with BatchNorm and Dropout.


class EncoderBlock(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp_in = nnx.Linear(width, 2 * width, rngs=rngs)
        self.mlp_out = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp_out(nnx.gelu(self.mlp_in(self.norm2(x))))


class VisionTransformer(nnx.Module):
    def __init__(self, width: int, depth: int, rngs: nnx.Rngs):
        self.embed = nnx.Conv(1, width, (4, 4), (4, 4), padding="VALID", rngs=rngs)
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (1, 4, width)))
        self.blocks = nnx.List([EncoderBlock(width, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.bn1 = nnx.BatchNorm(6, momentum=0.8, rngs=rngs)
        self.conv2 = nnx.Conv(6, 8, (3, 3), rngs=rngs)
        self.bn2 = nnx.BatchNorm(8, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.classifier = nnx.Linear(32, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.bn1(self.conv1(x))), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.bn2(self.conv2(x))), (2, 2), (2, 2))
        return self.classifier(self.dropout(x.reshape(x.shape[0], -1)))


class User(NamedTuple):
    """What a user says: the model, the name of its head, and which layers get a gate."""

    build: Callable
    head: str
    gates: list | None = None


USERS = {
    "resnet": User(
        lambda: models.from_linen(ResNet((1, 1), 4, CLASSES), jnp.zeros((1, *SHAPE))), "Dense_0"
    ),
    "transformer": User(
        lambda: models.from_nnx(lambda rngs: VisionTransformer(8, 1, rngs)), "head", ["mlp_in"]
    ),
    "convnet": User(lambda: models.from_nnx(ConvNet), "classifier"),
}


# Steps are few and models tiny, so that compiling is what costs time.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@functools.cache
def network(name):
    """The model, its parameters and statistics; they are drawn once for all tests."""
    model = USERS[name].build()
    drawn = jit(model.init)(jax.random.key(0))
    return model._replace(init=lambda key: drawn), *drawn


@functools.cache
def wiring(name):
    model, params, statistics = network(name)
    apply = lambda p, x: model.apply(p, statistics, x)[0]  # noqa: E731
    return jaxcl.trace_wiring(apply, params, jnp.zeros((1, *SHAPE)), USERS[name].gates)


def make_setup(method, name, norm):
    head = USERS[name].head

    def prunable(path, leaf):
        return path.endswith("kernel") and not re.search(head, path)

    chosen = {
        "finetune": jaxcl.finetune,
        "hat": lambda: jaxcl.hat(wiring(name), TASKS, s_max=50, c=0.1, hard=True),
        "packnet": lambda: jaxcl.packnet(TASKS, prunable=prunable),
    }[method]()
    per_task = f"{head}|bn|norm|Norm" if norm == "per_task" else head
    return train.Setup(
        method=jaxcl.multihead(chosen, TASKS, per_task),
        model=network(name)[0],
        optimizer=optax.adamw(0.02, weight_decay=0.01),
        prepare=lambda x: x.astype(jnp.float32) / 16,
        batch=12,
        norm=norm,
    )


@functools.cache
def examples():
    """Each task: 30 images of five digits to learn from, and 15 others."""
    made = []
    for task in data.split_digits(TASKS, flat=False).tasks:
        rows = [np.flatnonzero(task.train.y == digit)[:9] for digit in range(CLASSES)]
        order = np.stack(rows, -1).ravel()
        x, y = task.train.x[order], task.train.y[order]
        made.append((train.Data(x[:30], y[:30], 30), train.Data(x[30:], y[30:], 15)))
    return made


def learn(setup, retrain=False):
    """Trains on all tasks and watches what becomes of the finished ones.

    Returns:
        The learner; what of a finished task changed: "view", "statistics" or "logits"; for each
        task the losses of its epochs; and its held-out accuracy at its end.
    """

    @jit
    def begin(learner, task):
        return train.begin_task(setup, learner, task)

    @jit
    def epoch(learner, data, task, index):
        return train.epoch(setup, learner, data, task, index)

    @jit
    def end(learner, task):
        return train.begin_phase(setup, train.end_task(setup, learner, task), task)

    @jit
    def look(learner, test, task):
        view = setup.method.view(learner.theta, learner.state, task)
        row = 0 if setup.norm in (None, "shared") else task
        row = jax.tree.map(lambda rows: rows[row], learner.statistics)
        logits, _ = setup.model.apply(view, row, setup.prepare(test.x))
        metrics = train.evaluate(setup, learner, test, task)
        return {"view": view, "statistics": row, "logits": logits}, metrics.accuracy

    def compare():
        for task, before in enumerate(kept):
            after, _ = jax.device_get(look(learner, examples()[task][1], task))
            for part in before:
                same = jax.tree.map(np.array_equal, before[part], after[part])
                changed.update([] if all(jax.tree.leaves(same)) else [part])

    learner = jit(lambda key: train.start(setup, key, TASKS))(jax.random.key(0))
    kept, changed, losses, accuracy = [], set(), [], []
    for task, (training, test) in enumerate(examples()):
        learner, losses = begin(learner, task), [*losses, []]
        for index in range(EPOCHS):
            learner, metrics = epoch(learner, training, task, index)
            losses[-1].append(float(metrics.loss))
        compare()
        learner = end(learner, task)
        if retrain:
            learner, _ = epoch(learner, training, task, EPOCHS)
        compare()
        kept.append(jax.device_get(look(learner, test, task)[0]))
        accuracy.append(float(look(learner, test, task)[1]))
    return learner, changed, losses, accuracy


@pytest.mark.parametrize(
    ("method", "name", "norm"),
    [
        ("hat", "resnet", "frozen"),
        ("packnet", "resnet", "per_task"),
        ("hat", "transformer", None),
        ("packnet", "transformer", None),
        ("hat", "convnet", "per_task"),
        ("packnet", "convnet", "frozen"),
    ],
)
def test_a_finished_task_never_changes(method, name, norm):
    setup = make_setup(method, name, norm)
    learner, changed, losses, accuracy = learn(setup, retrain=method == "packnet")
    assert changed == set()
    assert all(last < first for first, last in losses), losses
    assert all(0 <= value <= 1 for value in accuracy)
    used = setup.method.capacity(learner.theta, learner.state)
    assert used == 1 if method == "packnet" else 0 < used <= 1


def test_and_a_change_would_be_noticed():
    _, changed, _, _ = learn(make_setup("finetune", "convnet", "shared"))
    assert changed == {"view", "statistics", "logits"}


def test_what_gets_a_gate():
    assert wiring("convnet").gates == {"conv1": 6, "conv2": 8}
    assert wiring("convnet").inputs["classifier/kernel"] == (("conv2", 4),)
    assert wiring("transformer").gates == {"blocks/0/mlp_in": 16}
    # A stream has one gate, whose name is its first layer's; each block has one of its own.
    table = wiring("resnet")
    first, second = "ResNetBlock_0", "ResNetBlock_1"
    assert table.gates == {
        "conv_init": 4,
        f"{first}/Conv_0": 4,
        f"{second}/Conv_0": 8,
        table.outputs[f"{second}/conv_proj/kernel"]: 8,
    }
    assert table.outputs[f"{first}/Conv_1/kernel"] == "conv_init"
    assert table.outputs[f"{second}/Conv_1/kernel"] == table.inputs["Dense_0/kernel"][0][0]
    assert table.outputs["bn_init/scale"] == "conv_init"


def test_what_packnet_owns():
    setup = make_setup("packnet", "transformer", None)
    _, params, _ = network("transformer")
    _, state = setup.method.init(jax.random.key(0), params)
    kernels = {p for p in masks.leaves_by_path(params) if p.endswith("kernel")}
    assert set(state.owner) == kernels - {"head/kernel"}


def test_trained_weights_may_be_numpy_arrays():
    params = jax.device_get(network("convnet")[1])
    setup = make_setup("packnet", "convnet", "frozen")
    theta = train.start(setup, jax.random.key(0), TASKS, params).theta
    np.testing.assert_array_equal(theta["conv1"]["kernel"], params["conv1"]["kernel"])
    np.testing.assert_array_equal(theta["classifier"]["bias"][0], params["classifier"]["bias"])


# Bad input


@pytest.mark.parametrize("name", ["resnet", "convnet"])
def test_what_becomes_of_running_statistics_must_be_said(name):
    setup = make_setup("packnet", name, "frozen")._replace(norm=train.Setup._field_defaults["norm"])
    with pytest.raises(ValueError, match=r"statistics.*norm='frozen'.*'per_task'"):
        train.start(setup, jax.random.key(0), TASKS)


def test_layer_norms_need_no_policy():
    setup = make_setup("packnet", "transformer", None)
    assert train.start(setup, jax.random.key(0), TASKS).statistics == {}


def test_dropout_needs_a_key():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=deterministic)(x))

    x = jnp.ones((2, *SHAPE))
    with pytest.raises(ValueError, match=r"'dropout/rngs'.*key"):
        network("convnet")[0].apply(*network("convnet")[1:], x, train=True)
    model = models.from_linen(Linen(), x)
    with pytest.raises(ValueError, match=r"Linen draws random numbers.*key"):
        model.apply(*model.init(jax.random.key(0)), x, train=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :6], r"task 1.*shape \(6, 8, 1\).*expected \(8, 8, 1\)"),
        (lambda x: x.astype(np.float32), "task 1.*float32.*uint8 in the first task"),
    ],
)
def test_tasks_of_unlike_images_are_refused(change, words):
    pairs = [(np.zeros((20, *SHAPE), np.uint8), np.arange(20) % 2)] * TASKS
    assert len(data.from_arrays("mine", pairs).tasks) == TASKS
    pairs[1] = change(pairs[1][0]), pairs[1][1]
    with pytest.raises(ValueError, match=words):
        data.from_arrays("mine", pairs)


def test_a_head_of_another_name_is_an_error():
    _, params, _ = network("resnet")
    method = jaxcl.multihead(jaxcl.hat(wiring("resnet"), TASKS), TASKS)
    with pytest.raises(ValueError, match=r"matches no leaf.*Dense_0/kernel"):
        method.init(jax.random.key(0), params)


def test_a_transformer_needs_its_gates_chosen():
    model, params, _ = network("transformer")
    apply = lambda p, x: model.apply(p, {}, x)[0]  # noqa: E731
    with pytest.raises(ValueError, match=r"mixes the units.*nearest parameter.*gates=\[\.\.\.\]"):
        jaxcl.trace_wiring(apply, params, jnp.zeros((1, *SHAPE)))
    with pytest.raises(ValueError, match=r"finds no hidden .*'mlp_im'.*'blocks/0/mlp_in/kernel'"):
        jaxcl.trace_wiring(apply, params, jnp.zeros((1, *SHAPE)), ["mlp_im"])


def test_a_table_of_another_model_is_an_error():
    setup = make_setup("hat", "convnet", "frozen")._replace(model=network("transformer")[0])
    with pytest.raises(ValueError, match=r"'conv1/kernel' is no parameter"):
        train.start(setup, jax.random.key(0), TASKS)


def test_columns_need_to_be_shown():
    with pytest.raises(ValueError, match=r"`column` and `laterals`.*lateral=None"):
        jaxcl.pnn(network("convnet")[0], TASKS)
    method, model = jaxcl.pnn(network("convnet")[0], TASKS, lateral=None)
    assert "column" in method.init(jax.random.key(0), model.init(jax.random.key(0))[0])[0]
