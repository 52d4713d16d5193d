import numpy as np
import pytest
import torch

from tumorseg.core.errors import InputError
from tumorseg.core.params import NetworkParams
from tumorseg.imaging.preprocess import to_input
from tumorseg.reporting.figures import attention_maps
from tumorseg.training.networks import AttentionGate, build_network

IMAGES = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8)


def gated(space_to_depth: int):
    torch.manual_seed(0)
    params = NetworkParams(channels=[4, 8, 16, 32], norm="batch", space_to_depth=space_to_depth)
    return build_network("attention_unet", params).eval()


@pytest.mark.parametrize(("space_to_depth", "sides"), [(1, [16, 32, 64]), (2, [8, 16, 32])])
def test_a_map_a_gate_from_coarse_to_fine(space_to_depth: int, sides: list[int]) -> None:
    maps = attention_maps(gated(space_to_depth), IMAGES)
    assert [found.shape for found in maps] == [(3, side, side) for side in sides]
    for found in maps:
        assert found.dtype == np.float32 and 0 < found.min() < found.max() < 1


@pytest.mark.parametrize("space_to_depth", [1, 2])
def test_maps_are_the_gate_s_own_coefficients(space_to_depth: int) -> None:
    network, seen = gated(space_to_depth), {}
    hooks = [
        gate.register_forward_hook(lambda gate, inputs, _: seen.update({gate: inputs}))
        for gate in network.gates
    ]
    maps = attention_maps(network, IMAGES)
    for hook in hooks:
        hook.remove()
    for gate, found in zip(network.gates, maps, strict=True):
        assert isinstance(gate, AttentionGate)
        with torch.inference_mode():
            expected = gate.coefficients(*seen[gate])[:, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    network = gated(1)
    image = torch.from_numpy(np.stack([to_input(one) for one in IMAGES]))
    before = network(image)
    first = attention_maps(network, IMAGES)
    with pytest.raises(RuntimeError):
        attention_maps(network, IMAGES[:, :63])  # no multiple of the poolings
    assert torch.equal(network(image), before)
    # What a hook left behind would see a map twice.
    assert [found.shape for found in attention_maps(network, IMAGES)] == [m.shape for m in first]


def test_a_network_without_gates_has_no_maps() -> None:
    params = NetworkParams(channels=[4, 8, 16], norm="batch", space_to_depth=1)
    with pytest.raises(InputError, match="no attention gates"):
        attention_maps(build_network("unet", params), IMAGES)
