"""Options from a file: what `--config FILE` says, as words of the command.

The file is YAML: options by name, those of a method below its name or as NAME.OPTION. The
`settings.json` of a run is one too. Words of the command line come later, and so win.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcl.core.checks import load_extra, nearest
from jaxcl.methods import REGISTRY
from jaxcl.study.recipes import Options

OPTION = "--config"


def expand(args: Sequence[str], known: Sequence[str]) -> list[str]:
    """The words in which those of a file stand in the place of its name.

    Args:
        args: the words, the command's name first.
        known: options of the command, beside those that all methods share and the methods' own.

    Raises:
        ValueError: for a file that cannot be read, an option that does not exist, or a value that
            is none.
    """
    rest, files, words = [], [], iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name != OPTION:
            rest.append(word)
            continue
        files.append(value if equals else next(words, ""))
    if not files:
        return rest
    if len(files) > 1:
        raise ValueError(f"{OPTION} is given twice; one file holds all options.")
    content, file = _read(files[0]), files[0]
    chosen = next((rest[i + 1] for i, w in enumerate(rest[:-1]) if w == "--methods"), None)
    content = _flat(content, file, chosen)
    command, *said = rest
    positional = [str(content.pop("method"))] if "method" in content else []
    if said and not said[0].startswith("-"):
        positional = [said.pop(0)]
    _check(content, file, known)
    given = [word for name, value in content.items() for word in _words(name, value, file)]
    return [command, *positional, *given, *said]


def _read(file: str) -> Mapping[str, Any]:
    yaml, path = load_extra("yaml"), Path(file)
    if not path.is_file():
        raise ValueError(f"{OPTION}: there is no file {file!r}.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{OPTION}: {path} cannot be read: {' '.join(str(error).split())}"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("settings"), dict):  # of a run
        found = found["settings"]
    if not isinstance(found, dict):
        raise ValueError(f"{OPTION}: {path} must hold options and their values.")
    return found


def _flat(content: Mapping[str, Any], file: str, chosen: str | None) -> dict[str, Any]:
    """Options by name; those of methods that are not compared are left out."""
    methods = content.get("methods") if chosen is None else chosen
    names = methods.split(",") if isinstance(methods, str) else methods
    wanted = None if names in (None, ["all"]) else {str(name).strip().lower() for name in names}
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key == "options" and isinstance(value, dict):
            found |= _flat(value, file, methods if isinstance(methods, str) else chosen)
        elif isinstance(value, dict):
            of = str(key).lower()
            found |= {f"{of}.{option}": v for option, v in value.items()}
        else:
            found[str(key).replace("-", "_")] = value
    return {
        name: value
        for name, value in found.items()
        if "." not in name or wanted is None or name.partition(".")[0] in wanted
    }


def _check(content: Mapping[str, Any], file: str, known: Sequence[str]) -> None:
    shared = [field.name for field in dataclasses.fields(Options)]
    own = {spec.name: [f.name for f in dataclasses.fields(spec.options)] for spec in REGISTRY}
    plain = {*known, *shared, *(name for names in own.values() for name in names)}
    for name in content:
        method, dot, option = name.replace("-", "_").partition(".")
        names = {*own[method], *shared} if dot and method in own else plain
        if dot and method not in own and ":" not in method:
            raise ValueError(f"{file}: there is no method {method!r}{nearest(method, own)}.")
        if (option if dot else method) not in names and not (dot and method not in own):
            of = f" of {method}" if dot else ""
            asked = option if dot else method
            raise ValueError(f"{file}: there is no option {asked!r}{of}{nearest(asked, names)}.")


def _words(name: str, value: Any, file: str) -> Iterator[str]:
    """The words of one option."""
    prefix, dot, option = name.rpartition(".")
    flag, of = option.replace("_", "-"), f"{prefix}{dot}"
    if isinstance(value, bool):
        yield f"--{of}{'' if value else 'no-'}{flag}"
        return
    values = value if isinstance(value, list) else [value]
    if name == "seeds" and isinstance(value, list) and len(value) == 1:  # the seed, no number
        yield from ("--seed", str(value[0]), "--seeds", "1")
        return
    for one in values:
        if not isinstance(one, (str, int, float, type(None))):
            kind = type(one).__name__
            raise ValueError(f"{file}: {name} must be a number, a text or a list, got {kind}.")
    yield f"--{of}{flag}"
    yield ",".join(map(str, values)) if values else "None"
