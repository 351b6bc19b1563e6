"""The methods, a file for each paper: its mathematics, its options, and how it is shown.

It imports `core` and `wiring`; `study`, `report` and `cli` may import it.
"""
