"""What a trained network is for: predictions, the task inferred, runs opened, networks handed on.

It imports the rooms before it (`core` to `report`); only `cli` may import it.
"""
