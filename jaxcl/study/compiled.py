"""What a compiled program holds: bytes, and the instructions of its loops."""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

# Instructions that compute and move nothing.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all")
COLLECTIVES = (
    "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", re.M)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", re.M)
_OPCODE = re.compile(r"(?:^|[ )\]}])([a-z][a-z0-9\-]*)\(")


class Instruction(NamedTuple):
    """One instruction of a computation, as XLA prints it."""

    name: str
    opcode: str
    text: str


class Bytes(NamedTuple):
    """What a program needs on each device.

    Attributes:
        arguments: what it is given.
        results: what it gives, without what takes the place of an argument.
        temporaries: what it needs besides.
    """

    arguments: int
    results: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def bytes_of(compiled: Any) -> Bytes:
    """The memory of a `jax.stages.Compiled`."""
    used = compiled.memory_analysis()
    results = used.output_size_in_bytes - used.alias_size_in_bytes
    return Bytes(used.argument_size_in_bytes, results, used.temp_size_in_bytes)


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation of a program that is printed.

    >>> text = '''
    ... %twice (p: f32[2]) -> f32[2] {
    ...   %p = f32[2]{0} parameter(0)
    ...   ROOT %sum.1 = f32[2]{0} add(f32[2]{0} %p, f32[2]{0} %p)
    ... }
    ... '''
    >>> [(i.name, i.opcode) for i in computations(text)["twice"]]
    [('p', 'parameter'), ('sum.1', 'add')]
    """
    found = {}
    heads = list(_HEAD.finditer(text))
    for head, end in zip(heads, [*(h.start() for h in heads[1:]), len(text)]):
        body = text[head.end() : end].partition("\n}")[0]
        found[head[1]] = [
            Instruction(name, _opcode(rest), rest) for name, rest in _INSTRUCTION.findall(body)
        ]
    return found


def _opcode(rest: str) -> str:
    match = _OPCODE.search(rest)
    return match[1] if match else ""


def training_loop(text: str) -> list[Instruction]:
    """The instructions of the body of a program's longest loop: in an epoch's, a training step."""
    return (_loops(text, computations(text)) or [[]])[0]


def _loops(text: str, found: dict[str, list[Instruction]]) -> list[list[Instruction]]:
    """The bodies of all loops, the longest first."""
    names = dict.fromkeys(re.findall(r"body=%?([\w.\-]+)", text))
    return sorted((found[name] for name in names if name in found), key=len, reverse=True)


def kinds(instructions: list[Instruction]) -> Counter:
    """How often each opcode occurs, without those that compute and move nothing."""
    return Counter(i.opcode for i in instructions if i.opcode not in FREE)


def kernels(text: str) -> Counter:
    """What a GPU launches in one turn of a program's longest loop: in an epoch's, a training step.

    Returns:
        How many matrix products (`"product"`, with what is fused with them), copies (`"copy"`), and
        other kernels (`"other"`) there are; and loops within the loop (`"loop"`), whose kernels are
        launched with each turn of theirs and are not counted.

    >>> text = '''
    ... %product (a: f32[2,2]) -> f32[2,2] {
    ...   ROOT %dot = f32[2,2] dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
    ... }
    ... %body (p: (f32[2,2])) -> (f32[2,2]) {
    ...   %a = f32[2,2] get-tuple-element(%p), index=0
    ...   %b = f32[2,2] fusion(%a), kind=kCustom, calls=%product
    ...   %c = f32[2,2] copy(%b)
    ...   ROOT %t = (f32[2,2]) tuple(%c)
    ... }
    ... ENTRY %main (p: (f32[2,2])) -> (f32[2,2]) {
    ...   ROOT %w = (f32[2,2]) while(%p), condition=%more, body=%body
    ... }
    ... '''
    >>> sorted(kernels(text).items())
    [('copy', 1), ('product', 1)]
    """
    found = computations(text)
    return Counter(_kernel(i, found) for i in training_loop(text) if _launches(i))


def _launches(instruction: Instruction) -> bool:
    return instruction.opcode not in FREE and not instruction.opcode.endswith("-done")


def _kernel(instruction: Instruction, found: dict[str, list[Instruction]]) -> str:
    """What kind of kernel an instruction is."""
    if instruction.opcode == "while":
        return "loop"
    if instruction.opcode.startswith("copy"):
        return "copy"
    called = re.search(r"calls=%?([\w.\-]+)", instruction.text)
    inside = found.get(called[1], []) if called else []
    product = "cublas" in instruction.text or any(i.opcode == "dot" for i in inside)
    return "product" if product else "other"


def collectives(text: str) -> Counter:
    """How often each kind of exchange between devices occurs in a program, its start counted."""
    opcodes = Counter(i.opcode for part in computations(text).values() for i in part)
    return Counter(
        {kind: n for kind in COLLECTIVES if (n := opcodes[kind] + opcodes[f"{kind}-start"])}
    )


_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?")


def _bytes(shapes: str) -> int:
    """Bytes of main memory of the arrays whose shapes stand in a text."""
    total = 0
    for kind, bits, sizes, layout in _ARRAY.findall(shapes):
        if "S(" not in layout:
            entries = math.prod(int(size) for size in sizes.split(",") if size)
            total += entries * max(1, int(bits or 8) // 8) * (kind != "token")
    return total


def _operands(instruction: Instruction) -> list[str]:
    """The names of an instruction's operands."""
    inside = instruction.text.partition(instruction.opcode + "(")[2].partition(")")[0]
    return re.findall(r"%([\w.\-]+)", inside)


