"""HAT's table: which leaf, along which axis, each gate scales; by hand, or traced from a model.

It imports `core` alone. `models`, `methods` and whatever comes after them may import it.
"""

from jaxcl.core.model import Wiring
from jaxcl.wiring.table import check_wiring
from jaxcl.wiring.trace import trace_wiring

__all__ = ["Wiring", "check_wiring", "trace_wiring"]
