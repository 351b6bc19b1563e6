"""HAT's table: which leaf, along which axis, each gate scales; by hand, or traced from a model.

It imports `core` alone. `models`, `methods` and whatever comes after them may import it.
"""

from jaxcl.wiring.trace import Wiring, check_wiring, trace_wiring

__all__ = ["Wiring", "check_wiring", "trace_wiring"]
