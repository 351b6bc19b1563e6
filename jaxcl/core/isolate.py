"""Element-wise, per-task freezing around any optax optimizer."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from jaxcl.core import masks, sharding
from jaxcl.core.checks import check_choice, is_concrete
from jaxcl.core.trees import PyTree


class IsolateState(NamedTuple):
    """State of `isolate`.

    Attributes:
        trainable: prefix tree of the parameters; what the running task may change.
        inner: the wrapped optimizer's state.
    """

    trainable: PyTree
    inner: optax.OptState


def isolate(
    inner: optax.GradientTransformation,
    trainable: PyTree | Callable[[PyTree], PyTree] = True,
    *,
    soft: Literal["update", "gradient"] = "update",
) -> optax.GradientTransformationExtraArgs:
    """Keeps every parameter entry that is not trainable exactly where it is, under any optimizer.

    A frozen entry's gradient is set to zero *before* `inner`, so that moments, norms and clipping
    never see it, and its update is set to zero *after* it, so that neither momentum, nor weight
    decay, nor anything else that `inner` adds can move it. A soft entry (between 0 and 1) scales
    the update, which adaptive optimizers cannot undo. Copies of the parameters that `inner` keeps,
    as schedule-free optimizers and averages do, are held in the same way: whatever of its state
    starts as a function of one leaf, in the leaf's shape.

    The mask lives in the optimizer's state as arrays: `set_trainable` changes it between tasks
    without recompiling, it has a seed axis under `jax.vmap`, and it is saved with the state.

    Args:
        inner: any optax optimizer or transform.
        trainable: prefix tree of the parameters, whose leaves broadcast against the leaves below
            them; or a function from the parameters to one, as for `optax.masked`. A leaf is bool
            (True may change), a float in [0, 1] (the share of its update that an entry gets), or
            `masks.Attended`. Values are not checked, as they may be traced.
        soft: what a soft entry scales. `"update"`: what comes out of `inner`. `"gradient"`: what
            goes in, so that a clipped norm is that of the scaled gradients, as in the code of
            Serra et al. (2018); for an `inner` that is linear but for its clipping, such as
            `chain(clip_by_global_norm(1.0), sgd(0.1))`: Adam would undo the scale, and momentum
            goes on with what it has.

    Returns:
        An optax transform. It passes extra arguments on to `inner`.

    Raises:
        ValueError: for an unknown `soft`; at `init`, for `optax.lookahead`; and at `init` or
            `update`, if a mask leaf does not match the parameters; the error names the leaf.

    Source: the exact rule of design law 1, `p + where(mask, update, 0)`; Serra et al. (2018) Eq. 2
        and Mallya and Lazebnik (2018) Sec. 3 state it for plain SGD gradients.
    Differs: the original implementations mask gradients only, and therefore need an optimizer
        without momentum and weight decay.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones(3)}
    >>> tx = isolate(optax.adamw(0.1), {"w": jnp.array([True, False, True])})
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"w": jnp.ones(3)}, state, params)
    >>> [round(float(w), 2) for w in optax.apply_updates(params, updates)["w"]]
    [0.9, 1.0, 0.9]
    """
    check_choice("isolate: soft", soft, ("update", "gradient"))
    inner = optax.with_extra_args_support(inner)
    copies = functools.cache(functools.partial(_find_copies, inner.init))

    def init_fn(params):
        if isinstance(params, optax.LookaheadParams):
            raise ValueError(
                "isolate: optax.lookahead is not supported; it has two sets of parameters and one "
                "of gradients."
            )
        mask = trainable
        if callable(mask):  # optax calls `init` with an empty placeholder to label its state
            mask = mask(params) if jax.tree.leaves(params) else True
        masks.check_prefix(mask, params)
        state = sharding.placed(inner.init(params), params)
        return apart(IsolateState(_arrays(mask), state), params)

    def update_fn(updates, state, params=None, **extra_args):
        trainable, updates = _tied(state.trainable, updates)
        mask = masks.resolve(trainable, updates)
        before, after = _drop_frozen, _keep_share
        if soft == "gradient":
            before, after = after, before
        leaves, structure = jax.tree.flatten(updates if params is None else params)
        leaves = tuple(jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)) for p in leaves)
        updates = jax.tree.map(before, mask, updates)
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        updates = jax.tree.map(after, mask, updates)
        inner_state = _hold(mask, inner_state, state.inner, copies(structure, leaves))
        return updates, IsolateState(state.trainable, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def set_trainable(opt_state: optax.OptState, trainable: PyTree) -> optax.OptState:
    """Replaces the mask of every `isolate` inside an optimizer's state.

    Args:
        opt_state: the state of an optimizer that holds at least one `isolate`, at any depth
            (`optax.chain`, `optax.MultiSteps`, `optax.inject_hyperparams`, `nnx.Optimizer`, ...).
        trainable: the new mask, as in `isolate`, but no function.

    Returns:
        The same state with the new mask. Everything else in it is untouched.

    Raises:
        ValueError: if there is no `isolate` in `opt_state`, or the mask is a function.

    >>> import jax.numpy as jnp
    >>> optimizer = isolate(optax.sgd(0.5), True)
    >>> state = set_trainable(optimizer.init(jnp.ones(2)), jnp.array([True, False]))
    >>> print(optimizer.update(jnp.ones(2), state, jnp.ones(2))[0])
    [-0.5  0. ]
    """
    if callable(trainable):
        raise ValueError(
            "set_trainable: expected a mask, not a function; call it on the parameters first."
        )
    found = []

    def replace(node):
        if isinstance(node, IsolateState):
            found.append(node)
            # An isolate may wrap another one.
            return IsolateState(_arrays(trainable), visit(node.inner))
        return node

    def visit(tree):
        return jax.tree.map(replace, tree, is_leaf=lambda n: isinstance(n, IsolateState))

    opt_state = visit(opt_state)
    if not found:
        raise ValueError(
            "set_trainable: the optimizer's state holds no isolate(); wrap the optimizer first, "
            "for example isolate(optax.adam(1e-3))."
        )
    return opt_state


def apart(tree: PyTree, *kept: PyTree) -> PyTree:
    """The tree, with a copy of each array that is in `kept` too or that it holds twice.

    Whoever donates the one then does not delete the other. What is traced stays as it is.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(kept)}

    def own(leaf):
        if isinstance(leaf, jax.Array) and is_concrete(leaf):
            leaf = leaf.copy() if id(leaf) in seen else leaf
            seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, tree)


