"""A resized module has the shapes asked for, says the same widths, loads the tensors and runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from prunerl.agents.resize import resize


class Noisy(nn.Module):
    """A layer of one's own, as Rainbow has it."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inner, outer
        self.mu = nn.Parameter(torch.randn(outer, inner))
        self.sigma = nn.Parameter(torch.randn(outer, inner))
        self.shift = nn.Parameter(torch.randn(outer))
        self.register_buffer("noise", torch.randn(outer))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.in_features
        return x @ (self.mu + self.sigma).T + self.shift + self.noise


class Plain(nn.Module):
    """Bare parameters."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inner, outer))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def old_norm(norm: Callable[..., nn.Module], inner: int, outer: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(nn.Linear(inner, outer))


def last(layer: nn.Module) -> nn.Module:
    """Give a recurrent layer's output alone."""

    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    return Output()


MODULES: dict[str, tuple[Callable[[int, int], nn.Module], tuple[int, ...]]] = {
    "linear": (nn.Linear, (5, -1)),
    "linear without bias": (lambda i, o: nn.Linear(i, o, bias=False), (5, -1)),
    "layer norm": (lambda i, o: nn.Sequential(nn.Linear(i, o), nn.LayerNorm(o)), (5, -1)),
    "conv1d": (lambda i, o: nn.Conv1d(i, o, 3, padding="same"), (5, -1, 8)),
    "conv2d": (lambda i, o: nn.Conv2d(i, o, 3, padding_mode="circular", padding=1), (5, -1, 8, 8)),
    "transposed": (lambda i, o: nn.ConvTranspose2d(i, o, 3), (5, -1, 8, 8)),
    "depthwise": (lambda i, o: nn.Sequential(nn.Conv2d(i, o, 1), nn.Conv2d(o, o, 3, groups=o)), (5, -1, 8, 8)),
    "grouped": (lambda i, o: nn.Conv2d(2 * i, 2 * o, 3, groups=2), (5, -2, 8, 8)),
    "batch norm": (lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3), nn.BatchNorm2d(o)), (5, -1, 8, 8)),
    "group norm": (lambda i, o: nn.Sequential(nn.Conv2d(i, 2 * o, 3), nn.GroupNorm(2, 2 * o)), (5, -1, 8, 8)),
    "rms norm": (lambda i, o: nn.Sequential(nn.Linear(i, o), nn.RMSNorm(o)), (5, -1)),
    "prelu": (lambda i, o: nn.Sequential(nn.Linear(i, o), nn.PReLU(o)), (5, -1)),
    "lstm": (lambda i, o: last(nn.LSTM(i, o, num_layers=2, batch_first=True)), (5, 3, -1)),
    "lstm, both ways": (lambda i, o: last(nn.LSTM(i, o, num_layers=2, bidirectional=True)), (5, 3, -1)),
    "lstm, projected": (lambda i, o: last(nn.LSTM(i, 2 * o, proj_size=o)), (5, 3, -1)),
    "gru": (lambda i, o: last(nn.GRU(i, o, num_layers=3)), (5, 3, -1)),
    "gru cell": (nn.GRUCell, (5, -1)),
    "embedding": (lambda i, o: nn.Embedding(7, o), ()),
    "weight norm": (lambda i, o: parametrizations.weight_norm(nn.Linear(i, o)), (5, -1)),
    "old weight norm": (lambda i, o: old_norm(nn.utils.weight_norm, i, o), (5, -1)),
    "spectral norm": (lambda i, o: parametrizations.spectral_norm(nn.Linear(i, o)), (5, -1)),
    "old spectral norm": (lambda i, o: old_norm(nn.utils.spectral_norm, i, o), (5, -1)),
    "noisy": (lambda i, o: nn.Sequential(Noisy(i, o), nn.Tanh(), Noisy(o, 2)), (5, -1)),
    "plain parameter": (Plain, (5, -1)),
}


def attributes(module: nn.Module) -> list[dict[str, object]]:
    """Return what each part says of its widths."""
    return [
        {k: tuple(v) if isinstance(v, tuple) else v for k, v in vars(part).items() if isinstance(v, int | tuple)}
        for part in module.modules()
    ]


@pytest.mark.parametrize("name", MODULES)
def test_a_resized_module_is_one_made_so(name: str) -> None:
    make, shape = MODULES[name]
    wide, narrow = make(6, 8).eval(), make(4, 3).eval()
    tensors = narrow.state_dict()
    parameters = [n for n, _ in wide.named_parameters()]
    resize(wide, {n: tuple(t.shape) for n, t in tensors.items()})
    wide.load_state_dict(tensors)
    assert attributes(wide) == attributes(narrow)
    assert [n for n, _ in wide.named_parameters()] == parameters
    inputs = torch.arange(7) if shape == () else torch.randn([n if n > 0 else -4 * n for n in shape])
    with torch.no_grad():
        assert torch.equal(wide(inputs), narrow(inputs))


@pytest.mark.parametrize("name", MODULES)
def test_one_update_moves_every_parameter(name: str) -> None:
    make, shape = MODULES[name]
    wide, narrow = make(6, 8), make(4, 3)
    resize(wide, {n: tuple(t.shape) for n, t in narrow.state_dict().items()})
    wide.load_state_dict(narrow.state_dict())
    inputs = torch.arange(7) if shape == () else torch.randn([n if n > 0 else -4 * n for n in shape])
    wide(inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in wide.parameters())


def test_equal_shapes_change_nothing() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    before = dict(network.named_parameters())
    resize(network, {n: tuple(t.shape) for n, t in before.items()})
    assert all(p is before[n] for n, p in network.named_parameters())


def test_a_tensor_used_twice_stays_one_and_frozen_ones_stay_frozen() -> None:
    network = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    network["b"].weight = network["a"].weight
    network["a"].bias.requires_grad_(False)
    resize(network, {"a.weight": (3, 4), "b.weight": (3, 4), "a.bias": (3,), "b.bias": (3,)})
    assert network["b"].weight is network["a"].weight
    assert not network["a"].bias.requires_grad
    assert network["b"].bias.requires_grad


@pytest.mark.parametrize(
    ("module", "shapes", "message"),
    [
        (nn.Sequential(nn.Linear(4, 8)), {"0.wait": (3, 4)}, "no parameter or buffer '0.wait'"),
        (nn.Sequential(nn.Linear(4, 8)), {"7.weight": (3, 4)}, "no parameter or buffer '7.weight'"),
        (nn.Sequential(nn.LSTM(4, 8, num_layers=2)), {"0.weight_hh_l1": (12, 3)}, "one hidden size"),
        (nn.Sequential(nn.GroupNorm(2, 8)), {"0.weight": (3,), "0.bias": (3,)}, "cannot be split into 2 groups"),
        (nn.Sequential(nn.MultiheadAttention(8, 2)), {"0.in_proj_bias": (12,)}, "Keep it whole"),
    ],
)
def test_what_a_layer_cannot_be_is_refused_and_nothing_is_changed(
    module: nn.Module, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    before = copy.deepcopy(module)
    with pytest.raises(ValueError, match=message):
        resize(module, shapes)
    assert attributes(module) == attributes(before)
    assert [p.shape for p in module.parameters()] == [p.shape for p in before.parameters()]
