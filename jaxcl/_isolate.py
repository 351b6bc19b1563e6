"""Element-wise, per-task freezing around any optax optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcl import masks
from jaxcl._checks import is_concrete

PyTree = Any


class IsolateState(NamedTuple):
    """State of `isolate`.

    Attributes:
        trainable: prefix tree of the parameters; what the running task may change.
        inner: the wrapped optimizer's state.
    """

    trainable: PyTree
    inner: optax.OptState


def isolate(
    inner: optax.GradientTransformation, trainable: PyTree = True
) -> optax.GradientTransformationExtraArgs:
    """Keeps every parameter entry that is not trainable exactly where it is, under any optimizer.

    A frozen entry's gradient is set to zero *before* `inner`, so that moments, norms and clipping
    never see it, and its update is set to zero *after* it, so that neither momentum, nor weight
    decay, nor anything else that `inner` adds can move it. A soft entry (between 0 and 1) scales
    the update, which adaptive optimizers cannot undo.

    The mask lives in the optimizer's state as arrays: `set_trainable` changes it between tasks
    without recompiling, it has a seed axis under `jax.vmap`, and it is saved with the state.

    Args:
        inner: any optax optimizer or transform.
        trainable: prefix tree of the parameters, whose leaves broadcast against the leaves below
            them. A leaf is bool (True may change), a float in [0, 1] (the share of its update that
            an entry gets), or `masks.Attended`. Values are not checked, as they may be traced.

    Returns:
        An optax transform. It passes extra arguments on to `inner`.

    Raises:
        ValueError: at `init` or `update`, if a mask leaf does not match the parameters; the error
            names the leaf.

    Source: the exact rule of design law 1, `p + where(mask, update, 0)`; HAT (2018) Eq. 2 and
        PackNet (2018) Sec. 3 state it for plain SGD gradients.
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
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        masks.check_prefix(trainable, params)
        return apart(IsolateState(_arrays(trainable), inner.init(params)), params)

    def update_fn(updates, state, params=None, **extra_args):
        # Tied to the gradient, so that XLA forms a mask from its factors inside the update instead
        # of moving the product, as large as the parameters, out of a training loop.
        trainable, updates = jax.lax.optimization_barrier((state.trainable, updates))
        mask = masks.resolve(trainable, updates)
        updates = jax.tree.map(_drop_frozen, mask, updates)
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        updates = jax.tree.map(_keep_share, mask, updates)
        return updates, IsolateState(state.trainable, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def set_trainable(opt_state: optax.OptState, trainable: PyTree) -> optax.OptState:
    """Replaces the mask of every `isolate` inside an optimizer's state.

    Args:
        opt_state: the state of an optimizer that holds at least one `isolate`, at any depth
            (`optax.chain`, `optax.MultiSteps`, `optax.inject_hyperparams`, `nnx.Optimizer`, ...).
        trainable: the new mask, as in `isolate`.

    Returns:
        The same state with the new mask. Everything else in it is untouched.

    Raises:
        ValueError: if there is no `isolate` in `opt_state`.
    """
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


def _drop_frozen(mask, gradient):
    """Zero where the mask is hard zero; `where`, because inf * 0 is nan."""
    return jnp.where(mask != 0, gradient, jnp.zeros_like(gradient))


def _keep_share(mask, update):
    """The update where the mask is one, its share where it is soft, exact zero where it is zero."""
    if mask.dtype == bool:
        return jnp.where(mask, update, jnp.zeros_like(update))
    scaled = (mask * update).astype(update.dtype)
    return jnp.where(mask == 0, jnp.zeros_like(update), scaled)