def _arrays(mask):
    """A mask's leaves as arrays of its own, as the state that holds them may be donated."""
    return jax.tree.map(lambda m: jnp.array(m) if is_concrete(m) else m, mask)


def _tied(mask, updates):
    """The factors of masks and the smallest gradient, behind one optimization barrier.

    XLA then forms a mask from its factors inside the update, instead of moving the product, as
    large as the parameters, out of a training loop; and a large gradient still becomes an update in
    the kernel that forms it.
    """
    leaves, structure = jax.tree.flatten(mask, is_leaf=masks.is_mask)
    gradients, tree = jax.tree.flatten(updates)
    factors = [leaf for leaf in leaves if masks.is_mask(leaf)]
    if not factors or not gradients:
        return mask, updates
    least = min(range(len(gradients)), key=lambda i: jnp.size(gradients[i]))
    factors, gradients[least] = jax.lax.optimization_barrier((factors, gradients[least]))
    rest = iter(factors)
    leaves = [next(rest) if masks.is_mask(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, leaves), jax.tree.unflatten(tree, gradients)


def _drop_frozen(mask, gradient):
    """Zero where the mask is hard zero; `where`, because inf * 0 is nan."""
    open_ = mask if mask.dtype == bool else mask != 0
    return jnp.where(open_, gradient, jnp.zeros_like(gradient))


def _keep_share(mask, update):
    """The update where the mask is one, its share where it is soft, exact zero where it is zero."""
    if mask.dtype == bool:
        return jnp.where(mask, update, jnp.zeros_like(update))
    scaled = (mask * update).astype(update.dtype)
    return jnp.where(mask == 0, jnp.zeros_like(update), scaled)


def _find_copies(init, structure, leaves):
    """Which leaves of an optimizer's state are copies of a parameter: its number, by their path.

    Those that `init` makes from the values of one parameter alone, in its shape. Moments start at
    zero whatever the parameters are, so that they are none, and cost nothing. Nor are snapshots of
    the updates, which `init` takes of the parameters.
    """

    def is_record(node):
        return isinstance(node, optax.SnapshotState)

    def lasts(node):
        return jax.tree.map(lambda _: not is_record(node), node)

    program, state = jax.make_jaxpr(init, return_shape=True)(jax.tree.unflatten(structure, leaves))
    sources = _sources(program.jaxpr, [frozenset({i}) for i in range(len(leaves))])
    outs = jax.tree_util.tree_leaves_with_path(state)
    lasting = jax.tree.leaves(jax.tree.map(lasts, state, is_leaf=is_record))
    return {
        jax.tree_util.keystr(path): source
        for (path, out), found, is_lasting in zip(outs, sources, lasting, strict=True)
        for source in found
        if len(found) == 1 and is_lasting and out.shape == leaves[source].shape
    }


def _sources(jaxpr, sources):
    """For each result of a jaxpr, the union of the sources of the inputs that it is made from."""
    known = dict(zip(jaxpr.invars, sources))

    def read(atom):
        return frozenset() if isinstance(atom, core.Literal) else known.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        found = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == "gt" and len({*map(id, eqn.invars)}) == 1:
            found = []  # no number is greater than itself: of `sharding.placed`
        if eqn.primitive.name in ("jit", "pjit"):
            found = _sources(eqn.params["jaxpr"].jaxpr, found)
        else:
            found = [frozenset().union(*found)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, found))
    return [read(atom) for atom in jaxpr.outvars]


def _hold(mask, new, old, copies):
    """The new state of an optimizer, but its copies of frozen parameters as they were."""
    if not copies:
        return new
    keystr, mask = jax.tree_util.keystr, jax.tree.leaves(mask)
    kept = {keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}

    def hold(path, leaf):
        name = keystr(path)
        return _move(mask[copies[name]], leaf, kept[name]) if name in copies else leaf

    return jax.tree_util.tree_map_with_path(hold, new)


def _move(mask, new, old):
    """From old to new: all the way, its share of it, or none."""
    if mask.dtype == bool:
        return jnp.where(mask, new, old)
    part = (old + mask * (new - old)).astype(old.dtype)
    return jnp.where(mask == 0, old, jnp.where(mask == 1, new, part))
