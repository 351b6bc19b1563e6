"""The table of gates: which leaf, along which axis, each gate scales; given or traced.

It imports `core` alone. `models`, `methods` and whatever comes after them may import it.
"""

from jaxcl.core.model import Wiring
from jaxcl.wiring.table import check_wiring
from jaxcl.wiring.trace import trace_wiring

__all__ = ["Wiring", "check_wiring", "trace_wiring"]
