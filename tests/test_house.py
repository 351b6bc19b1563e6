"""The house: no room imports upwards, and nothing outside `methods` names a method (law 8)."""

import ast
import re
from pathlib import Path

import pytest

import jaxcl
from jaxcl.methods import REGISTRY

ROOT = Path(jaxcl.__file__).parent
# From the ground up: a room may import those before it.
ROOMS = (
    "core",
    "wiring",
    "data",
    "train",
    "models",
    "methods",
    "study",
    "testing",
    "report",
    "inference",
    "cli",
)
NAMES = {spec.name for spec in REGISTRY}


def room(module):
    """The room of `jaxcl.room.file`; None for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jaxcl" and len(parts) > 1 else None


def imports(source):
    """Every module of jaxcl that a source imports, whenever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if room(alias.name))
        if isinstance(node, ast.ImportFrom) and node.module == "jaxcl":
            yield from (f"jaxcl.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and room(node.module or ""):
            yield node.module


def upward(own, source):
    """The imports of rooms that come after a source's own."""
    found = {room(module) for module in imports(source)} & {*ROOMS}
    return sorted(name for name in found if ROOMS.index(name) > ROOMS.index(own))


def sources():
    return [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT]


def test_every_module_is_in_a_room_that_says_what_lives_there():
    assert {path.parent.name for path in sources()} == {*ROOMS}
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}
    for name in ROOMS:
        text = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text())) or ""
        assert "import" in text, name
    assert [path.name for path in sources() if re.match(r"_(?!_)", path.name)] == []


@pytest.mark.parametrize("path", sources(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_imports_upwards(path):
    assert upward(path.parent.name, path.read_text()) == []


def test_an_upward_import_would_be_seen():
    """The broken twins."""
    assert upward("train", "def f():\n    from jaxcl.study import replicas") == ["study"]
    assert upward("core", "from jaxcl import data, train") == ["data", "train"]
    assert upward("cli", "from jaxcl import data, train") == []


def named(source):
    """The methods that a source names: by an identifier, or anywhere in a string."""
    words = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "name", "arg", "module"):
            words |= {*re.split(r"\W+", str(getattr(node, field, "") or ""))}
        if isinstance(node, ast.alias):
            words |= {node.name, node.asname or ""}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= {*re.split(r"\W+", node.value)}
    # "den", "si", "mas" and "er" may be words or parts of them in a text; none is one here.
    return sorted({word.lower() for word in words} & NAMES)


# Two references are words of the field: joint training, independent columns.
WORDS = {"joint", "independent"}


@pytest.mark.parametrize(
    "path",
    [path for path in sources() if path.parent.name != "methods"],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_law_8_nothing_outside_methods_names_a_method(path):
    assert {*named(path.read_text())} - WORDS == set()


def test_law_8_bites():
    """The broken twins: a table of names, an attribute, an import, a word in a docstring."""
    assert named('TABLE = {"hat": 1}') == ["hat"]
    assert named("methods.packnet(2)") == ["packnet"]
    assert named("from jaxcl.methods.pnn import pnn") == ["pnn"]
    assert named('def f():\n    """As PackNet does."""') == ["packnet"]
