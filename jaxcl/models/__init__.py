"""Networks: an MLP, an AlexNet-like net, ResNet-18 and VGG-16; adapters for yours.

`mlp`, `alexnet`, `resnet18` and `vgg16` give a Model; MLP, AlexNetLike, ResNet18 and VGG16 are the
Flax modules behind them. `from_nnx`, `from_linen` and `from_function` make a Model of yours, whose
convolutions train faster on a CPU with `conv_general_dilated`.

It imports `core` and `wiring`, and Flax; `study`, `report` and `cli` may import it.
"""

from jaxcl.core.convolution import conv_general_dilated
from jaxcl.core.model import LateralSpec, Model
from jaxcl.models.adapters import from_function, from_linen, from_nnx
from jaxcl.models.builtin import (
    MLP,
    VGG16,
    AlexNetLike,
    alexnet,
    mlp,
    parameter_count,
    resnet18,
    vgg16,
)
from jaxcl.models.chain import Chain, Unit
from jaxcl.models.resnet import ResNet18
from jaxcl.models.start import read_weights, start_from

__all__ = [
    "MLP",
    "VGG16",
    "AlexNetLike",
    "Chain",
    "LateralSpec",
    "Model",
    "ResNet18",
    "Unit",
    "alexnet",
    "conv_general_dilated",
    "from_function",
    "from_linen",
    "from_nnx",
    "mlp",
    "parameter_count",
    "read_weights",
    "resnet18",
    "start_from",
    "vgg16",
]
