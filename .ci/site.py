"""Hooks of MkDocs: notebooks become pages, and links that leave the pages become paths."""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r"!?\[([^\]]*)\]\(\.\./([^)\s]+)\)")


def on_files(files, config):
    """A page for each notebook."""
    for path in sorted(Path(config.docs_dir).glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        page = "\n\n".join(map(_markdown, cells)) + "\n"
        files.append(File.generated(config, f"{path.stem}.md", content=page))


def _markdown(cell):
    code = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return code
    language = "sh" if code.startswith("!") else "python"
    return f"```{language}\n{code.removeprefix('!')}\n```"


def on_page_markdown(markdown, **_):
    """Links to notebooks lead to their pages, those into the repository become its paths."""
    markdown = re.sub(r"\(([\w-]+)\.ipynb\)", r"(\1.md)", markdown)
    return LINK.sub(r"\1 (`\2`)", markdown)
