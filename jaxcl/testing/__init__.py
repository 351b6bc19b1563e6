"""The laws as functions, for the tests of a method: each raises AssertionError where one is broken.

It imports the rooms before it (`core` to `study`); only tests import it.
"""

from jaxcl.testing.laws import assert_compiles_once, assert_isolated, assert_rows_are_single_runs

__all__ = ["assert_compiles_once", "assert_isolated", "assert_rows_are_single_runs"]
