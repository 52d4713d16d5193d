"""One tester for every architecture."""

import numpy as np
import pytest
import torch

from tumorseg.core.params import NETWORKS, NetworkParams
from tumorseg.registry.export import export_onnx, parity
from tumorseg.training.encoders import PlainEncoder
from tumorseg.training.loss import bce_dice_loss, dice_loss
from tumorseg.training.networks import AttentionGate, Probabilities, UNet, build_network

TINY = NetworkParams(encoder="plain", channels=[4, 8, 16, 32], norm="batch", space_to_depth=1)
FOLDED = TINY.model_copy(update={"space_to_depth": 2})
INSTANCE = TINY.model_copy(update={"norm": "instance"})
PRETRAINED = FOLDED.model_copy(update={"encoder": "efficientnet_lite0"})
EVERY = [(name, p) for name in NETWORKS for p in (TINY, FOLDED, INSTANCE, PRETRAINED)]


@pytest.fixture(
    params=EVERY,
    ids=lambda case: f"{case[0]}, {case[1].encoder}, {case[1].norm}, {case[1].space_to_depth}",
)
def network(request: pytest.FixtureRequest) -> UNet:
    torch.manual_seed(0)
    return build_network(*request.param)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 1, 32, 64)])
def test_logits_have_the_shape_of_the_image(network: UNet, shape) -> None:
    assert network(torch.randn(shape)).shape == shape


def test_every_parameter_learns(network: UNet) -> None:
    target = (torch.rand(2, 1, 64, 64) > 0.8).float()
    bce_dice_loss(network(torch.randn(2, 1, 64, 64)), target).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("name", "params", "flips"),
    [("attention_unet", PRETRAINED, True), ("unet", INSTANCE, False)],
    ids=["attention, pretrained encoder, flips", "plain, instance"],
)
def test_onnx_agrees_with_pytorch_for_any_batch(name, params, flips: bool, tmp_path) -> None:
    served = Probabilities(build_network(name, params), flips).eval()
    export_onnx(served, 64, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64)).astype(np.uint8)
    for count in (1, 5):
        assert parity(served, tmp_path / "model.onnx", images[:count]) < 1e-5


@pytest.mark.parametrize("params", [TINY, PRETRAINED], ids=["plain", "pretrained"])
def test_the_gate_is_the_only_difference(params) -> None:
    torch.manual_seed(0)
    plain = build_network("unet", params).state_dict()
    torch.manual_seed(0)
    gated = build_network("attention_unet", params).state_dict()
    extra = set(gated) - set(plain)
    assert set(plain) <= set(gated) and extra and all(key.startswith("gates.") for key in extra)
    for key, value in plain.items():
        assert torch.equal(value, gated[key]), key


def test_a_stem_sees_every_pixel_once_and_puts_it_back() -> None:
    network = build_network("unet", FOLDED)
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert isinstance(network.encoder, PlainEncoder)
    folded = network.encoder.fold(image)
    assert folded.shape == (1, 4, 4, 4) and folded.unique().numel() == 64
    assert torch.equal(network.unfold(folded), image)
    assert network.encoder.levels[0][0].in_channels == network.head.out_channels == 4


def test_an_open_gate_makes_the_plain_network() -> None:
    torch.manual_seed(0)
    plain, gated = (build_network(name, TINY).eval() for name in NETWORKS)
    gated.load_state_dict(plain.state_dict(), strict=False)
    for gate in gated.gates:
        assert isinstance(gate, AttentionGate)
        torch.nn.init.constant_(gate.attention.bias, 50.0)  # σ(50) = 1
        torch.nn.init.zeros_(gate.attention.weight)
    image = torch.randn(1, 1, 32, 32)
    assert torch.allclose(plain(image), gated(image), atol=1e-6)


@pytest.mark.parametrize(("name", "millions"), [("unet", 31.03), ("attention_unet", 31.73)])
def test_the_superseded_sizes_can_be_built(name: str, millions: float) -> None:
    wide = TINY.model_copy(update={"channels": [64, 128, 256, 512, 1024], "norm": "none"})
    with torch.device("meta"):
        count = sum(p.numel() for p in build_network(name, wide).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def test_dice_loss_against_hand_computed_values() -> None:
    target = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    sure = 50 * (2 * target - 1)
    assert dice_loss(sure, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-sure, target).item() == pytest.approx(1 - 1 / 5)  # smooth 1 over 2 + 2 + 1
    assert dice_loss(-50 * torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0
    # p = ½ everywhere: 2·1 + 1 over 2 + 2 + 1
    half = torch.zeros(1, 1, 2, 2)
    assert dice_loss(half, target).item() == pytest.approx(1 - 3 / 5)
    combined = bce_dice_loss(half, target, bce_weight=2.0, dice_weight=0.5).item()
    assert combined == pytest.approx(2 * np.log(2) + 0.5 * 0.4)


def test_dice_loss_of_each_slice_or_of_all_pixels() -> None:
    target = torch.zeros(2, 1, 2, 2)
    target[0, 0, 0] = 1.0  # two pixels of the first slice, none of the second
    sure = 50 * (2 * target - 1)
    sure[1, 0, 0, 0] = 50.0  # one false pixel in the second
    # Pooled: 2·2 + 1 over 3 + 2 + 1; by slice: 1, and 0 + 1 over 1 + 0 + 1.
    assert dice_loss(sure, target, over="batch").item() == pytest.approx(1 - 5 / 6)
    assert dice_loss(sure, target).item() == pytest.approx((0 + 1 / 2) / 2)
