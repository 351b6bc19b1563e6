"""What tyro reads: dataclasses that are made for the methods at hand, and words to instances."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from jaxcl.cli.options import OF_COMPARE, Run, flag, names_of
from jaxcl.study.recipes import Options

ALIASES = {"--split": "--devices-per-replica"}  # as earlier versions called them


def unprefixed_names(kinds: Sequence[type]) -> list[str]:
    """The fields that may go without their method's name: no other option is called so."""
    every = [name for kind in kinds for name in names_of(kind)]
    taken = {*names_of(Run), *names_of(Options), *OF_COMPARE}
    return [name for name in every if every.count(name) == 1 and name not in taken]


def made(name: str, fields: Sequence[tuple], doc: str | None) -> Any:
    """A frozen dataclass of (name, type, default) rows."""
    rows = [
        (field, kind, default if isinstance(default, dataclasses.Field) else _default(default))
        for field, kind, default in fields
    ]
    return dataclasses.make_dataclass(name, rows, namespace={"__doc__": doc}, frozen=True)


def _default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


def with_aliases(kind: type, aliased: Sequence[str]) -> Any:
    """The same dataclass, whose fields can be given without the method's name."""
    import tyro

    hints, rows = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.name in aliased:
            hint = Annotated[hint, tyro.conf.arg(aliases=(flag(field.name),))]
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()  # pyright: ignore[reportCallIssue]
        rows.append((field.name, hint, default))
    return made(kind.__name__, rows, kind.__doc__)


def grid(kind: type) -> Any:
    """The same dataclass, with several values for each field that can be swept."""
    hints, rows = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        many = field.metadata.get("sweep")
        hint = tuple[float, ...] if many else hints[field.name]
        rows.append((field.name, hint, _several(field, field.default)))
    return made(kind.__name__, rows, kind.__doc__)


def grid_of(kind: type, options: Any) -> Any:
    """An instance of a grid, of one value each."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    return kind(**{name: _several(fields[name], value) for name, value in vars(options).items()})


def _several(field: dataclasses.Field, value: Any) -> Any:
    if not field.metadata.get("sweep"):
        return value
    return () if value is None else (value,)


MACHINE = ("data_dir", "devices", "devices_per_replica", "chunk", "reproducible", "cache")
MACHINE += ("save_every", "debug_nans", "override")
CLUSTER = ("distributed", "coordinator", "processes", "process", "timeout")


def common(run: Run) -> list[tuple]:
    """The options of a run that come first in the help."""
    rare = {*MACHINE, *CLUSTER}
    names = [name for name in names_of(Run) if name not in rare]
    return [("config", Path | None, None), ("run", *_part(run, names, "", _unprefixed))]


def rare(run: Run) -> list[tuple]:
    """Those that come last."""
    return [
        ("machine", *_part(run, MACHINE, "Where and how it runs.", grouped)),
        ("cluster", *_part(run, CLUSTER, "Several processes that share one run.", grouped)),
    ]


def _part(run: Run, names: Sequence[str], about: str, marked: Callable) -> tuple[Any, Any]:
    """Some fields of Run as a dataclass of their own, and what they are."""
    hints, fields = typing.get_type_hints(Run), {f.name: f for f in dataclasses.fields(Run)}
    _, _, attributes = (Run.__doc__ or "").partition("\n")
    rows = [(name, hints[name], fields[name]) for name in names]
    kind = made("Run", rows, f"{about}\n{attributes}")
    return marked(kind), kind(**{name: getattr(run, name) for name in names})


def run_of(words: Any) -> Run:
    return Run(**vars(words.run), **vars(words.machine), **vars(words.cluster))


def grouped(kind: Any) -> Any:
    """Options without a prefix, in a group of their own in the help."""
    import tyro

    return tyro.conf.OmitArgPrefixes[kind]


def _unprefixed(kind: Any) -> Any:
    import tyro

    return Annotated[kind, tyro.conf.arg(name="")]


def missing() -> Any:
    import tyro

    return tyro.MISSING


def positional(kind: Any) -> Any:
    import tyro

    return tyro.conf.Positional[kind]


def read_words(kind: Any, default: Any, name: str, args: Sequence[str]) -> Any:
    """What the words after the command's name say, as an instance of a dataclass."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_names_and_tuples)
    return tyro.cli(
        kind, default=default, prog=f"jaxcl {name}", args=args, registry=registry
    )  # fmt: skip


def _names_and_tuples(info):
    """Tells tyro to call strings names, and to read tuples as "a,b,c"; None is the empty one."""
    import tyro

    kind, *_ = typing.get_args(info.type) if info.type_origin is tuple else (info.type,)
    metavar = {str: "NAME", int: "INT", float: "FLOAT"}.get(kind, "")

    def read_tuple(words):
        return () if words == ["None"] else tuple(map(kind, words[0].split(",")))

    def write_tuple(values):
        return [",".join(map(str, values)) or "None"]

    if info.type_origin is tuple:
        metavar, read, write = f"{metavar},...", read_tuple, write_tuple
    elif info.type is str:
        read, write = (lambda words: words[0]), (lambda value: [value])
    else:
        return None
    origin = info.type_origin or info.type
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=read, str_from_instance=write,
        is_instance=lambda value: isinstance(value, origin),
    )  # fmt: skip


def value_of(args: Sequence[str], option: str) -> str | None:
    """The last value of an option, which decides on what else there is."""
    found = None
    for i, word in enumerate(args):
        if word == option and i + 1 < len(args):
            found = args[i + 1]
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def renamed(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{ALIASES.get(name, name)}{equals}{value}"
