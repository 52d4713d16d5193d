"""U-Net and Attention U-Net. Both are built from the same blocks; only the skip's gate differs.

U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597. Attention gates: Oktay et al.
2018, https://arxiv.org/abs/1804.03999. Shapes in comments are batch, channels, height, width.
"""

import torch
from torch import Tensor, nn

from tumorseg.core.params import NETWORKS, NetworkParams
from tumorseg.training.encoders import EfficientNetLite0, PlainEncoder, double_conv


class PassSkip(nn.Module):
    """The plain U-Net's skip connection."""

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Returns `skip`, whatever `signal`, from the level below."""
        return skip


class AttentionGate(nn.Module):
    """Additive attention gate: scales a skip connection x by a map computed from x and g.

    α = σ(ψ(ReLU(W_x x + W_g g))), output α·x, with 1×1 convolutions W_x, W_g and ψ; g, from the
    level below, has already been upsampled to the size of x.

    Args:
        skip: Channels of x.
        signal: Channels of g.
    """

    def __init__(self, skip: int, signal: int) -> None:
        super().__init__()
        self.from_skip = nn.Conv2d(skip, skip, 1)  # W_x
        self.from_signal = nn.Conv2d(signal, skip, 1)  # W_g
        self.attention = nn.Conv2d(skip, 1, 1)  # ψ

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
        encoder: Images → the features of each level, of which the finest has height and width of
            the image divided by `stride`, each further one half of those before.
        channels: Channels of the decoder's levels, from the finest on.
        norm: What follows each convolution of the decoder, as in `PlainEncoder`.
        stride: Of the encoder's first level.
    """

    def __init__(
        self, encoder: PlainEncoder | EfficientNetLite0, channels: list[int], norm: str, stride: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        *skips, bottom = encoder.channels
        below = [*channels[1:], bottom]
        # From the coarsest level to the finest: channels of the signal from the level below, of the
        # skip connection, and of the result.
        up = list(zip(below, skips, channels, strict=True))[::-1]
        self.upsamplers = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, _, o in up)
        self.decoders = nn.ModuleList(double_conv(skip + o, o, norm) for _, skip, o in up)
        self.head = nn.Conv2d(channels[0], stride**2, 1)
        self.unfold = nn.PixelShuffle(stride)
        # Tumour is rare: start from a probability of 2% (Lin et al. 2017), not from 50%.
        nn.init.constant_(self.head.bias, -4.0)  # type: ignore[arg-type]
        # Gates last: with the same seed both networks start from the same shared weights.
        self.gates = nn.ModuleList(self.gate(skip, o) for _, skip, o in up)

    def gate(self, skip: int, signal: int) -> nn.Module:
        """What a skip connection of that many channels passes through."""
        return PassSkip()

    def forward(self, image: Tensor) -> Tensor:
        """Computes the logits of tumour, (B, 1, H, W), from normalised images, (B, 1, H, W)."""
        *skips, x = self.encoder(image)  # B, C, H/S, W/S …; the bottom: B, 256, H/16S, W/16S
        for upsample, gate, decoder in zip(self.upsamplers, self.gates, self.decoders, strict=True):
            x = upsample(x)  # B, C, 2H', 2W'
            skip = gate(skips.pop(), x)  # B, C, 2H', 2W'
            x = decoder(torch.cat([skip, x], dim=1))  # B, C, 2H', 2W'
        return self.unfold(self.head(x))  # B, 1, H, W


class AttentionUNet(UNet):
    """The Attention U-Net: a U-Net with an additive attention gate on every skip connection."""

    def gate(self, skip: int, signal: int) -> nn.Module:
        """An attention gate."""
        return AttentionGate(skip, signal)


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
    channels, norm, stride = list(params.channels), params.norm, params.space_to_depth
    if params.encoder == "efficientnet_lite0":
        return CLASSES[name](EfficientNetLite0(), channels, norm, stride)
    return CLASSES[name](PlainEncoder(channels, norm, stride), channels[:-1], norm, stride)
