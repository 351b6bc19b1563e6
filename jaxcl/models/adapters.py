"""A network as pure functions, made from an nnx module, a linen module or a plain function."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, nnx
from flax import linen as nn

from jaxcl.core.model import Model
from jaxcl.core.trees import PyTree

# Keyword arguments by which modules are commonly told the mode, with their value in training.
_MODE_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def functional(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Any, Callable, Callable]:
    """The pure functions behind an nnx module.

    Args:
        module: a module, or `build(rngs) -> module`, which is only traced here.

    Returns:
        The module with abstract arrays; `init(key) -> (params, statistics)`; and `run(call, params,
        statistics, train, key, freeze_norm) -> (call(module), statistics)`.
    """
    build = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0))) if callable(build) else None
    if not isinstance(abstract, nnx.Module):
        raise ValueError(f"expected an nnx.Module or a function `build(rngs)`, not {module!r}.")

    abstract.train()
    graphs = {"train": nnx.graphdef(abstract)}
    abstract.set_attributes(nnx.BatchNorm, use_running_average=True, raise_if_not_found=False)
    graphs["freeze_norm"] = nnx.graphdef(abstract)
    abstract.eval()
    graphs["eval"], _, streams, _ = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    streams = nnx.to_flat_state(streams)

    def split(net):
        _, params, _, statistics = nnx.split(net, nnx.Param, nnx.RngState, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    def fresh_streams(key):
        """Every random stream of the module, at its start: (path, key or count)."""
        for i, (path, variable) in enumerate(streams):
            shape = variable.get_value().shape
            if isinstance(variable, nnx.RngCount):
                yield path, jnp.zeros(shape, jnp.uint32)
            else:
                stream = jax.random.key(0) if key is None else jax.random.fold_in(key, i)
                yield path, jax.random.split(stream, shape) if shape else stream

    def run(call, params, statistics, train, key, freeze_norm=False):
        if train and key is None and streams:
            path = "/".join(map(str, streams[0][0][:-1]))
            raise ValueError(f"the model draws random numbers from {path!r}: training needs a key.")
        mode = ("freeze_norm" if freeze_norm else "train") if train else "eval"
        net = nnx.merge(graphs[mode], params, nnx.from_flat_state(fresh_streams(key)), statistics)
        output = call(net)
        return output, split(net)[1] if train else statistics

    return abstract, lambda key: split(build(nnx.Rngs(key))), run


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """Makes a Model of a Flax nnx module.

    The mode is set as by `module.train()` and `module.eval()`, on a copy. Every `nnx.Param` is a
    parameter, all other variables are statistics. The random streams start anew in each call from
    its key, or in evaluation without one from a fixed key.

    Args:
        module: a module with `module(x) -> logits`, whose own weights `init` then returns whatever
            the key; or `build(rngs) -> module`, from which `init` draws fresh ones.
        train_kwargs: keyword arguments of the module's call in training. By default the flags that
            its signature has among train, training, is_training, deterministic and
            use_running_average.
        eval_kwargs: the same in evaluation.

    Returns:
        A Model without `column` and `wiring`.

    Raises:
        ValueError: if `module` is neither; and from `apply` with `train=True` and no key, if the
            module has random streams (those of its dropout layers, for example).

    >>> import jax
    >>> model = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params, statistics = model.init(jax.random.key(0))
    >>> model.apply(params, statistics, jnp.ones((5, 3)))[0].shape
    (5, 2)
    """
    abstract, init, run = functional(module)
    kwargs = _mode_kwargs(type(abstract), train_kwargs, eval_kwargs)

    def own():
        return nnx.to_pure_dict(nnx.state(abstract, nnx.Param))

    def apply(params, statistics, x, *, train=False, key=None, freeze_norm=False):
        _check_gates("from_nnx", params, own)
        flags = kwargs[train and not freeze_norm]  # a flag of the call would reach the norms too
        return run(lambda net: net(x, **flags), params, statistics, train, key, freeze_norm)

    return Model(init, apply)


def from_linen(
    module: nn.Module,
    sample_x: Any,
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """Makes a Model of a Flax linen module.

    The "params" collection is the parameters; the other collections that `module.init` makes
    ("batch_stats", for example) are the statistics. The key of a call serves every random stream.

    Args:
        module: the module, with `module(x) -> logits`.
        sample_x: an array, or a `jax.ShapeDtypeStruct`, shaped like a batch `[B, ...]` of inputs.
        train_kwargs: keyword arguments of the module's call in training. By default the flags that
            its signature has among train, training, is_training, deterministic and
            use_running_average.
        eval_kwargs: the same in evaluation.

    Returns:
        A Model without `column` and `wiring`.

    Raises:
        ValueError: if `module` is no linen module; and from `apply`, if the module draws random
            numbers and there is no key.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"from_linen: expected a flax.linen.Module, not {module!r}.")
    kwargs = _mode_kwargs(type(module), train_kwargs, eval_kwargs)

    @cache
    def own():
        call = partial(module.init, **kwargs[False])
        return jax.eval_shape(call, jax.random.key(0), sample_x).get("params", {})

    def init(key):
        statistics = dict(module.init(key, jnp.zeros_like(sample_x), **kwargs[False]))
        return statistics.pop("params", {}), statistics

    def apply(params, statistics, x, *, train=False, key=None, freeze_norm=False):
        _check_gates("from_linen", params, own)
        variables = {"params": params, **statistics}
        # A stream that is not named falls back on "params", which only `init` uses itself.
        rngs = {} if key is None else {"params": key}
        mutable = list(statistics) if train else False
        norms = nn.intercept_methods(_use_running_average) if freeze_norm else nullcontext()
        try:
            with norms:
                output: Any = module.apply(
                    variables, x, rngs=rngs, mutable=mutable, **kwargs[train]
                )
        except errors.InvalidRngError as error:
            raise ValueError(
                f"from_linen: {type(module).__name__} draws random numbers when train={train}: "
                "it needs a key."
            ) from error
        return output if train else (output, statistics)

    return Model(init, apply)


