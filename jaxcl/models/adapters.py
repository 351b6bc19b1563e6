"""A network as pure functions, made from an nnx module, a linen module or a plain function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, nnx
from flax import linen as nn

from jaxcl.core import masks
from jaxcl.core.checks import shorten
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
# What a layer that keeps statistics is told, to use them and leave them alone.
_FROZEN_FLAGS = {"use_running_average": True, "update_stats": False}
_EVALUATION_FLAGS = {name: not value for name, value in _MODE_FLAGS.items()} | _FROZEN_FLAGS

# The weights of the rows of the batch that is running, which its BatchNorms leave out where 0.
_WEIGHT: ContextVar[jax.Array | None] = ContextVar("weight", default=None)


def functional(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Any, Callable, Callable]:
    """The pure functions behind an nnx module.

    Args:
        module: a module, or `build(rngs) -> module`, which is only traced here.

    Returns:
        The module with abstract arrays; `init(key) -> (params, statistics)`; and `run(call, params,
        statistics, train, key, freeze_norm, weight) -> (call(module), statistics)`.
    """
    graphs = {}

    def trace():
        """The module in evaluation mode, having noted its graph in each mode: in the abstract one
        that comes of it, arrays that are no variables are no longer arrays."""
        net = _fresh(module, nnx.Rngs(0))
        for mode, change in _MODES.items():
            graphs[mode] = nnx.graphdef(change(nnx.clone(net)))
        return _MODES["eval"](net)

    abstract = nnx.eval_shape(trace) if callable(module) or isinstance(module, nnx.Module) else None
    if not callable(abstract):
        raise ValueError(
            f"expected an nnx.Module that can be called, or a function `build(rngs)` that makes "
            f"one, not {module!r}."
        )
    _, _, streams, _ = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    streams = nnx.to_flat_state(streams)

    def split(net):
        _, params, _, _sown, statistics = nnx.split(
            net, nnx.Param, nnx.RngState, nnx.Intermediate, ...
        )
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

    def run(call, params, statistics, train, key, freeze_norm=False, weight=None):
        if train and key is None and streams:
            path = "/".join(map(str, streams[0][0][:-1]))
            raise ValueError(f"the model draws random numbers from {path!r}: training needs a key.")
        mode = ("freeze_norm" if freeze_norm else "train") if train else "eval"
        net = nnx.merge(graphs[mode], params, nnx.from_flat_state(fresh_streams(key)), statistics)
        with _weighing(weight if mode == "train" else None):
            output = call(net)
        after = split(net)[1]
        _check_sown("from_nnx", statistics, after, "as an nnx.Intermediate")
        return output, after if train and not freeze_norm else statistics

    return abstract, lambda key: split(_fresh(module, nnx.Rngs(key))), run


def _fresh(module: Any, rngs: nnx.Rngs) -> nnx.Module:
    """A copy of the module, or a new one; without what an earlier call has sown."""
    net = nnx.clone(module) if isinstance(module, nnx.Module) else module(rngs)
    if not isinstance(net, nnx.Module):
        raise ValueError(f"expected an nnx.Module or a function `build(rngs)`, not {module!r}.")
    nnx.pop(net, nnx.Intermediate)
    for _, layer in nnx.iter_modules(net):
        for name, value in list(vars(layer).items()):
            if isinstance(value, jax.Array):  # a setting, for Flax, where it is traced
                setattr(layer, name, nnx.data(value))
    return net


def _freeze(net: nnx.Module) -> nnx.Module:
    """Training mode, but layers that keep statistics use them, whatever they are told."""
    net.train()
    for _, layer in list(nnx.iter_modules(net)):
        own = [value for value in vars(layer).values() if isinstance(value, nnx.BatchStat)]
        if own or isinstance(layer, (nnx.BatchNorm, nnx.SpectralNorm)):
            if hasattr(layer, "use_running_average"):
                layer.set_attributes(use_running_average=True)
            layer.__class__ = _frozen(type(layer), layer is net)
    return net


def _train(net: nnx.Module) -> nnx.Module:
    """Training mode, in which BatchNorms leave out the rows that only fill up a batch."""
    net.train()
    for _, layer in list(nnx.iter_modules(net)):
        if isinstance(layer, nnx.BatchNorm):
            layer.__class__ = _masked(type(layer))
    return net


_MODES = {
    "train": _train,
    "freeze_norm": _freeze,
    "eval": lambda net: (net.eval(), net)[1],
}


@cache
def _frozen(kind: type, whole: bool) -> type:
    """The kind of an nnx layer, but told to use its statistics; `whole`: it is the network."""
    bases = [base for base in (nnx.BatchNorm, nnx.SpectralNorm) if issubclass(kind, base)]
    if bases and kind is not bases[0]:  # what stands last is called last, whatever `kind` passes
        return _told(_FROZEN_FLAGS if whole else _EVALUATION_FLAGS, kind, _frozen(bases[0], whole))
    return _told(_FROZEN_FLAGS if whole or bases else _EVALUATION_FLAGS, kind)


@cache
def _masked(kind: type) -> type:
    """A kind of BatchNorm that is given a mask of the rows that count."""

    def call(self, x, *args, mask=None, **kwargs):
        above: Any = super(masked, self)
        return above.__call__(x, *args, mask=_mask(x, self.axis, mask), **kwargs)

    whole = kind is nnx.BatchNorm
    # What stands last is called last, whatever `kind` passes.
    bases = (kind,) if whole else (kind, _masked(nnx.BatchNorm))
    fields = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    masked = type(kind)(kind.__name__, bases, fields | ({"__call__": call} if whole else {}))
    return masked


def _mask(x: jax.Array, axis: Any, mask: jax.Array | None) -> jax.Array | None:
    """The rows of a BatchNorm's input that count, where its first axis still is the batch's.

    All of them if none does, as of a memory that is empty: their mean would not be finite.
    """
    weight = _WEIGHT.get()
    features = [i % x.ndim for i in (axis if isinstance(axis, Sequence) else (axis,))]
    if weight is None or 0 in features or x.shape[0] != weight.shape[0]:
        return mask
    rows = ((weight > 0) | ~jnp.any(weight > 0)).reshape(-1, *[1] * (x.ndim - 1))
    return rows if mask is None else rows & mask


@contextmanager
def _weighing(weight: jax.Array | None):
    """Lets the BatchNorms that run within know the weights of the rows."""
    token = _WEIGHT.set(weight)
    try:
        yield
    finally:
        _WEIGHT.reset(token)


def _told(flags: Mapping[str, bool], kind: type, *others: type) -> type:
    """A kind of layer that is told these flags at its call."""

    def call(self, *args, **kwargs):
        above: Any = super(told, self)
        return _call_with(flags, above.__call__, args, kwargs)

    fields = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    told = type(kind)(kind.__name__, (kind, *others), fields)
    return told


def _call_with(flags: Mapping[str, Any], call: Callable, args: Any, kwargs: Any) -> Any:
    """Calls a function, with other values for those of its arguments that are among the flags."""
    signature = inspect.signature(call)
    bound = signature.bind(*args, **kwargs)
    names = signature.parameters
    bound.arguments.update({name: value for name, value in flags.items() if name in names})
    return call(*bound.args, **bound.kwargs)


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """Makes a Model of a Flax nnx module.

    The mode is set as by `module.train()` and `module.eval()`, on a copy. Every `nnx.Param` is a
    parameter; all other variables, and arrays that are none, are statistics. The random streams
    start anew in each call from its key, or in evaluation without one from a fixed key; a module
    whose call takes `rngs` is given an `nnx.Rngs` of the same kind. What the module sows as an
    `nnx.Intermediate` is dropped: no loss is added to that of the logits.

    With `freeze_norm=True`, every layer that itself keeps statistics (BatchNorm, SpectralNorm, and
    your own with an `nnx.BatchStat`) runs as in evaluation, all others as in training, whatever
    they are told. In training, `weight` [B] is 0 for rows that only fill up a batch: every
    `nnx.BatchNorm` whose input still has B rows leaves them out; a layer of your own counts them.

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
        ValueError: if `module` is neither, or its call needs more than x and these flags; from
            `apply` with `train=True` and no key, if the module has random streams (those of its
            dropout layers, for example) or takes `rngs`; and from `apply`, if it sows anything but
            an `nnx.Intermediate`.

    >>> import jax
    >>> model = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params, statistics = model.init(jax.random.key(0))
    >>> model.apply(params, statistics, jnp.ones((5, 3)))[0].shape
    (5, 2)
    """
    abstract, init, run = functional(module)
    kind = type(abstract)
    kwargs = _mode_kwargs(kind, train_kwargs, eval_kwargs)
    takes_rngs = "rngs" in inspect.signature(kind.__call__).parameters
    rngs = {"rngs": None} if takes_rngs else {}
    _check_call("from_nnx", kind, {mode: rngs | dict(flags) for mode, flags in kwargs.items()})

    def own():
        return nnx.to_pure_dict(nnx.state(abstract, nnx.Param))

    def apply(params, statistics, x, *, train=False, key=None, freeze_norm=False, weight=None):
        _check_gates("from_nnx", params, own)
        flags = dict(kwargs[train])
        if takes_rngs and "rngs" not in flags:
            if train and key is None:
                raise ValueError(f"from_nnx: {kind.__name__} takes rngs: training needs a key.")
            flags["rngs"] = nnx.Rngs(jax.random.key(0) if key is None else key)
        call = lambda net: net(x, **flags)  # noqa: E731
        return run(call, params, statistics, train, key, freeze_norm, weight)

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
    ("batch_stats", for example) are the statistics, both without the boxes of partitioned
    parameters. The key of a call serves every random stream. What the module sows into
    "intermediates" or as a perturbation is dropped: no loss is added to that of the logits.

    With `freeze_norm=True`, every layer that itself keeps "batch_stats" (BatchNorm, SpectralNorm,
    and your own) runs as in evaluation, all others as in training, whatever they are told. In
    training, `weight` [B] is 0 for rows that only fill up a batch: every `nn.BatchNorm` whose input
    still has B rows leaves them out; a layer of your own counts them.

    Args:
        module: the module, with `module(x) -> logits`.
        sample_x: an array, or a `jax.ShapeDtypeStruct`, shaped like a batch `[B, ...]` of inputs,
            and of their type: integers for tokens.
        train_kwargs: keyword arguments of the module's call in training. By default the flags that
            its signature has among train, training, is_training, deterministic and
            use_running_average.
        eval_kwargs: the same in evaluation.

    Returns:
        A Model without `column` and `wiring`.

    Raises:
        ValueError: if `module` is no linen module, or its call needs more than x and these flags;
            and from `apply`, if the module draws random numbers and there is no key, or sows into
            a collection other than "intermediates".

    >>> import jax
    >>> from flax import linen
    >>> model = from_linen(linen.Dense(2), jnp.ones((1, 3)))
    >>> params, statistics = jax.eval_shape(model.init, jax.random.key(0))
    >>> params["kernel"].shape, statistics
    ((3, 2), {})
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"from_linen: expected a flax.linen.Module, not {module!r}.")
    kwargs = _mode_kwargs(type(module), train_kwargs, eval_kwargs)
    _check_call("from_linen", type(module), kwargs)

    @cache
    def own():
        call = partial(module.init, **kwargs[False])
        return jax.eval_shape(call, jax.random.key(0), sample_x).get("params", {})

    def init(key):
        statistics = module.init(key, jnp.zeros_like(sample_x), **kwargs[False])
        statistics = dict(nn.unbox(statistics))
        statistics.pop("perturbations", None)
        return statistics.pop("params", {}), statistics

    def apply(params, statistics, x, *, train=False, key=None, freeze_norm=False, weight=None):
        _check_gates("from_linen", params, own)
        variables = {"params": params, **statistics}
        # A stream that is not named falls back on "params", which only `init` uses itself.
        rngs = {} if key is None else {"params": key}
        mutable = list(statistics) if train else False
        norms = nullcontext()
        if freeze_norm:
            norms = nn.intercept_methods(_use_statistics)
        elif train and weight is not None:
            norms = nn.intercept_methods(_leave_out_rows)
        try:
            with norms, _weighing(weight):
                output: Any = module.apply(
                    variables, x, rngs=rngs, mutable=mutable, **kwargs[train]
                )
        except errors.InvalidRngError as error:
            raise ValueError(
                f"from_linen: {type(module).__name__} draws random numbers when train={train}: "
                "it needs a key."
            ) from error
        if not train:
            return output, statistics
        logits, after = output
        _check_sown("from_linen", statistics, after, "into 'intermediates'")
        return logits, statistics if freeze_norm else after

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

    >>> import jax
    >>> model = from_function(lambda params, x: x @ params, jnp.ones((3, 2)))
    >>> params, statistics = model.init(jax.random.key(0))
    >>> model.apply(params, statistics, jnp.ones((5, 3)))[0].shape
    (5, 2)
    """
    if not callable(apply):
        raise ValueError(f"from_function: expected a function `apply(params, x)`, not {apply!r}.")
    init = params if callable(params) else lambda key: jax.tree.map(jnp.asarray, params)
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


