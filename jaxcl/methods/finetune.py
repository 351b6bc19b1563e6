"""Fine-tuning, which protects nothing: the lower reference."""

import jax.numpy as jnp

from jaxcl.core.method import Method


def finetune() -> Method:
    """Plain fine-tuning: every task may change everything. The lower reference.

    Trained on the data of all tasks so far, it is joint training, the upper reference.
    """
    return Method(
        init=lambda key, params: (params, ()),
        begin_task=lambda key, theta, state, task: (theta, state),
        view=lambda theta, state, task, progress=None: theta,
        trainable=lambda theta, state, task: True,
        penalty=lambda theta, state, task, progress=None: jnp.float32(0),
        project=lambda theta: theta,
        end_task=lambda theta, state, task: (theta, state),
        capacity=lambda theta, state: jnp.float32(1),
    )