def from_function(apply: Callable[[PyTree, jax.Array], jax.Array], params: Any) -> Model:
    """Makes a Model of a plain function, without dropout or statistics.

    A function with either needs no adapter: give `Model` its own `init` and `apply`.

    Args:
        apply: `apply(params, x) -> logits`.
        params: a pytree of parameters, which `init` then returns whatever the key; or
            `init(key) -> params`.

    Returns:
        A Model without `column` and `wiring`.

    Raises:
        ValueError: if `apply` cannot be called.
    """
    if not callable(apply):
        raise ValueError(f"from_function: expected a function `apply(params, x)`, not {apply!r}.")
    init = params if callable(params) else lambda key: params
    return Model(
        init=lambda key: (init(key), {}),
        apply=lambda params, statistics, x, **mode: (apply(params, x), statistics),
    )


def _check_gates(adapter: str, params: PyTree, own: Callable) -> None:
    """Raises ValueError for gates that the module would not multiply by."""
    if "gates" in params and "gates" not in own():
        raise ValueError(
            f"{adapter}: the parameters come with gates, which the module does not read; take "
            f"wiring._replace(native=False), or derive its wiring with jaxcl.trace_wiring."
        )


def _use_running_average(call, args, kwargs, context):
    """Has linen's BatchNorm use its running averages, whatever it was told."""
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
        object.__setattr__(context.module, "use_running_average", True)
        args = args[:1]  # the input; the flag may follow it, or be a keyword
        kwargs = {name: v for name, v in kwargs.items() if name != "use_running_average"}
    return call(*args, **kwargs)


def _mode_kwargs(kind: type, train_kwargs: Any, eval_kwargs: Any) -> dict[bool, Mapping[str, Any]]:
    """The keyword arguments of a module's call, by mode."""
    names = inspect.signature(kind.__call__).parameters
    flags = {name: value for name, value in _MODE_FLAGS.items() if name in names}
    opposite = {name: not value for name, value in flags.items()}
    return {
        True: flags if train_kwargs is None else train_kwargs,
        False: opposite if eval_kwargs is None else eval_kwargs,
    }
