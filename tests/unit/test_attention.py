import numpy as np
import pytest
import torch

from tumorseg.core.params import NetworkParams
from tumorseg.imaging.preprocess import to_input
from tumorseg.reporting.figures import attention_maps
from tumorseg.training.networks import build_network

IMAGES = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8)


@pytest.mark.parametrize(("space_to_depth", "sides"), [(1, [16, 32, 64]), (2, [8, 16, 32])])
def test_maps_are_the_gates_coefficients_from_coarse_to_fine(space_to_depth, sides) -> None:
    torch.manual_seed(0)
    params = NetworkParams(
        encoder="plain", channels=[4, 8, 16, 32], norm="batch", space_to_depth=space_to_depth
    )
    network, expected = build_network("attention_unet", params).eval(), []
    maps = attention_maps(network, IMAGES)
    assert [found.shape for found in maps] == [(3, side, side) for side in sides]
    for gate in network.gates:
        gate.register_forward_hook(
            lambda gate, inputs, _: expected.append(gate.coefficients(*inputs)[:, 0].numpy())
        )
    with torch.inference_mode():
        network(torch.from_numpy(np.stack([to_input(image) for image in IMAGES])))
    for found, map_of_gate in zip(maps, expected, strict=True):
        assert found.dtype == np.float32 and 0 < found.min() < found.max() < 1
        np.testing.assert_allclose(found, map_of_gate, rtol=1e-6)
