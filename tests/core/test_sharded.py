"""Parameters over a mesh: masks, owners and optimizer state lie with their leaf, always."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxcl
from jaxcl import Wiring, checkpoint, masks, sharding

P = PartitionSpec
RULES = [
    ("up/kernel|head/kernel", P("data", "model")),
    ("down/kernel", P("model", "data")),
    ("up/bias|attention|embeddings", P("model")),
]
WIRING = Wiring(
    gates={"up": 8},
    inputs={"blocks/down/kernel": (("up", 1),)},
    outputs={"blocks/up/kernel": "up", "blocks/up/bias": "up"},
)
METHODS = {
    "packnet": lambda: jaxcl.packnet(3, stacked="blocks/"),
    "hat": lambda: jaxcl.hat(WIRING, 3, hard=True, s_max=50),
}
X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)


def mesh_of(data, model, kind=AxisType.Auto):
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(kind,) * 2, devices=devices)


def parameters():
    """Two stacked blocks and a head."""
    draw = iter(np.random.default_rng(1).normal(size=1000).astype(np.float32))

    def drawn(*shape):
        return np.array(list(itertools.islice(draw, int(np.prod(shape))))).reshape(shape) / 2

    up = {"kernel": drawn(2, 4, 8), "bias": np.zeros((2, 8), np.float32)}
    return {
        "blocks": {"up": up, "down": {"kernel": drawn(2, 8, 4)}},
        "head": {"kernel": drawn(4, 4)},
    }


def network(params, x):
    def block(x, layer):
        hidden = jax.nn.relu(x @ layer["up"]["kernel"] + layer["up"]["bias"][None])
        return x + hidden @ layer["down"]["kernel"], None

    return jax.lax.scan(block, x, params["blocks"])[0] @ params["head"]["kernel"]


def trained(method, mesh, seen=lambda when, *trees: None):
    """Two tasks of two steps in a loop of one's own; `seen` looks at all that there is."""
    params = jax.device_put(parameters(), sharding.by_path(parameters(), mesh, RULES))
    tx = jaxcl.isolate(optax.adamw(1e-2))

    @jax.jit
    def step(theta, opt_state, state, task):
        def loss(theta):
            logits = network(method.view(theta, state, task, 0.5), X)
            return jnp.mean((logits - 1) ** 2) + method.penalty(theta, state, task, 0.5)

        updates, opt_state = tx.update(jax.grad(loss)(theta), opt_state, theta)
        return method.project(optax.apply_updates(theta, updates)), opt_state

    theta, state = jax.jit(method.init)(jax.random.key(0), params)
    seen("init", theta, state)
    found = []
    for task in range(2):
        theta, state = jax.jit(method.begin_task)(jax.random.key(task), theta, state, task)
        trainable = jax.jit(method.trainable)(theta, state, task)
        opt_state = jaxcl.set_trainable(jax.jit(tx.init)(theta), trainable)
        seen("begin_task", theta, state, opt_state, trainable)
        for _ in range(2):
            theta, opt_state = step(theta, opt_state, state, task)
        seen("step", theta, state, opt_state, trainable)
        theta, state = jax.jit(method.end_task)(theta, state, task)
        seen("end_task", theta, state)
        found.append(network(jax.jit(method.view)(theta, state, 0), X))
    assert (found[0] == found[1]).all()  # law 1
    return theta, state, opt_state


def astray(tree, mesh):
    """The leaves that lie elsewhere than the rules say, by path."""
    wanted = masks.leaves_by_path(sharding.by_path(tree, mesh, RULES))
    return {
        path: leaf.sharding
        for path, leaf in masks.leaves_by_path(tree).items()
        if not wanted[path].is_fully_replicated
        and not leaf.sharding.is_equivalent_to(wanted[path], leaf.ndim)
    }


