"""PNN: columns and laterals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl import data, masks, models, recipes
from jaxcl.methods.pnn import apply_lateral, init_laterals
from tests.methods.small import KEY, TASKS, close, equal, mlp, noise, params, row


@functools.cache
def grown(lateral, tasks=TASKS, **options):
    """A progressive network whose columns and laterals have all been moved."""
    method, network = jaxcl.pnn(mlp(), tasks, lateral, **options)
    theta, state = method.init(KEY, params())
    for task in range(tasks):
        theta, state = method.begin_task(jax.random.key(task), theta, state, task)
        if task:
            theta = jax.tree.map(lambda leaf, n: leaf + n, theta, noise(task, theta, 0.3))
        theta, state = method.end_task(theta, state, task)
    return method, network, theta, state


def columns_in_numpy(state, x, upto, lateral):
    """Rusu et al. (2016), Eqs. 1 and 2, written out for the MLP: logits and hidden activations."""

    def relu(x):
        return np.maximum(x, 0)

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def arriving(p, sources):
        if lateral == "linear":
            return sum((h @ u for h, u in zip(sources, p["kernel"])), np.float32(0))
        if not sources:
            return np.float32(0)
        reduced = sum(a * h @ v for a, h, v in zip(p["alpha"], sources, p["project"]))
        return relu(reduced + p["bias"]) @ p["kernel"]

    hidden = []  # of each column, the two layers' activations
    for k in range(upto + 1):
        theta = row(jax.device_get(state.columns), k)
        column, laterals = theta["column"], theta["laterals"]
        first = relu(dense(x, column["layers"][0]))
        second = dense(first, column["layers"][1]) + arriving(laterals[0], [h[0] for h in hidden])
        second = relu(second)
        logits = dense(second, column["head"]) + arriving(laterals[1], [h[1] for h in hidden])
        hidden.append([first, second])
    return logits, hidden


@pytest.mark.parametrize("lateral", ["linear", "adapter"])
def test_pnn_computes_the_papers_equations(lateral):
    method, network, theta, state = grown(lateral)
    x = noise(3, jnp.zeros((6, 4)))
    for task in range(TASKS):
        view = method.view(theta, state, task)
        logits, _ = network.apply(view, {}, x)
        expected, hidden = columns_in_numpy(state, x, task, lateral)
        close(logits, expected, 1e-4)
        # What a column sees of its sources is what they compute, with their own laterals.
        features = network.frozen(view, {}, x)
        for layer, feature in enumerate(features):
            for j in range(TASKS - 1):
                source = hidden[j][layer] if j < task else np.zeros_like(hidden[0][layer])
                close(feature[..., j, :], source, 1e-4)
        close(network.apply(view, {}, x, features=features)[0], logits)


@pytest.mark.parametrize("lateral", ["linear", "adapter"])
def test_every_lateral_parameter_gets_a_gradient(lateral):
    """The test that other implementations fail: dead laterals, sources without theirs."""
    method, network, _, state = grown(lateral)
    x = noise(4, jnp.zeros((64, 4)))
    for task in (1, 2):
        theta = row(state.columns, task)
        state = state._replace(current=jnp.int32(task))

        def loss(theta):
            logits, _ = network.apply(method.view(theta, state, task, 0.5), {}, x)  # noqa: B023
            return jnp.sum(jnp.sin(logits))

        for path, leaf in masks.leaves_by_path(jax.grad(loss)(theta)["laterals"]).items():
            leaf = np.asarray(leaf)
            sources = {"project": 0, "alpha": 0, "kernel": -3 if lateral == "linear" else None}
            axis = sources.get(path.split("/")[-1])
            if axis is None:
                assert np.any(leaf), path
                continue
            by_source = np.moveaxis(leaf, axis, 0).reshape(TASKS - 1, -1)
            exists = np.arange(TASKS - 1) < task  # columns to come get none
            equal(np.any(by_source, axis=1), exists)
        assert not np.any(jax.grad(loss)(theta)["column"]["head"]["bias"] == 0)


@pytest.mark.parametrize("lateral", ["linear", "adapter", None])
def test_columns_to_come_have_no_influence(lateral):
    method, network, theta, state = grown(lateral)
    x = noise(5, jnp.zeros((6, 4)))
    apply = jax.jit(network.apply)
    for task in range(TASKS):
        ruined = state._replace(
            columns=jax.tree.map(lambda leaf: leaf.at[task + 1 :].set(jnp.nan), state.columns)  # noqa: B023
        )
        views = [method.view(theta, s, task) for s in (state, ruined)]
        if task == TASKS - 1:
            equal(*views)
        equal(*(apply(view, {}, x)[0] for view in views))
    # Nor does an old column know that new ones joined, but for laterals: it does know older ones.
    ruined = state._replace(
        columns=jax.tree.map(lambda leaf: leaf.at[0].set(leaf[0] + 1), state.columns)
    )
    views = [method.view(theta, s, 1) for s in (state, ruined)]
    old, new = (apply(view, {}, x)[0] for view in views)
    assert np.array_equal(old, new) == (lateral is None)


@pytest.mark.parametrize("lateral", ["linear", "adapter", None])
def test_the_first_column_is_the_plain_network(lateral):
    method, network, theta, state = grown(lateral)
    x = noise(6, jnp.zeros((6, 4)))
    close(network.apply(method.view(theta, state, 0), {}, x)[0], mlp().apply(params(), {}, x)[0])


def test_a_running_column_is_theta_and_a_finished_one_is_stored():
    method, _ = jaxcl.pnn(mlp(), TASKS)
    theta, state = method.init(KEY, params())
    theta, state = method.begin_task(KEY, theta, state, 0)
    moved = jax.tree.map(lambda leaf: leaf + 1, theta)
    equal(method.view(moved, state, 0)["own"], moved)
    first, state = method.end_task(moved, state, 0)
    second, state = method.begin_task(KEY, first, state, 1)
    assert method.capacity(second, state) == 1
    equal(method.view(second, state, 0)["own"], moved)
    equal(method.view(second, state, 1)["own"], second)
    assert np.any(second["column"]["head"]["kernel"] != moved["column"]["head"]["kernel"])
    assert method.trainable(second, state, 1) is True


@pytest.mark.parametrize("lateral", ["linear", "adapter"])
def test_frozen_columns_run_in_inference_mode(lateral):
    """Neither dropout nor running statistics touch them while another column trains."""
    model = mlp(dropout=0.5)
    method, network = jaxcl.pnn(model, TASKS, lateral)
    theta, state = method.init(KEY, params())
    for task in range(2):
        theta, state = method.begin_task(jax.random.key(task), theta, state, task)
        theta, state = method.end_task(theta, state, task)
    x = noise(7, jnp.zeros((6, 4)))
    view = method.view(theta, state, 1, 0.0)
    # With a head of zeros only what the head's laterals bring remains, and no dropout is in it.
    view["own"] = jax.tree.map(lambda leaf: leaf, view["own"])
    view["own"]["column"]["head"] = jax.tree.map(jnp.zeros_like, view["own"]["column"]["head"])
    one, two = (
        network.apply(view, {}, x, train=True, key=jax.random.key(key))[0] for key in (0, 1)
    )
    equal(one, two)
    assert np.ptp(one) > 0


def test_statistics_belong_to_one_column():
    model = models.resnet18((8, 8, 1), 2, width=1)
    method, network = jaxcl.pnn(model, 2, None)
    fresh, statistics = jax.jit(network.init)(KEY)
    theta, state = method.init(KEY, fresh)
    x = noise(8, jnp.zeros((4, 8, 8, 1)))
    state = state._replace(current=jnp.int32(1))
    apply = jax.jit(network.apply, static_argnames="train")
    _, after = apply(method.view(theta, state, 1, 0.0), statistics, x, train=True)
    for old, new in zip(jax.tree.leaves(statistics), jax.tree.leaves(after)):
        equal(old[0], new[0])
        assert np.any(old[1] != new[1])


def start_lateral(spec, sources, task, kind, alpha=1.0, projection=None):
    return init_laterals([spec], sources, kind, alpha, projection, KEY, task)[0]


def test_shapes_of_laterals():
    dense = models.LateralSpec((5,), (3,))
    conv = models.LateralSpec((6, 6, 5), (4, 4, 3), (3, 3), (1, 1), "VALID")
    shapes = lambda *args: jax.tree.map(np.shape, start_lateral(*args))  # noqa: E731
    assert shapes(dense, 2, 1, "linear") == {"kernel": (2, 5, 3)}
    assert shapes(conv, 2, 1, "linear") == {"kernel": (3, 3, 2, 5, 3)}
    adapter = {"alpha": (2,), "project": (2, 5, 5), "bias": (5,)}
    assert shapes(dense, 2, 1, "adapter") == adapter | {"kernel": (5, 3)}
    assert shapes(conv, 2, 1, "adapter") == adapter | {"kernel": (3, 3, 5, 3)}
    narrow = {"alpha": (2,), "project": (2, 5, 7), "bias": (7,), "kernel": (7, 3)}
    assert shapes(dense, 2, 1, "adapter", 1.0, 7) == narrow
    start = start_lateral(dense, 3, 2, "adapter", 0.1)
    close(start["alpha"], [0.1, 0.1, 0.0])
    equal(np.any(start["project"], axis=(1, 2)), [True, True, False])


@pytest.mark.parametrize("kind", ["linear", "adapter"])
def test_lateral_convolutions_are_sums_over_the_sources(kind):
    spec = models.LateralSpec((6, 6, 5), (3, 3, 3), (3, 3), (2, 2), "SAME")
    lateral = start_lateral(spec, 2, 2, kind, 0.5)
    hidden = noise(9, jnp.zeros((2, 6, 6, 2, 5)))

    def conv(h, kernel):
        return jax.lax.conv_general_dilated(
            h, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    if kind == "linear":
        expected = sum(conv(hidden[..., j, :], lateral["kernel"][:, :, j]) for j in range(2))
    else:
        reduced = sum(0.5 * hidden[..., j, :] @ lateral["project"][j] for j in range(2))
        expected = conv(jax.nn.relu(reduced), lateral["kernel"])
    close(apply_lateral(lateral, spec, hidden, 2), expected, 1e-4)


def test_a_single_column_has_no_laterals():
    method, network = jaxcl.pnn(mlp(), 1)
    theta, state = method.begin_task(KEY, *method.init(KEY, params()), 0)
    assert theta["laterals"] == []
    assert network.frozen is None
    x = noise(6, jnp.zeros((6, 4)))
    close(network.apply(method.view(theta, state, 0), {}, x)[0], mlp().apply(params(), {}, x)[0])


def test_narrow_columns_have_the_size_of_the_hat_code_s():
    """Its eight columns with their own heads have 7,160,706 parameters, and ours one bias less.

    There U has a bias beside V's, although the layer that it adds to has one already. All else is
    the same: the widths, V of as many units as it reads, one alpha for each source column and
    layer, laterals into the head.
    """
    classes = [10, 100, 100, 10, 10, 10, 10, 43]
    images = data.from_arrays("images", [(np.zeros((10, 32, 32, 3), np.uint8), np.arange(10) % 2)])
    alexnet = recipes.Options(network="alexnet")
    ours = biases = 0
    for sources, count in enumerate(classes):
        task = images.tasks[0]._replace(classes=count)
        column = recipes.network(images._replace(tasks=(task,)), alexnet, 1.117 / len(classes))
        method, _ = jaxcl.pnn(column, sources + 1)
        theta = jax.eval_shape(lambda key, c=column, m=method: m.init(key, c.init(key)[0])[0], KEY)
        ours += sum(leaf.size for leaf in jax.tree.leaves(theta))
        widths = [spec.out[-1] for spec in column.laterals]
        assert widths == [17, 35, 285, 285, count]
        biases += sum(widths) if sources else 0
    assert (ours, biases, ours + biases) == (7_156_069, 4_637, 7_160_706)


def test_a_recipe_s_columns_are_as_wide_as_asked():
    benchmark = data.split_digits(2)
    for method in ("pnn", "independent"):
        own = {"column_width": 0.1} if method == "pnn" else {}
        setup = recipes.recipe(recipes.choose(method, hidden=(100, 29), **own), benchmark)({})
        params, _ = jax.eval_shape(setup.model.init, KEY)
        widths = [layer["kernel"].shape[1] for layer in params["layers"].values()]
        assert widths == ([10, 2] if method == "pnn" else [100, 29])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 0}, "pnn: tasks must be a whole number of at least 1, got 0"),
        ({"tasks": 2, "alpha": np.inf}, "pnn: alpha must be finite, got inf"),
        ({"tasks": 2, "projection": 0}, "pnn: projection must be a whole number of at least 1"),
        ({"tasks": 2, "lateral": "dense"}, "lateral must be .* got 'dense'"),
    ],
)
def test_pnn_errors(options, words):
    with pytest.raises(ValueError, match=words):
        jaxcl.pnn(mlp(), **options)


def test_pnn_needs_layers_to_connect():
    plain = mlp()._replace(column=None, laterals=())
    with pytest.raises(ValueError, match=r"the model shows no layers to connect.*lateral=None"):
        jaxcl.pnn(plain, 2)
    jaxcl.pnn(plain, 2, None)
