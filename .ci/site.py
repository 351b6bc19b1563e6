"""A hook of MkDocs: links that leave the pages, into the repository, become its paths."""

import re

LINK = re.compile(r"!?\[([^\]]*)\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown, **_):
    return LINK.sub(r"\1 (`\2`)", markdown)
