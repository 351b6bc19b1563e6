"""What each primitive operation does to labels: the rules of `trace_wiring`."""

import numpy as np

from jaxcl.wiring.labels import CONST, RAW, ZERO, Param, filled, is_zero
from jaxcl.wiring.program import CONTROL, scan_counts

# One rule for each kind of primitive: rule(trace, op, *operands) -> values of its results.


def unknown(trace, op, *operands):
    """Anything may happen to what has no gate; what has one must not come here."""
    params = [value for value in operands if isinstance(value, Param)]
    arrays = [value for value in operands if not isinstance(value, Param)]
    top = max((array.max(initial=CONST) for array in arrays), default=CONST)
    if top >= 0:
        units = np.concatenate([trace.root[array].ravel() for array in arrays])
        trace.fail(f"may mix the units of {trace.names(units)}", by_hand=True)
    leaves = tuple(leaf._replace(axes=None) for param in params for leaf in param.leaves)
    for leaf in leaves:
        if op.name in CONTROL and len(leaf.shape) > 1 and trace.gated(leaf.path):
            trace.nearest = leaf.path
            trace.fail("hides a layer that was to get a gate", by_hand=True)
    if leaves and top == CONST:
        return [Param(shape, leaves, False) for shape in op.shapes]
    for leaf in leaves:
        trace.use(leaf.path)
    return [filled(shape, top) for shape in op.shapes]


def _elementwise(trace, op, *operands, scaling=False):
    params = [value for value in operands if isinstance(value, Param)]
    arrays = [value for value in operands if not isinstance(value, Param)]
    labels = trace.join(arrays, scaling or op.name in ("mul", "div"))
    factors = operands if op.name == "mul" else operands[:1] if op.name == "div" else ()
    for factor in factors:
        if isinstance(factor, np.ndarray) and factor.min(initial=RAW) == ZERO:
            labels = np.where(factor == ZERO, ZERO, labels)
            params = [] if is_zero(factor) else params
    if op.name not in _KEEP_ZERO:
        labels = _no_zeros(labels)
    if params and labels.max(initial=CONST) == CONST:
        leaves = tuple(
            leaf._replace(axes=(None,) * labels.ndim) if leaf.axes == () else leaf
            for param in params
            for leaf in param.leaves
        )
        linear = op.name in _LINEAR or (op.name == "div" and operands[0] is params[0])
        linear = linear and len(params) == 1 and params[0].linear
        return [Param(op.shapes[0], leaves, linear)]
    for param in params:
        trace.attach(param, labels)
    return [labels]


def _select(trace, op, which, *cases):
    (chosen,) = _elementwise(trace, op, *cases)
    (result,) = _elementwise(trace, op, which, chosen, scaling=True)
    if isinstance(chosen, np.ndarray) and isinstance(result, np.ndarray):
        result = np.where(chosen == ZERO, ZERO, result)
    return [result]


def _move(trace, op, value, *others):
    """Operations that only move elements."""
    if isinstance(value, Param) and op.name in _AXES:
        leaves = [
            leaf._replace(axes=leaf.axes and _AXES[op.name](leaf.axes, value.shape, op))
            for leaf in value.leaves
        ]
        return [Param(op.shapes[0], tuple(leaves), value.linear)]
    if any(isinstance(operand, Param) for operand in (value, *others)):
        return unknown(trace, op, value, *others)
    if op.name == "pad" and min(min(low, high) for low, high, _ in op.params["padding_config"]) < 0:
        return unknown(trace, op, value, *others)
    moved = _MOVES[op.name](op, value, *others)
    return moved if op.name in ("split", "unstack") else [moved]


def _broadcast(op, value):
    shape = [1] * len(op.shapes[0])
    for axis, size in zip(op.params["broadcast_dimensions"], value.shape):
        shape[axis] = size
    return np.broadcast_to(value.reshape(shape), op.shapes[0])


def _pad(op, value, filler):
    padded = np.full(op.shapes[0], filler)
    where = []
    for size, (low, _, inside) in zip(value.shape, op.params["padding_config"]):
        where.append(slice(low, low + (size - 1) * (inside + 1) + 1, inside + 1))
    padded[tuple(where)] = value
    return padded


def _slice(op, value):
    p = op.params
    steps = p["strides"] or [None] * value.ndim
    return value[tuple(map(slice, p["start_indices"], p["limit_indices"], steps))]


def _reshape_axes(axes, shape, op):
    kept = [axis for axis, size in zip(axes, shape) if size != 1]
    if [n for n in shape if n != 1] != [n for n in op.shapes[0] if n != 1]:
        return None
    return tuple(None if n == 1 else kept.pop(0) for n in op.shapes[0])


def _broadcast_axes(axes, shape, op):
    places = dict(zip(op.params["broadcast_dimensions"], axes))
    return tuple(places.get(i) for i in range(len(op.shapes[0])))


