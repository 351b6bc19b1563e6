"""An extension of griffe: examples in docstrings become blocks of code on the site."""

import re

import griffe

EXAMPLE = re.compile(r"(?m)^([ ]*)>>> (?:.*\n?)(?:^\1\S.*\n?)*")


class Doctests(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found):
    indent, code = found[1], found[0].rstrip("\n").replace("  # doctest: +ELLIPSIS", "")
    return f"{indent}```python\n{code}\n{indent}```\n"
