"""The pretrained encoder: its weights of ImageNet, and what it refuses."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from tests.conftest import TINY_TRAIN
from tumorseg.core.errors import InputError
from tumorseg.core.params import CommonTrainParams, NetworkParams
from tumorseg.training.encoders import EfficientNetLite0, conv, read_weights
from tumorseg.training.networks import build_network
from tumorseg.training.segmenter import Segmenter

MILITARY_UNIFORM = 652  # of ImageNet's classes


def test_it_sees_what_imagenet_taught() -> None:
    """With the published classifier on top it recognises a photograph of Grace Hopper."""
    weights = read_weights(None)
    encoder, top = EfficientNetLite0(), nn.Sequential(*conv(320, 1280, 1))
    encoder.stem = nn.Sequential(*conv(3, 32, 3, 2))  # for colours
    own = list(encoder.state_dict())  # in the published order
    encoder.load_state_dict(dict(zip(own, weights.values(), strict=False)))
    last = [v for name, v in weights.items() if name.startswith(("_conv_head", "_bn1"))]
    top.load_state_dict(dict(zip(top.state_dict(), last, strict=True)))
    picture = Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg")
    picture = picture.crop((0, 0, picture.width, picture.width)).resize((224, 224))
    image = torch.from_numpy((np.asarray(picture, np.float32) - 127) / 128).permute(2, 0, 1)
    with torch.inference_mode():
        features = top.eval()(encoder.eval()(image[None])[-1]).mean((2, 3))
    logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert logits.argmax() == MILITARY_UNIFORM


def test_a_grey_slice_is_what_three_equal_colours_are() -> None:
    weights, encoder = read_weights(None), EfficientNetLite0()
    encoder.load_pretrained(None)
    grey = torch.randn(1, 1, 64, 64)
    colour = conv(3, 32, 3, 2)[:2]
    colour[1].load_state_dict({"weight": weights["_conv_stem.weight"]})
    expected = nn.Sequential(*colour)(grey.expand(1, 3, 64, 64))
    assert torch.allclose(encoder.stem[:2](grey), expected, atol=1e-5)
    assert [f.shape[1:] for f in encoder(grey)] == [
        (channels, 32 >> level, 32 >> level) for level, channels in enumerate(encoder.channels)
    ]


def test_weights_may_come_from_a_file_and_wrong_ones_are_named(tmp_path) -> None:
    network, weights = EfficientNetLite0(), read_weights(None)
    weights["_blocks.15._bn2.bias"] += 1.0
    for suffix, save in ((".safetensors", save_file), (".pth", torch.save)):
        save({k: v.contiguous() for k, v in weights.items()}, tmp_path / f"own{suffix}")
        network = EfficientNetLite0()
        network.load_pretrained(tmp_path / f"own{suffix}")
        assert torch.equal(network.levels[-1][-1][-1].bias, weights["_blocks.15._bn2.bias"])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for name, words in (
        ("other.pth", "does not hold the weights of EfficientNet-Lite0"),
        ("broken.pth", "cannot be read"),
        ("none.pth", "is missing; null takes the installed ones"),
    ):
        with pytest.raises(InputError, match=words):
            network.load_pretrained(tmp_path / name)


@pytest.mark.parametrize(("encoder", "rates"), [("plain", {1.0}), ("efficientnet_lite0", {1, 0.3})])
def test_a_pretrained_encoder_learns_more_slowly(encoder, rates) -> None:
    params = NetworkParams(encoder=encoder, channels=[4] * 4, norm="batch", space_to_depth=2)
    network = build_network("attention_unet", params)
    common = CommonTrainParams.model_validate(TINY_TRAIN["common"])
    groups = Segmenter(network, common).configure_optimizers().param_groups
    assert {group["lr"] / common.learning_rate for group in groups} == rates
    rate = {id(p): group["lr"] / common.learning_rate for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert rate.pop(id(parameter)) == (min(rates) if name.startswith("encoder") else 1), name
    assert not rate


@pytest.mark.parametrize("wrong", [{"channels": [4] * 5}, {"space_to_depth": 1}])
def test_a_pretrained_encoder_has_its_own_levels(wrong) -> None:
    right = {"encoder": "efficientnet_lite0", "channels": [4] * 4, "norm": "batch"}
    with pytest.raises(ValidationError, match="needs 4 channels and a space_to_depth of 2"):
        NetworkParams.model_validate(right | {"space_to_depth": 2} | wrong)