def _use_statistics(call, args, kwargs, context):
    """Has linen's layers use the statistics that they keep, whatever they were told."""
    layer = context.module
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    own = layer.variables.get("batch_stats", {}).values()
    if isinstance(layer, (nn.BatchNorm, nn.SpectralNorm)):
        flags = _FROZEN_FLAGS
    elif not all(isinstance(value, Mapping) for value in own):
        flags = _EVALUATION_FLAGS if layer.path else _FROZEN_FLAGS
    else:
        return call(*args, **kwargs)
    if hasattr(layer, "use_running_average"):  # which may be said once only
        object.__setattr__(layer, "use_running_average", True)
        flags = flags | {"use_running_average": None}
    return _call_with(flags, call, args, kwargs)


def _leave_out_rows(call, args, kwargs, context):
    """Has linen's BatchNorms leave out the rows that only fill up a batch."""
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
        x = args[0] if args else kwargs["x"]
        kwargs = kwargs | {"mask": _mask(x, context.module.axis, kwargs.get("mask"))}
    return call(*args, **kwargs)


def _check_sown(adapter: str, before: PyTree, after: PyTree, remedy: str) -> None:
    """Raises ValueError for values that a call has added to the statistics."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        new = sorted(masks.leaves_by_path(after).keys() - masks.leaves_by_path(before).keys())
        raise ValueError(
            f"{adapter}: the call adds {shorten(new)} to what the module keeps. Nothing that is "
            f"sown is trained on: sow it {remedy}, which is dropped."
        )


def _check_call(adapter: str, kind: type, kwargs: Mapping[bool, Mapping[str, Any]]) -> None:
    """Raises ValueError for a call that needs more than an input and the mode's flags."""
    for given in kwargs.values():
        try:
            inspect.signature(kind.__call__).bind(None, None, **given)
        except TypeError as error:
            raise ValueError(
                f"{adapter}: {kind.__name__} cannot be called with x and {dict(given)}: {error}; "
                f"give the rest in train_kwargs and eval_kwargs."
            ) from None


def _mode_kwargs(kind: type, train_kwargs: Any, eval_kwargs: Any) -> dict[bool, Mapping[str, Any]]:
    """The keyword arguments of a module's call, by mode."""
    names = inspect.signature(kind.__call__).parameters
    flags = {name: value for name, value in _MODE_FLAGS.items() if name in names}
    opposite = {name: not value for name, value in flags.items()}
    return {
        True: flags if train_kwargs is None else train_kwargs,
        False: opposite if eval_kwargs is None else eval_kwargs,
    }