@pytest.mark.parametrize(("name", "shape"), [("packnet", (2, 2)), ("hat", (1, 2))])
def test_all_that_is_made_of_a_leaf_lies_with_it_and_no_number_depends_on_the_mesh(name, shape):
    """Masks and owners are equal, numbers up to rounding."""
    method, mesh = jaxcl.multihead(METHODS[name](), 3), mesh_of(*shape)
    found = trained(method, mesh, seen=lambda when, *trees: lies(when, trees, mesh))
    jax.tree.map(same, trained(method, mesh_of(1, 1)), found)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_made_outside_of_jit_lies_with_its_leaf_too(name):
    mesh, method = mesh_of(2, 2), jaxcl.multihead(METHODS[name](), 3)
    params = jax.device_put(parameters(), sharding.by_path(parameters(), mesh, RULES))
    theta, state = method.init(jax.random.key(0), params)
    lies("init", (theta, state), mesh)
    theta, state = method.begin_task(jax.random.key(0), theta, state, 0)
    opt_state = jaxcl.isolate(optax.adam(0.1), method.trainable(theta, state, 0)).init(theta)
    lies("begin_task", (theta, state, opt_state), mesh)


def lies(when, trees, mesh):
    assert not [astray(tree, mesh) for tree in trees if astray(tree, mesh)], when


def same(one, other):
    exact = one.dtype in (bool, np.uint8)
    np.testing.assert_allclose(one, other, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)


def test_a_constant_lies_on_one_device():
    """The broken twin: owners and moments that nothing ties to their leaf."""
    mesh = mesh_of(2, 2)
    leaf = jax.device_put(jnp.ones((4, 8)), NamedSharding(mesh, P("data", "model")))
    tree = {"up/kernel": leaf}
    assert astray({"up/kernel": jnp.zeros(leaf.shape, jnp.uint8)}, mesh)
    assert astray(jax.jit(optax.adam(0.1).init)(tree), mesh)
    assert not astray(jax.jit(jaxcl.isolate(optax.adam(0.1)).init)(tree), mesh)


def test_what_is_drawn_anew_lies_with_its_leaf():
    params = jax.device_put(parameters(), sharding.by_path(parameters(), mesh_of(2, 2), RULES))
    method = jaxcl.packnet(3, stacked="blocks/", reinit_free="random")
    assert not astray(jax.jit(method.init)(jax.random.key(0), params), mesh_of(2, 2))


def test_a_checkpoint_goes_onto_another_mesh(tmp_path):
    params = jax.device_put(parameters(), sharding.by_path(parameters(), mesh_of(2, 2), RULES))
    theta, state = METHODS["packnet"]().init(jax.random.key(0), params)
    saved = theta, state, jaxcl.isolate(optax.adam(0.1)).init(theta)
    checkpoint.save(tmp_path / "learner", saved)
    mesh = mesh_of(1, 4)
    place = sharding.by_path(saved, mesh, RULES)
    wanted = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), saved, place
    )
    found = checkpoint.restore(tmp_path / "learner", wanted)
    assert not astray(found, mesh)
    jax.tree.map(np.testing.assert_array_equal, saved, found)


def test_what_cannot_be_laid_out_is_said_in_one_sentence():
    mesh, leaf = mesh_of(2, 2), jax.ShapeDtypeStruct((6, 9), np.float32)
    with pytest.raises(ValueError, match=r"axis 1 of 'up', of shape \(6, 9\), .*'model' of 2 dev"):
        sharding.by_path({"up": leaf}, mesh, [("up", P("data", "model"))])
    with pytest.raises(ValueError, match=r"names the axis 'tensor'; the mesh has 'data', 'model'"):
        sharding.by_path({"up": leaf}, mesh, [("up", P("tensor"))])
    with pytest.raises(ValueError, match=r"'up', .* 108 bytes .* which has 100; .* 3 parts"):
        sharding.by_path({"up": leaf}, mesh, [("up", P("data", None))], limit=100)
    found = sharding.by_path(
        {"up": leaf, "count": jax.ShapeDtypeStruct((), int)},
        mesh,
        [
            ("up|count", P(("data", "model"), None)),
        ][:0],
    )
    assert found["up"].is_fully_replicated
    assert sharding.bytes_per_device({"up": leaf}, {"up": found["up"]}) == 216
