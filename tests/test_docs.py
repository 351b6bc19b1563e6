"""Every Python block of the documentation runs, each on its own."""

import re
import textwrap
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("README.md")]


def blocks(page):
    """The fenced Python blocks of a page, with the line at which each begins."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        line = text[: found.start(2)].count("\n") + 1
        yield f"{page.relative_to(ROOT)}:{line}", textwrap.dedent(found[2])


@pytest.mark.parametrize(
    ("where", "code"), [pytest.param(*b, id=b[0]) for page in PAGES for b in blocks(page)]
)
def test_block_runs(where, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # as it is for a reader
        exec(compile(code, where, "exec"), {"__name__": "__main__"})


def test_there_are_blocks():
    assert any(True for page in PAGES for _ in blocks(page))
