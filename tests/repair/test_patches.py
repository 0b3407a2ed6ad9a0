"""Patches under a kernel, and the refit of convolutions on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunerl.remove import cut
from prunerl.repair.least_squares import least_squares
from prunerl.repair.patches import patches
from prunerl.trace import activity, features, forward, trace, unit_groups
from prunerl.types import State

FORMS: tuple[tuple[type[nn.Module], tuple[int, ...], dict[str, Any]], ...] = (
    (nn.Conv2d, (9, 8), {"kernel_size": 3}),
    (nn.Conv2d, (9, 8), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    (nn.Conv2d, (9, 8), {"kernel_size": 2, "dilation": 3, "padding": 1}),
    (nn.Conv2d, (9, 8), {"kernel_size": 4, "padding": "same"}),
    (nn.Conv2d, (9, 8), {"kernel_size": 3, "padding": "valid"}),
    (nn.Conv1d, (12,), {"kernel_size": 5, "stride": 2, "padding": 2}),
    (nn.Conv3d, (4, 5, 6), {"kernel_size": (2, 3, 2), "stride": 2, "padding": 1}),
)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("form", "image", "options"), FORMS)
def test_patches_times_kernel_are_the_convolution(
    form: type[nn.Module], image: tuple[int, ...], options: dict[str, Any]
) -> None:
    layer, x = form(3, 5, **options), noise(6, 3, *image)
    traced = trace(layer, x[:2])
    (node,) = (n for n in traced.module.graph.nodes if "conv" in n.name)
    seen = patches(node, x, layer.weight.shape)
    assert seen is not None
    made = torch.tensordot(seen, layer.weight, dims=[list(range(-x.dim() + 1, 0)), list(range(1, x.dim()))])
    torch.testing.assert_close((made + layer.bias).movedim(-1, 1), layer(x), rtol=1e-4, atol=1e-5)


def test_a_convolution_of_groups_has_none() -> None:
    x = noise(2, 4, 6, 6)
    traced = trace(nn.Conv2d(4, 4, 3, groups=2), x)
    (node,) = (n for n in traced.module.graph.nodes if "conv" in n.name)
    assert patches(node, x, (4, 2, 3, 3)) is None


@pytest.mark.parametrize(("form", "image", "options"), FORMS)
def test_a_channel_and_its_copy_are_merged(
    form: type[nn.Module], image: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)  # for the layers' initial weights, which take no generator
    first = form(2, 4, 1)
    network = nn.Sequential(first, nn.Tanh(), form(4, 5, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    x = noise(300, 2, *image)
    network(x[:2])
    with torch.no_grad():
        first.weight[3], first.bias[3] = first.weight[0], first.bias[0]
    traced, state = trace(network, x[:2]), State({n: t.detach().clone() for n, t in network.state_dict().items()})
    before = activity(traced, state.tensors, x)
    (group,) = (g for g in unit_groups(traced, state.tensors) if any(s.tensor == "0.weight" for s in g.slices))
    smaller = cut(state, [group], {group.name: torch.tensor([True, True, True, False])}, ())
    assert (forward(traced, smaller.tensors, x) - before.output).abs().max() > 0.01
    targets = [None, features(traced.layers[1], before.outputs["2"]), None]
    fitted = least_squares(traced, smaller.tensors, {}, x, targets)
    assert set(fitted) == {"2.weight", "2.bias"}
    torch.testing.assert_close(forward(traced, {**smaller.tensors, **fitted}, x), before.output, rtol=1e-3, atol=1e-3)
    wanted = state.tensors["2.weight"][:, 0] + state.tensors["2.weight"][:, 3]
    torch.testing.assert_close(fitted["2.weight"][:, 0], wanted, rtol=1e-2, atol=1e-3)


def test_masked_weights_of_a_kernel_stay_zero() -> None:
    torch.manual_seed(0)  # for the layers' initial weights, which take no generator
    network, x = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 3)), noise(50, 1, 6, 6)
    traced, tensors = trace(network, x[:2]), {n: t.detach() for n, t in network.state_dict().items()}
    mask = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.5
    target = features(traced.layers[1], activity(traced, tensors, x).outputs["2"])
    held = {**tensors, "2.weight": tensors["2.weight"] * mask}
    fitted = least_squares(traced, held, {"2.weight": mask}, x, [None, target])
    assert bool((fitted["2.weight"][~mask] == 0).all())
    before, after = (
        (features(traced.layers[1], activity(traced, t, x).outputs["2"]) - target).square().mean()
        for t in (held, {**held, **fitted})
    )
    assert after < before
