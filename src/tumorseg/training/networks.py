"""U-Net and Attention U-Net. Both are built from the same blocks; only the skip's gate differs.

U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597. Attention gates: Oktay et al.
2018, https://arxiv.org/abs/1804.03999. Shapes in comments are batch, channels, height, width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tumorseg.core.params import NETWORKS, NetworkParams

NORMS: dict[str, Callable[[int], list[nn.Module]]] = {
    "batch": lambda channels: [nn.BatchNorm2d(channels)],
    "instance": lambda channels: [nn.InstanceNorm2d(channels, affine=True)],
    "none": lambda channels: [],
}


def double_conv(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    """Two 3×3 convolutions, each followed by normalisation, if any, and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=norm == "none"))
        layers += [*NORMS[norm](outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PassSkip(nn.Module):
    """The plain U-Net's skip connection."""

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Returns `skip`, whatever `signal`, from the level below."""
        return skip


class AttentionGate(nn.Module):
    """Additive attention gate: scales a skip connection x by a map computed from x and g.

    α = σ(ψ(ReLU(W_x x + W_g g))), output α·x, with 1×1 convolutions W_x, W_g and ψ; g, from the
    level below, has already been upsampled to the size of x.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.from_skip = nn.Conv2d(channels, channels, 1)  # W_x
        self.from_signal = nn.Conv2d(channels, channels, 1)  # W_g
        self.attention = nn.Conv2d(channels, 1, 1)  # ψ

    def coefficients(self, skip: Tensor, signal: Tensor) -> Tensor:
        """The attention map α in (0, 1), shape (B, 1, H, W)."""
        joint = torch.relu(self.from_skip(skip) + self.from_signal(signal))  # B, C, H, W
        return torch.sigmoid(self.attention(joint))  # B, 1, H, W

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Scales `skip` by the attention map; both inputs are (B, C, H, W)."""
        return skip * self.coefficients(skip, signal)


class UNet(nn.Module):
    """The plain U-Net for one grey channel and one class.

    Args:
        channels: Channels a level, from the first to the bottom; n of them mean n − 1 poolings, so
            that height and width must be multiples of space_to_depth · 2ⁿ⁻¹.
        norm: What follows each convolution: `batch` or `instance` normalisation, or `none`.
        space_to_depth: Side of the square of pixels that the first level sees as channels of one
            (Shi et al. 2016); 1 is the published network, 2 runs it at half the resolution.
    """

    def __init__(self, channels: list[int], norm: str = "batch", space_to_depth: int = 1) -> None:
        super().__init__()
        folded = space_to_depth**2
        down = list(zip([folded, *channels], channels, strict=False))  # (1, 16), (16, 32), …
        up = list(zip(channels[::-1], channels[-2::-1], strict=False))  # (256, 128), (128, 64), …
        self.fold, self.unfold = nn.PixelUnshuffle(space_to_depth), nn.PixelShuffle(space_to_depth)
        self.encoders = nn.ModuleList(double_conv(i, o, norm) for i, o in down)
        self.pool = nn.MaxPool2d(2)
        self.upsamplers = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in up)
        self.decoders = nn.ModuleList(double_conv(2 * o, o, norm) for _, o in up)
        self.head = nn.Conv2d(channels[0], folded, 1)
        # Tumour is rare: start from a probability of 2% (Lin et al. 2017), not from 50%.
        nn.init.constant_(self.head.bias, -4.0)  # type: ignore[arg-type]
        # Gates last: with the same seed both networks start from the same shared weights.
        self.gates = nn.ModuleList(self.gate(o) for _, o in up)

    def gate(self, channels: int) -> nn.Module:
        """What a skip connection of that many channels passes through."""
        return PassSkip()

    def forward(self, image: Tensor) -> Tensor:
        """Computes the logits of tumour, (B, 1, H, W), from normalised images, (B, 1, H, W)."""
        x, skips = self.fold(image), []  # B, S², H/S, W/S; H and W mean these from here on
        for encoder in self.encoders[:-1]:
            x = encoder(x)  # B, C, H, W
            skips.append(x)
            x = self.pool(x)  # B, C, H/2, W/2
        x = self.encoders[-1](x)  # the bottom: B, 256, H/16, W/16
        for upsample, gate, decoder in zip(self.upsamplers, self.gates, self.decoders, strict=True):
            x = upsample(x)  # B, C, 2H', 2W'
            skip = gate(skips.pop(), x)  # B, C, 2H', 2W'
            x = decoder(torch.cat([skip, x], dim=1))  # B, C, 2H', 2W'
        return self.unfold(self.head(x))  # B, 1, S·H, S·W


class AttentionUNet(UNet):
    """The Attention U-Net: a U-Net with an additive attention gate on every skip connection."""

    def gate(self, channels: int) -> nn.Module:
        """An attention gate."""
        return AttentionGate(channels)


class Probabilities(nn.Module):
    """A network as it is evaluated and served: images → probabilities.

    Args:
        network: `UNet` or `AttentionUNet`.
        flips: Whether to average the outputs for the slice and for its mirror image.
    """

    def __init__(self, network: UNet, flips: bool) -> None:
        super().__init__()
        self.network, self.flips = network, flips

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities of tumour (B, 1, H, W) from normalised images (B, 1, H, W)."""
        probability = torch.sigmoid(self.network(image))
        if self.flips:
            mirrored = torch.sigmoid(self.network(image.flip(-1))).flip(-1)
            probability = (probability + mirrored) / 2
        return probability


CLASSES = dict(zip(NETWORKS, (UNet, AttentionUNet), strict=True))


def build_network(name: str, params: NetworkParams) -> UNet:
    """Builds `unet` or `attention_unet` from its section of params.yaml."""
    return CLASSES[name](list(params.channels), params.norm, params.space_to_depth)