def _reduce(trace, op, value):
    """Operations along axes on which labels must not change: space, tokens, the batch."""
    if isinstance(value, Param):
        return unknown(trace, op, value)
    if "axes" in op.params:
        axes = op.params["axes"]
        return [_no_zeros(trace.collapse(value, axes).squeeze(axes))]
    if "axis" in op.params:
        axes = [op.params["axis"]]
    else:
        sizes = zip(value.shape, op.shapes[0], op.params["window_dimensions"])
        axes = [i for i, (old, new, window) in enumerate(sizes) if old != new or window > 1]
    return [np.broadcast_to(_no_zeros(trace.collapse(value, axes)), op.shapes[0])]


def _scan(trace, op, *operands):
    """A loop over the rows of arrays. What it carries on has the labels of all its steps."""
    constants, carried = scan_counts(op.params)
    start, end = constants, constants + carried
    rows = [_row(trace, value) for value in operands[end:]]
    body = lambda carry: trace.run(op.params["jaxpr"], [*operands[:start], *carry, *rows])  # noqa: E731
    carry, results = _repeat(trace, op, body, operands[start:end])
    return carry + [_rows(value, shape) for value, shape in zip(results, op.shapes[carried:])]


def _row(trace, value):
    """Any row of an array: its labels must be those of all others."""
    if not isinstance(value, Param):
        return trace.collapse(value, [0])[0]
    leaves = (leaf._replace(axes=leaf.axes and leaf.axes[1:]) for leaf in value.leaves)
    return Param(value.shape[1:], tuple(leaves), value.linear)


def _rows(value, shape):
    """Many rows like this one, which may differ where they are parameters."""
    if not isinstance(value, Param):
        return np.broadcast_to(value, shape)
    return Param(shape, tuple(leaf._replace(axes=None) for leaf in value.leaves), False)


def _while(trace, op, *operands):
    """A loop that ends when its condition says so."""
    tests, constants = op.params["cond_nconsts"], op.params["body_nconsts"]
    fixed = operands[tests : tests + constants]
    body = lambda carry: trace.run(op.params["body_jaxpr"], [*fixed, *carry])  # noqa: E731
    carry, _ = _repeat(trace, op, body, operands[tests + constants :])
    (ends,) = trace.run(op.params["cond_jaxpr"], [*operands[:tests], *carry])
    return _decided(trace, op, ends, carry)


def _cond(trace, op, which, *operands):
    """One of several functions."""
    (values, *others) = (trace.run(branch, operands) for branch in op.params["branches"])
    for other_values in others:
        values = [_either(trace, op, *pair) for pair in zip(values, other_values)]
    return _decided(trace, op, which, values)


def _repeat(trace, op, body, carry):
    """Runs a loop's body until what it carries on has the same labels before and after.

    Only the last run counts, whose labels stand for those of every step.
    """
    carry, known = list(carry), {path: list(uses) for path, uses in trace.uses.items()}
    while True:
        results = body(carry)
        after = [_either(trace, op, *pair) for pair in zip(carry, results)]
        if all(_same(trace, *pair) for pair in zip(carry, after)):
            return after, results[len(carry) :]
        carry = after
        trace.uses = {path: list(uses) for path, uses in known.items()}


def _same(trace, a, b):
    if isinstance(a, Param) or isinstance(b, Param):
        return isinstance(a, Param) and isinstance(b, Param) and a == b
    return np.array_equal(trace.root[a], trace.root[b])


def _either(trace, op, a, b):
    """A value that is now the one, now the other."""
    trace.op = op
    if not isinstance(a, Param) and not isinstance(b, Param):
        return trace.join([a, b], scaling=False, shape=a.shape)
    if a is b or (isinstance(a, Param) and isinstance(b, Param) and a == b):
        return a
    params = [value for value in (a, b) if isinstance(value, Param)]
    leaves = {leaf._replace(axes=None) for param in params for leaf in param.leaves}
    if len(params) == 2:
        return Param(a.shape, tuple(sorted(leaves)), False)
    (labels,) = (value for value in (a, b) if not isinstance(value, Param))
    if labels.max(initial=CONST) == CONST:
        return Param(a.shape, tuple(sorted(leaves)), False)
    trace.attach(params[0], labels)
    return np.maximum(labels, RAW)


def _decided(trace, op, by, values):
    """Values that a decision has led to; it shows in them all."""
    trace.op = op
    if isinstance(by, Param):
        trace.attach(by, filled((), RAW))
    elif by.max(initial=CONST) >= 0:
        trace.fail(f"decides by the units of {trace.names(by)}")
    elif by.max(initial=CONST) == CONST:
        return values
    return [
        value if isinstance(value, Param) else np.where(value == CONST, RAW, value)
        for value in values
    ]


def _take(trace, op, value, *indices):
    """Slices at positions that are known only when the model runs."""
    if any(isinstance(v, Param) or (v is not value and v.max() >= 0) for v in (value, *indices)):
        return unknown(trace, op, value, *indices)
    sizes = op.params["slice_sizes"]
    partial = [i for i, (old, new) in enumerate(zip(value.shape, sizes)) if old != new]
    labels = trace.collapse(value, partial)
    if op.name == "gather":
        dims, shape = op.params["dimension_numbers"], [1] * len(op.shapes[0])
        dropped = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
        kept = [size for i, size in enumerate(labels.shape) if i not in dropped]
        for axis, size in zip(dims.offset_dims, kept):
            shape[axis] = size
        labels = labels.reshape(shape)
    return [np.broadcast_to(labels, op.shapes[0])]


