"""The networks that come with the library: each is a Flax module and a Model of it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from jaxcl.core.model import Model
from jaxcl.models.adapters import functional
from jaxcl.models.chain import Chain, Unit
from jaxcl.models.resnet import ResNet18


def mlp(
    features_in: int, hidden: Sequence[int] = (400, 400), classes: int = 10, **options
) -> Model:
    """A multilayer perceptron: MLP, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if a width is below 1, a rate is outside [0, 1), or `init` is unknown.

    Source: the network for MNIST of Serra et al. (2018), in their code, is this one:

    >>> model = mlp(784, (2000, 2000), dropout=0.5, input_dropout=0.2)
    >>> parameter_count(jax.eval_shape(model.init, jax.random.key(0))[0])
    5592010
    """
    return as_model(partial(MLP, features_in, hidden, classes, **options))


def alexnet(shape: Sequence[int] = (32, 32, 3), classes: int = 10, **options) -> Model:
    """An AlexNet-like network: AlexNetLike, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if the images are too small, a width is below 1, a rate is outside [0, 1), or
            `init` is unknown.

    >>> model = alexnet((32, 32, 3), classes=10)
    >>> parameter_count(jax.eval_shape(model.init, jax.random.key(0))[0])
    6524362
    """
    return as_model(partial(AlexNetLike, shape, classes, **options))


def resnet18(shape: Sequence[int] = (32, 32, 3), classes: int = 10, **options) -> Model:
    """ResNet-18 for small images: ResNet18, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if a width is below 1 or `init` is unknown.

    >>> model = resnet18((32, 32, 3), classes=10)
    >>> parameter_count(jax.eval_shape(model.init, jax.random.key(0))[0])
    11173962
    """
    return as_model(partial(ResNet18, shape, classes, **options))


def vgg16(shape: Sequence[int] = (32, 32, 3), classes: int = 10, **options) -> Model:
    """VGG-16 for small images: VGG16, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if the images are below 32 x 32, a width is below 1, a rate is outside [0, 1),
            or `init` is unknown.

    >>> model = vgg16((32, 32, 3), classes=10)
    >>> parameter_count(jax.eval_shape(model.init, jax.random.key(0))[0])
    15249354
    """
    return as_model(partial(VGG16, shape, classes, **options))


def parameter_count(params: Any) -> int:
    """Number of entries of a pytree of arrays, or of their shapes from `jax.eval_shape`.

    >>> import numpy as np
    >>> parameter_count({"kernel": np.ones((3, 4)), "bias": np.ones(4)})
    16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


class MLP(Chain):
    """A multilayer perceptron.

    Args:
        features_in: number of input features.
        hidden: widths of the hidden layers.
        classes: width of the head.
        dropout: dropout rate of the hidden layers.
        **options: input_dropout, init, dtype and rngs; see Chain.

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> MLP(4, (8,), 3, rngs=nnx.Rngs(0))(jnp.ones((5, 4))).shape
    (5, 3)
    """

    def __init__(
        self,
        features_in: int,
        hidden: Sequence[int] = (400, 400),
        classes: int = 10,
        *,
        dropout: float = 0.0,
        **options,
    ):
        units = [Unit(width, dropout=dropout) for width in hidden]
        super().__init__((features_in,), units, classes, **options)


class AlexNetLike(Chain):
    """The AlexNet-like network of Serra et al. (2018): three convolutions and two dense layers.

    Args:
        shape: `(H, W, C)` of one input.
        classes: width of the head.
        widths: of the five layers.
        dropout: rates of the five layers.
        **options: init, dtype and rngs; see Chain. The paper initializes by init="xavier", its
            code by "torch".

    Source: Serra et al. 2018, section 4, and the authors' code.
    """

    def __init__(
        self,
        shape: Sequence[int] = (32, 32, 3),
        classes: int = 10,
        *,
        widths: Sequence[int] = (64, 128, 256, 2048, 2048),
        dropout: Sequence[float] = (0.2, 0.2, 0.5, 0.5, 0.5),
        **options,
    ):
        if len(widths) != 5 or len(dropout) != 5:
            raise ValueError(f"widths and dropout need five entries, not {widths} and {dropout}.")
        kernels = (4, 3, 2, 0, 0)
        units = [
            Unit(width, kernel, dropout=rate, pool=kernel > 0)
            for width, kernel, rate in zip(widths, kernels, dropout, strict=True)
        ]
        super().__init__(shape, units, classes, **options)


class VGG16(Chain):
    """VGG-16: thirteen convolutions and two dense layers, which are small as the images are.

    Args:
        shape: `(H, W, C)` of one input.
        classes: width of the head.
        width: channels of the first convolution; the others have 1, 2, 4 and 8 times as many.
        hidden: widths of the dense layers.
        norm: BatchNorm after every convolution.
        dropout: dropout rate of the dense layers.
        **options: init ("he" by default), dtype and rngs; see Chain.

    Source: Simonyan & Zisserman 2015, configuration D.
    Differs: dense layers of 512 instead of 4096 units; with norm, the convolutions have no biases.
    """

    def __init__(
        self,
        shape: Sequence[int] = (32, 32, 3),
        classes: int = 10,
        *,
        width: int = 64,
        hidden: Sequence[int] = (512, 512),
        norm: bool = True,
        dropout: float = 0.5,
        init: str = "he",
        **options,
    ):
        multiples = (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)
        pooled = (1, 3, 6, 9, 12)
        convolutions = [
            Unit(width * multiple, 3, "SAME", norm=norm, pool=i in pooled)
            for i, multiple in enumerate(multiples)
        ]
        dense = [Unit(n, dropout=dropout) for n in hidden]
        super().__init__(shape, convolutions + dense, classes, init=init, **options)


def as_model(build: Callable) -> Model:
    """A built-in network as a Model."""
    net, init, run = functional(lambda rngs: build(rngs=rngs))
    laterals, wiring = net.tables()

    def split(params):
        """Parameters and gates."""
        params = dict(params)
        gates = params.pop("gates", None) or {}
        unknown = sorted(set(gates) - set(wiring.gates))
        if unknown:
            raise ValueError(f"no gate is called {unknown[0]!r}; expected {list(wiring.gates)}.")
        return params, gates

    def apply(params, statistics, x, *, train=False, key=None, freeze_norm=False, weight=None):
        params, gates = split(params)
        call = lambda net: net(x, gates=gates)  # noqa: E731
        return run(call, params, statistics, train, key, freeze_norm, weight)

    def column(params, statistics, x, added, *, train=False, key=None, weight=None):
        if len(added) != len(laterals):
            raise ValueError(f"expected {len(laterals)} laterals, one a layer, not {len(added)}.")
        params, gates = split(params)
        call = lambda net: net.column(x, added, gates=gates)  # noqa: E731
        (logits, hiddens), statistics = run(call, params, statistics, train, key, weight=weight)
        return logits, hiddens, statistics

    return Model(jax.jit(init), apply, column, laterals, wiring)  # which many programs begin with
