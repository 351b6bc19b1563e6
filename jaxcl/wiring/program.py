"""A model's program as one list of operations, and which kernels its results come from."""

import itertools
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from jaxcl.core.checks import is_concrete
from jaxcl.wiring.labels import CONST, ZERO, Op, filled

CONTROL = ("cond", "scan", "shard_map", "while")
_CALLS = (
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit",
    "remat2",
)  # fmt: skip


def inline(program, numbers, fresh, values, ops):
    """Lists a program's operations, those of the functions that it calls in their place.

    Args:
        program: the jaxpr.
        numbers: of the values that its variables hold; filled in.
        fresh: iterator of unused numbers.
        values: for the numbers of constants, their labels; filled in.
        ops: the list to extend.

    Returns:
        The numbers of its results.
    """
    jaxpr = getattr(program, "jaxpr", program)
    constants = dict(zip(jaxpr.constvars, getattr(program, "consts", ())))

    def constant(atom, value):
        known = value is not None and is_concrete(value)
        zero = known and isinstance(value, (np.ndarray, np.generic, float, int, jax.Array))
        zero = zero and not np.any(np.asarray(value))
        values[number := next(fresh)] = filled(atom.aval.shape, ZERO if zero else CONST)
        return number

    def read(atom):
        return constant(atom, atom.val) if isinstance(atom, Literal) else numbers[atom]

    numbers.update((var, constant(var, constants.get(var))) for var in jaxpr.constvars)
    for eqn in jaxpr.eqns:
        ins = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in _CALLS:
            body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            arguments = dict(zip(getattr(body, "jaxpr", body).invars, ins))
            outs = inline(body, arguments, fresh, values, ops)
        else:
            outs = [next(fresh) for _ in eqn.outvars]
            shapes = tuple(getattr(var.aval, "shape", ()) for var in eqn.outvars)
            ops.append(Op(eqn.primitive.name, eqn.params, tuple(ins), tuple(outs), shapes))
        numbers.update(zip(eqn.outvars, outs))
    return [read(atom) for atom in jaxpr.outvars]


def operations(program, count):
    """A program's operations that its results need, the first `count` numbers being its arguments.

    Returns:
        The operations, the numbers of the results, and the labels of the constants.
    """
    fresh, values, ops = itertools.count(count), {}, []
    numbers = dict(zip(getattr(program, "jaxpr", program).invars, range(count)))
    results = inline(program, numbers, fresh, values, ops)
    needed, kept = set(results), []
    for op in reversed(ops):
        if needed.intersection(op.outs):
            kept.append(op)
            needed.update(op.ins)
    return kept[::-1], results, values


class Source(NamedTuple):
    """What a value is made of: data behind the last kernels; or, without data, leaves."""

    data: bool
    paths: frozenset[str]


def sources_of(program, sources):
    """The source of each result: between it and the last kernels lies no other."""
    ops, results, _ = operations(program, len(sources))
    known = dict(enumerate(sources))
    for op in ops:
        ins = [known.get(number, Source(False, frozenset())) for number in op.ins]
        known.update(zip(op.outs, _sources_of_op(op, ins)))
    return [known.get(number, Source(False, frozenset())) for number in results]


def _sources_of_op(op, ins):
    if op.name == "scan":
        constants, carried = scan_counts(op.params)
        start, end = constants, constants + carried
        return _sources_of_loop(op.params["jaxpr"], ins[:start], ins[start:end], ins[end:])
    if op.name == "while":
        tests, constants = op.params["cond_nconsts"], op.params["body_nconsts"]
        fixed, carry = ins[tests : tests + constants], ins[tests + constants :]
        return _sources_of_loop(op.params["body_jaxpr"], fixed, carry, [])
    if op.name == "cond":
        branches = [sources_of(branch, ins[1:]) for branch in op.params["branches"]]
        return [_any_of(values) for values in zip(*branches)]
    made = _any_of(ins)
    kernels = frozenset().union(*(source.paths for source in ins if not source.data))
    if made.data and kernels and op.name in {"dot_general", "conv_general_dilated", *CONTROL}:
        made = Source(True, kernels)
    return [made] * len(op.outs)


def _sources_of_loop(body, fixed, carry, rows):
    while True:
        results = sources_of(body, [*fixed, *carry, *rows])
        after = [_any_of(pair) for pair in zip(carry, results)]
        if after == list(carry):
            return after + results[len(carry) :]
        carry = after


def _any_of(sources):
    """The source of what is made of several values; where one is data, leaves are no kernels."""
    data = any(source.data for source in sources)
    return Source(data, frozenset().union(*(s.paths for s in sources if s.data or not data)))


def scan_counts(params):
    """Number of constants and of carried values; they come first, in this order."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # from jax 0.11 on
    return len(list(constants)), len(list(carry))
