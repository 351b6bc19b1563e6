"""Every Python block of the documentation runs, the notebooks, and the commands on their pages."""

import importlib
import inspect
import json
import re
import shlex
import sys
import textwrap
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
USE = ROOT / "docs" / "use.md"  # whose blocks go on from one another, commands among them
PAGES = [p for p in [*sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("README.md")] if p != USE]


def blocks(page, language="python"):
    """The fenced blocks of a page, with the line at which each begins."""
    text = page.read_text(encoding="utf-8")
    pattern = rf"^( *)```(?:{language})\n(.*?)^\1```"
    for found in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        line = text[: found.start(2)].count("\n") + 1
        yield f"{page.relative_to(ROOT)}:{line}", textwrap.dedent(found[2])


def file_of(code):
    """The name of the file that a block is, by its first line; None for a script."""
    found = re.match(r"# (\w+\.py)\n", code)
    return found and found[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, from which modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("docs_"):
            del sys.modules[name]


def write_files(page, folder):
    for _, code in blocks(page):
        if name := file_of(code):
            (folder / name).write_text(code)


@pytest.mark.parametrize(
    ("page", "where", "code"),
    [pytest.param(page, *b, id=b[0]) for page in PAGES for b in blocks(page)],
)
def test_block_runs(page, where, code, folder):
    write_files(page, folder)
    with jax.numpy_rank_promotion("allow"):  # as it is for a reader
        exec(compile(code, where, "exec"), {"__name__": "__main__"})


def test_there_are_blocks():
    assert any(True for page in PAGES for _ in blocks(page))


@pytest.mark.parametrize(
    ("where", "command"),
    [pytest.param(*b, id=b[0]) for b in blocks(ROOT / "docs" / "your-method.md", "sh")],
)
def test_a_method_of_ones_own_runs_by_the_command(where, command, folder, monkeypatch, capsys):
    from jaxcl.cli.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    write_files(ROOT / "docs" / "your-method.md", folder)
    jax.devices()
    program, *words = shlex.split(command)
    assert program == "jaxcl"
    main([*words, "--no-cache"])
    assert "EWC (docs)" in capsys.readouterr().out
    jax.config.update("jax_enable_compilation_cache", True)


def test_the_page_on_use_runs_from_its_top_to_its_end(folder, monkeypatch, capsys):
    from jaxcl.cli.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    write_files(USE, folder)
    jax.devices()
    names = {"__name__": "__main__"}
    for where, code in blocks(USE, "python|sh"):
        if code.startswith("jaxcl "):
            for line in code.splitlines():
                words = shlex.split(line)[1:]
                main([*words, "--no-cache"] if words[0] == "compare" else words)
        elif not file_of(code):
            with jax.numpy_rank_promotion("allow"):
                exec(compile(code, where, "exec"), names)
    jax.config.update("jax_enable_compilation_cache", True)
    said = capsys.readouterr().out
    assert "('packnet', 'hat', 'er')" in said  # of the first block
    assert "| PackNet |" in said  # and of the last


@pytest.mark.parametrize("name", ["first-study", "use-a-run"])
def test_notebook_runs(name, folder, monkeypatch):
    """Cell after cell, as a kernel would; lines of the shell are commands of jaxcl."""
    from jaxcl.cli.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    jax.devices()
    names = {"__name__": "__main__"}
    path = ROOT / "docs" / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for i, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        code = "".join(cell["source"])
        if code.startswith("!jaxcl "):
            words = shlex.split(code)[1:]
            main([*words, "--no-cache"] if words[0] == "compare" else words)
            continue
        code = re.sub(r"(?m)^%.*$", "", code)  # magic words
        with jax.numpy_rank_promotion("allow"):
            exec(compile(code, f"{path.name}, code cell {i + 1}", "exec"), names)
    jax.config.update("jax_enable_compilation_cache", True)


# What reads data that must be prepared, or files that other pages make; what draws all plots,
# and what compiles for long.
WITHOUT = {"cifar100", "fashion_mnist", "mnist", "mnist5k", "omniglot", "prepared"}
WITHOUT |= {"split_cifar100", "split_fashion_mnist", "split_mnist", "permuted_fashion_mnist"}
WITHOUT |= {"permuted_mnist", "load", "save", "plots", "write", "write_scenarios", "calibrate"}


def test_every_function_of_the_reference_has_an_example():
    missing = set()
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for home, name in re.findall(r"^::: ([\w.]+)\.(\w+)$", text, re.MULTILINE):
        thing = getattr(importlib.import_module(home), name, None)
        if thing is None or inspect.ismodule(thing):  # a room's module: all that it has itself
            module = importlib.import_module(f"{home}.{name}")
            names = [n for n, v in vars(module).items() if inspect.isfunction(v)]
            things = [getattr(module, n) for n in names if not n.startswith("_")]
            things = [one for one in things if one.__module__ == module.__name__]
        else:
            things = [thing] if inspect.isfunction(thing) else []
        missing |= {one.__name__ for one in things if ">>>" not in (one.__doc__ or "")}
    assert missing == WITHOUT & missing, missing - WITHOUT
    assert "isolate" not in missing and len(missing) > 5  # it sees what there is


def test_the_table_of_methods_is_that_of_the_registry(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import drawings

    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == drawings.table()
