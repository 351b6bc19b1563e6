"""Derives the table of gates from a network's program.

Multiplying unit i of a layer by its gate equals scaling row i of every kernel that reads the unit,
whatever lies in between, if the gate is the last operation before the kernel. So a table of leaves
is all that gating needs to know about a network, and it needs no change to the network's code.

`trace_wiring` derives the table. It runs the model on *labels*: each element of each activation
carries the hidden unit that it belongs to, and each value made of parameters alone remembers which
axes of which leaf it shows. The two meet at the matrix products and convolutions, which are the
table's rows. Whatever mixes units otherwise, like a layer norm, is an error.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcl.core import masks
from jaxcl.core.checks import check_pattern, shorten
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree
from jaxcl.wiring.labels import CONST, RAW, ZERO, Param, filled, leaf_itself, lies_along
from jaxcl.wiring.primitives import RULES, unknown
from jaxcl.wiring.program import Source, operations, sources_of


def trace_wiring(
    apply: Callable, params: PyTree, x: PyTree, gates: Sequence[str] | None = None
) -> Wiring:
    """Derives the table for any model by following its hidden units through the computation.

    Every dense and convolution layer but the last gets a gate. Layers whose outputs are added or
    multiplied, or take turns in what a loop carries on, share the first one's: those of a recurrent
    cell do, and all layers of a stack [L, in, out] that is scanned over. A gate is named after the
    kernel's parent, or after the kernel where the parent has several.

    Args:
        apply: function (params, x) -> logits, in inference mode. Statistics are best closed over.
        params: pytree of arrays or `jax.ShapeDtypeStruct`; kernels are [..., in, out].
        x: a batch of examples (one is enough), or its `jax.ShapeDtypeStruct`. Nothing is computed.
        gates: list of regular expressions, searched in the kernels' paths: gate these layers alone.
            Through the activations of all others anything may be done: attention, layer norms,
            lookups.

    Returns:
        The table. Leaves that belong to no gated unit are in neither of its halves.

    Raises:
        ValueError: if `gates` is empty or no list of regular expressions, or one of them finds no
            layer; naming the operation and the nearest parameter, where units are mixed by
            anything but a kernel, where a gated activation is added to an ungated one, where a
            leaf is used in two ways, or where the table has no words for what happens.

    Source: Serra et al. (2018), Sec. 2.2 and 2.3, which treats plain stacks of layers.
    Differs: skip connections, concatenation, per-unit norms and grouped convolutions are ours.

    >>> import jax.numpy as jnp
    >>> params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 4))}}
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"]) @ p["b"]["kernel"]
    >>> wiring = trace_wiring(apply, params, jnp.ones((1, 2)))
    >>> wiring.gates, wiring.inputs["b/kernel"], wiring.outputs
    ({'a': 3}, (('a', 1),), {'a/kernel': 'a'})
    """
    if isinstance(gates, str) or (gates is not None and not len(gates)):
        raise ValueError(
            f"trace_wiring: gates must be a list of at least one regular expression, such as "
            f"['up'], got {gates!r}; None gates every layer but the last."
        )
    for pattern in gates or ():
        check_pattern("trace_wiring: gates", pattern)
    leaves = {path: tuple(leaf.shape) for path, leaf in masks.leaves_by_path(params).items()}
    program = jax.make_jaxpr(apply)(params, x)
    data = program.in_avals[len(leaves) :]
    sources = [Source(False, frozenset([path])) for path in leaves]
    sources += [Source(True, frozenset())] * len(data)
    last_kernels = {path for source in sources_of(program, sources) for path in source.paths}
    patterns = [""] if gates is None else list(gates)
    trace = _Trace(
        gated=lambda path: path not in last_kernels and any(re.search(p, path) for p in patterns),
        leaves=leaves,
    )
    arguments = [leaf_itself(path, shape) for path, shape in leaves.items()]
    results = trace.run(program, [*arguments, *(filled(value.shape, RAW) for value in data)])
    for result in results:
        if isinstance(result, Param):
            trace.attach(result, filled((), RAW))
        elif result.max(initial=CONST) >= 0:
            trace.fail(f"gives results with units of {trace.names(result)}, which no kernel reads")

    for pattern in patterns:
        if not any(re.search(pattern, path) for path in trace.layers):
            known = shorten(sorted(path for path, shape in leaves.items() if len(shape) > 1))
            what = "" if gates is None else f" for {pattern!r} of gates={gates}"
            raise ValueError(
                f"trace_wiring finds no hidden dense or convolution layer{what}: one whose output "
                f"reaches the results through no other has no gate; the kernels are {known}."
            )
    return trace.wiring()


class _Trace:
    """What tracing finds: the layers' units, which of them share a gate, and the leaves' uses."""

    def __init__(self, gated: Callable[[str], bool], leaves: Mapping[str, tuple[int, ...]]):
        self.gated = gated
        self.leaves = leaves
        self.layers = {}  # kernel's path -> its units' numbers
        # unit -> first unit with its gate; the labels that are no units stand for themselves
        self.root = np.array([ZERO, CONST, RAW])
        self.uses = {}  # path -> labels along its input axis, its output axis (or None), groups
        self.op: Any = None
        self.nearest = None

    def run(self, program, arguments):
        """The labels of a program's results."""
        ops, results, values = operations(program, len(arguments))
        values.update(enumerate(arguments))
        last = {number: op for op in ops for number in op.ins} | dict.fromkeys(results)
        for op in ops:
            self.op = op
            outs = RULES.get(op.name, unknown)(self, op, *(values[i] for i in op.ins))
            values.update(zip(op.outs, outs))
            for number in {i for i in op.ins if last[i] is op}:
                del values[number]  # labels are as large as activations
        return [values[number] for number in results]

    def use(self, path, inputs=None, outputs=None, groups=1):
        self.nearest = path
        self.uses.setdefault(path, []).append((inputs, outputs, groups))

    def units(self, path, number):
        """The labels of a layer's units."""
        if path not in self.layers:
            self.layers[path] = np.arange(number) + len(self.root) - 3
            self.root = np.concatenate([self.root[:-3], self.layers[path], self.root[-3:]])
        return self.layers[path]

    def join(self, arrays, scaling, shape=None):
        """Labels of an elementwise result. Units that meet there get one gate."""
        labels = filled(self.op.shapes[0] if shape is None else shape, ZERO if arrays else CONST)
        for array in arrays:
            labels, array = np.broadcast_arrays(self.root[labels], self.root[array])
            low, high = np.minimum(labels, array), np.maximum(labels, array)
            if not scaling and ((low == RAW) & (high >= 0)).any():
                names = self.names(np.maximum(labels, array))
                self.fail(
                    f"combines {names}, which has a gate, with an activation that has none; both "
                    f"must have one, or none"
                )
            meet = (low >= 0) & (low < high)
            for pair in np.unique(low[meet] * len(self.root) + high[meet]):
                first, second = sorted(self.root[list(divmod(pair, len(self.root)))])
                self.root[self.root == second] = first
            labels = self.root[high]
        return labels

    def collapse(self, labels, axes):
        """Labels that are the same along `axes`, which stay with length 1."""
        labels = self.root[labels]
        top = labels.max(tuple(axes), keepdims=True)
        if ((labels != top) & (labels > CONST)).any():
            self.fail(f"mixes the units of {self.names(labels)}")
        return top

    def attach(self, param, labels):
        """Notes that parameters act on an activation element by element."""
        for leaf in param.leaves:
            last = len(leaf.shape) - 1
            single = leaf.axes is not None and all(axis is None for axis in leaf.axes)
            if labels.max(initial=CONST) < 0 or math.prod(leaf.shape) == 1 or single:
                self.use(leaf.path)
            elif leaf.axes is None:
                self.nearest = leaf.path
                self.fail(
                    f"applies to {self.names(labels)} a part of a parameter, or what is computed "
                    f"from parameters and constants alone, such as a layer's product with a state "
                    f"that starts from anything but zeros"
                )
            elif last not in leaf.axes:
                self.nearest = leaf.path
                self.fail(f"applies a parameter whose last axis is not {self.names(labels)}")
            else:
                axis = labels.ndim - len(leaf.axes) + leaf.axes.index(last)
                self.use(leaf.path, None, self.vector(labels, [axis]))

    def layer(self, labels, kernel, contracted, into, out, groups=1):
        """Notes a dense or convolution layer that sums over the `contracted` axes of an activation,
        to which the kernel's axes `into` belong; gives the labels along its axes `out`."""
        gated, reads = any(self.gated(leaf.path) for leaf in kernel.leaves), labels.max() >= 0
        if not gated and not reads:
            self.attach(kernel, labels)
            return filled((math.prod(kernel.shape[i] for i in out),), RAW)
        path, shape, _ = kernel.leaves[0]
        self.nearest = path
        if len(kernel.leaves) > 1 or (reads and not kernel.linear):
            self.fail("applies a kernel that is computed from its parameter")
        if not (lies_along(kernel, into, -2) and lies_along(kernel, out, -1)):
            self.fail("applies a kernel whose last two axes are not its inputs and outputs")
        units = self.units(path, shape[-1]) if gated else None
        self.use(path, self.vector(labels, contracted), units, groups)
        return filled(shape[-1:], RAW) if units is None else units

    def vector(self, labels, axes):
        """The labels along some axes, which must be the same all over the others."""
        return self.collapse(labels, [i for i in range(labels.ndim) if i not in axes]).ravel()

    def layer_name(self, path):
        """The kernel's parent, if it has one kernel; what acts element by element is none."""
        parent = path.rpartition("/")[0]
        kernels = [
            other
            for other, shape in self.leaves.items()
            if other.rpartition("/")[0] == parent
            and len(shape) > 1
            and not any(
                out is not None and into is None for into, out, _ in self.uses.get(other, ())
            )
        ]
        return parent if parent and len(kernels) == 1 else path

    def names(self, labels):
        owners = [path for path, units in self.layers.items() if np.isin(units, labels).any()]
        return shorten([self.layer_name(path) for path in owners])

    def listed(self, labels, most=6):
        """The first units of a vector, each by its layer and its number within it."""
        names = []
        for unit in labels[:most]:
            path = next((path for path, units in self.layers.items() if unit in units), None)
            name = path and f"{self.layer_name(path)}[{unit - self.layers[path][0]}]"
            names.append(name or "ungated")
        return ", ".join(names) + ", ..." * (len(labels) > most)

    def fail(self, what, by_hand=False):
        """`by_hand`: the table may have words for what tracing cannot tell."""
        hand = ", or write the table by hand as a jaxcl.wiring.Wiring" if by_hand else ""
        raise ValueError(
            f"trace_wiring: the operation '{self.op.name}' {what}; the nearest parameter is "
            f"'{self.nearest}'. Choose the layers that get a gate with gates=[...]{hand}."
        )

    def wiring(self):
        """The table, once all operations are traced."""
        starts = {
            units[0]: (self.layer_name(path), len(units))
            for path, units in self.layers.items()
            if (self.root[units] == units).all()
        }
        inputs, outputs, numbers = {}, {}, {}
        for path, uses in self.uses.items():
            found = {
                (self.segments(path, v, starts), self.segments(path, w, starts), groups)
                for v, (_, w, groups) in zip(self.filled(uses), uses)
            }
            if len(found) > 1:
                raise ValueError(
                    f"trace_wiring: '{path}' is used in two ways that need different gates; choose "
                    f"the layers that get a gate with gates=[...]."
                )
            inputs[path], outputs[path], numbers[path] = found.pop()
        for path, parts in outputs.items():
            if parts and (len(parts) > 1 or parts[0][1] > 1):
                raise ValueError(
                    f"trace_wiring: the last axis of '{path}' has the gates {parts}; expected one. "
                    f"Leave these layers out with gates=[...]."
                )
        return Wiring(
            gates=dict(starts.values()),
            inputs={path: parts for path, parts in inputs.items() if parts},
            outputs={path: parts[0][0] for path, parts in outputs.items() if parts},
            groups={path: number for path, number in numbers.items() if number > 1},
        )

    def filled(self, uses):
        """The labels along a kernel's input axis in each of its uses. Where one use reads zeros, as
        a recurrent layer's first does, its rows may have any gate: that of the other uses."""
        known = [self.root[use[0]] for use in uses if use[0] is not None]
        if len({len(labels) for labels in known}) > 1:
            return [use[0] for use in uses]
        filler = ZERO
        for labels in known:
            filler = np.where(filler == ZERO, labels, filler)
        return [v if v is None else np.where(v == ZERO, filler, v) for v, *_ in uses]

    def segments(self, path, vector, starts):
        """A vector of labels as a tuple of (gate, repeats) and (None, width)."""
        parts, at = [], 0
        labels = self.root[[] if vector is None else vector]
        while at < len(labels):
            name, units = starts.get(labels[at], (None, 1))
            whole = np.array_equal(labels[at : at + units], labels[at] + np.arange(units))
            if labels[at] >= 0 and not (name and whole):
                found = self.listed(labels[at:])
                raise ValueError(
                    f"trace_wiring: along an axis of '{path}' the units of {self.names(labels)} do "
                    f"not come as a whole and in order, but from {at} on as {found}, where units "
                    f"added or multiplied count as one. Keep each layer's channels together and "
                    f"last, or leave these layers out with gates=[...]."
                )
            repeats = parts.pop()[1] if parts and parts[-1][0] == name else 0
            parts.append((name, repeats + 1))
            at += units
        return tuple(parts)