def _dot(trace, op, lhs, rhs):
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    if is_zero(lhs) or is_zero(rhs):
        return [filled(op.shapes[0], ZERO)]
    if isinstance(lhs, np.ndarray) and isinstance(rhs, np.ndarray):
        left = _arranged(trace, lhs, lc, lb)
        right = _arranged(trace, rhs, rc, rb)
        batch, free = len(lb), left.ndim - len(lb)
        left = left.reshape(left.shape + (1,) * (right.ndim - batch))
        right = right.reshape(right.shape[:batch] + (1,) * free + right.shape[batch:])
        return [trace.join([left, right], scaling=True)]
    kernel_first = isinstance(lhs, Param)
    if kernel_first:
        lhs, lc, lb, rhs, rc, rb = rhs, rc, rb, lhs, lc, lb
    if isinstance(lhs, Param) or lhs.max() <= CONST:
        return unknown(trace, op, lhs, rhs)
    free = [i for i in range(len(rhs.shape)) if i not in (*rc, *rb)]
    out = trace.layer(lhs, rhs, lc, rc, (*rb, *free))
    ones = [1] * (lhs.ndim - len(lc) - len(lb))
    batch, kept = [rhs.shape[i] for i in rb], [rhs.shape[i] for i in free]
    shape = [*batch, *kept, *ones] if kernel_first else [*batch, *ones, *kept]
    return [np.broadcast_to(out.reshape(shape), op.shapes[0])]


def _no_zeros(labels):
    return np.maximum(labels, CONST) if labels.min(initial=RAW) == ZERO else labels


def _arranged(trace, labels, summed, batch):
    """An operand of a product of two activations: its batch axes, then those that remain."""
    free = [i for i in range(labels.ndim) if i not in (*summed, *batch)]
    labels = trace.collapse(labels, summed).transpose(*batch, *free, *summed)
    return labels.reshape(labels.shape[: labels.ndim - len(summed)])


def _conv(trace, op, lhs, rhs):
    if is_zero(lhs) or is_zero(rhs):
        return [filled(op.shapes[0], ZERO)]
    known = isinstance(lhs, np.ndarray) and isinstance(rhs, Param) and lhs.max() > CONST
    if not known or op.params["batch_group_count"] > 1:
        return unknown(trace, op, lhs, rhs)
    x, kernel, y = op.params["dimension_numbers"]
    groups = op.params["feature_group_count"]
    out = trace.layer(lhs, rhs, x[1:2], kernel[1:2], kernel[:1], groups)
    shape = [1] * lhs.ndim
    shape[y[1]] = len(out)
    return [np.broadcast_to(out.reshape(shape), op.shapes[0])]


_MOVES = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda op, *values: np.concatenate(values, op.params["dimension"]),
    "pad": _pad,
    "reshape": lambda op, value: value.reshape(op.shapes[0]),
    "rev": lambda op, value: np.flip(value, op.params["dimensions"]),
    "slice": _slice,
    "split": lambda op, value: np.split(
        value, np.cumsum(op.params["sizes"])[:-1], op.params["axis"]
    ),
    "squeeze": lambda op, value: value.reshape(op.shapes[0]),
    "stack": lambda op, *values: np.stack(values, op.params["axis"]),
    "tile": lambda op, value: np.tile(value, op.params["reps"]),
    "transpose": lambda op, value: value.transpose(op.params["permutation"]),
    "unstack": lambda op, value: list(np.moveaxis(value, op.params["axis"], 0)),
}
_AXES = {
    "broadcast_in_dim": _broadcast_axes,
    "reshape": _reshape_axes,
    "squeeze": _reshape_axes,
    "transpose": lambda axes, shape, op: tuple(axes[i] for i in op.params["permutation"]),
}
_ELEMENTWISE = (
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt",
    "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "digamma", "div", "eq", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite",
    "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "name", "ne", "neg",
    "nextafter", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt",
    "sharding_constraint", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan",
    "tanh", "xor",
)  # fmt: skip
_REDUCE = (
    "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce_and",
    "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_window_max",
    "reduce_window_min", "reduce_window_sum",
)  # fmt: skip
RULES = (
    dict.fromkeys(_ELEMENTWISE, _elementwise)
    | dict.fromkeys(_MOVES, _move)
    | dict.fromkeys(_REDUCE, _reduce)
    | {"dynamic_slice": _take, "gather": _take, "select_n": _select}
    | {"conv_general_dilated": _conv, "dot_general": _dot}
    | {"cond": _cond, "scan": _scan, "while": _while}
)
_LINEAR = ("convert_element_type", "copy", "mul", "name", "neg", "stop_gradient")
_KEEP_ZERO = (  # of zeros they make zeros
    "abs", "add", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "convert_element_type", "copy",
    "div", "erf", "expm1", "floor", "log1p", "max", "min", "mul", "name", "neg", "round",
    "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
)  # fmt: skip
