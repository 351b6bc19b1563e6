"""Random changes of images on the device, for sets that fit it."""

import jax
import jax.numpy as jnp

PADDING = 4


def crop_and_flip(
    key: jax.Array, x: jax.Array, *, padding: int = PADDING, flip: bool = True
) -> jax.Array:
    """Moves each image by up to `padding` pixels, and reflects half of them.

    Args:
        key: typed key.
        x: images [B, H, W, C] of any type.
        padding: pixels of zeros on every side, out of which H x W are cut at random.
        flip: reflect, left to right.

    Returns:
        An array like x.

    Source: He et al. (2016), section 4.2, who pad by 4.
    """
    places, sides = jax.random.split(key)
    size = x.shape[1:]
    padded = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    corners = jax.random.randint(places, (x.shape[0], 2), 0, 2 * padding + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), size)

    moved = jax.vmap(cut)(padded, corners)
    if not flip:
        return moved
    chosen = jax.random.bernoulli(sides, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(chosen, moved[:, :, ::-1], moved)
