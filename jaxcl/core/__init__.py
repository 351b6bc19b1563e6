"""The laws: masks, isolation, and what a method and a network are, as pure functions over pytrees.

It imports jax and optax only, and knows no method and no network; every other room may import it.
"""