def _sliced(inside: list[Instruction], fused: bool) -> dict[Any, int]:
    """Bytes read of the operands that are only sliced: by number in a fusion, else by name."""
    readers: dict[str, list[Instruction]] = {}
    for i in inside:
        for operand in _operands(i):
            readers.setdefault(operand, []).append(i)
    found = {}
    for name, users in readers.items():
        kinds = {u.opcode for u in users if _operands(u)[0] == name}
        if len(kinds) and kinds <= {"dynamic-slice", "gather", "slice"}:
            size = sum(_bytes(u.text.partition(u.opcode + "(")[0].replace("S(", "")) for u in users)
            parameter = next((i for i in inside if i.name == name), None)
            if fused and parameter is not None and parameter.opcode == "parameter":
                found[int(re.findall(r"parameter\((\d+)", parameter.text)[0])] = size
            elif not fused:
                found[name] = size
    return found


def _updated(inside: list[Instruction]) -> int | None:
    """Bytes written where a result is an operand with some rows changed; None where it is not."""
    root = inside[-1] if inside else None
    if root is None or root.opcode != "dynamic-update-slice":
        return None
    rows = {i.name: i.text.partition(i.opcode + "(")[0] for i in inside}
    return 2 * _bytes(rows.get(_operands(root)[1], ""))


def step_bytes(text: str) -> int:
    """Bytes of a device's main memory that one turn of the longest loop reads and writes.

    Each instruction reads its operands and writes its result. Of what is only sliced, the slices
    count. What lies in a faster memory (on a TPU `S(1)` in its layout) does not.
    """
    found, moved = computations(text), 0
    for body in _loops(text, found)[:1]:
        results = {i.name: _bytes(i.text.partition(i.opcode + "(")[0]) for i in body}
        for i in body:
            if i.opcode in FREE or i.opcode.endswith("-done"):
                continue
            called = re.search(r"calls=%?([\w.\-]+)", i.text)
            inside = found.get(called[1], []) if called else [i]
            sliced = _sliced(inside, called is not None)
            updated = _updated(inside)
            moved += results[i.name] if updated is None else updated
            for number, operand in enumerate(_operands(i)):
                size = results.get(operand, 0)
                key = number if called else operand
                if updated is not None and size == results[i.name]:
                    size = 0  # it is changed in place
                moved += min(size, sliced[key]) if key in sliced else size
    return moved
