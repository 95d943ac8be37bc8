"""Ranges of a network's inputs: in one pass, over all uses, for what layers make of them."""

import pytest
import torch
import torch.distributed as dist
from helpers.networks import Counted, convnet, images, mlp, vectors
from helpers.state import state_of
from torch import nn

from lightning_mpq import Calibration, Gaussian, NonFiniteError
from lightning_mpq.inputs.calibrate import channel_weights, channels_last, input_ranges, ranges_of_policy
from lightning_mpq.inputs.histogram import InputHistogram
from lightning_mpq.inputs.quantizer import InputRange, quantize_inputs, range_between
from lightning_mpq.inputs.range_search import best_range
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme
from lightning_mpq.tools.distributed import alone

FULL = InputScheme(8, clip="absmax")


def test_one_pass_finds_all_ranges_and_leaves_the_model_alone():
    model = Counted(convnet())
    model.train()
    before = state_of(model)
    batches = images(3, 2)
    schemes = [FULL, InputScheme(4), InputScheme(6, symmetric=True)]
    found = input_ranges(Calibration(model, batches), {"network.conv": schemes, "network.head": schemes})
    assert model.passes == 2
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    data = torch.cat(batches)
    assert found["network.conv", FULL] == range_between(float(data.min()), float(data.max()), FULL)
    assert found["network.head", FULL].zero_point == 0  # after a ReLU
    assert len(found) == 6


def test_all_calls_of_a_layer_count():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.layer(100 * x.abs())

    batches = vectors(5)
    found = input_ranges(Calibration(Twice(), batches), {"layer": [FULL]})["layer", FULL]
    assert found == range_between(float(batches[0].min()), float(100 * batches[0].abs().max()), FULL)


def test_hidden_tokens_do_not_count_and_lengths_may_change():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    x = torch.ones(2, 3, 2)
    x[:, 2] = 1e3
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    batches = [{"x": x, "attention_mask": mask}, {"x": x[:, :2], "attention_mask": mask[:, :2]}]
    assert input_ranges(Calibration(Tokens(), batches), {"layer": [FULL]})["layer", FULL] == range_between(0, 1, FULL)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 4), torch.randn(5, 3, 6)),
        (nn.Conv2d(6, 4, 3, groups=2), torch.randn(2, 6, 5, 5)),
        (nn.Conv1d(6, 4, 3), torch.randn(6, 5)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), torch.randn(2, 6, 3, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_channel_counts_as_much_as_its_error_shows_in_the_output(layer, x):
    rows = channels_last(layer, x)
    weights = channel_weights(layer)
    assert rows.shape == (x.numel() // 6, 6)
    shown = []
    for channel in range(6):
        impulse = torch.zeros_like(x if x.dim() > 2 else x[None])
        place = (0, *(size // 2 for size in impulse.shape[1:]))
        place = (*place[:-1], channel) if isinstance(layer, nn.Linear) else (0, channel, *place[2:])
        impulse[place] = 1
        shown.append(float((layer(impulse) - layer(torch.zeros_like(impulse))).square().sum().detach()))
    torch.testing.assert_close(weights / weights.sum(), torch.tensor(shown) / sum(shown))


class Normalized(nn.Module):
    """A token of enormous outputs in each row, whose errors the LayerNorm divides by its size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layer(x)).mean(1))


@pytest.mark.parametrize("likelihood", [Gaussian(), None], ids=["by the loss", "by outputs alone"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_enormous_tokens_that_are_normalized_do_not_widen_the_range(bits, likelihood):
    torch.manual_seed(0)
    model, x = Normalized(), torch.randn(64, 12, 8)
    x[:, 0] *= 200
    scheme = InputScheme(bits)

    def divergence(found: InputRange) -> float:
        with torch.no_grad():
            return float((model(quantize_inputs(x, scheme, *found.tensors())) - model(x)).square().sum())

    found = input_ranges(Calibration(model, x.split(16), likelihood=likelihood), {"layer": [scheme]})["layer", scheme]
    plain = InputHistogram()
    plain.add(x.flatten(0, 1), channel_weights(model.layer))
    reach = float(x.abs().max())
    searched = [divergence(range_between(-reach * 2 ** (-k / 4), reach * 2 ** (-k / 4), scheme)) for k in range(40)]
    assert divergence(found) < 2 * min(searched)
    assert divergence(best_range(plain, scheme)) > 5 * divergence(found)


def test_zeros_are_told_and_get_a_range():
    model = mlp(6, 8, 3, activation=nn.ReLU)
    nn.init.constant_(model[0].bias, -1e3)
    with pytest.warns(UserWarning, match="The inputs of 2 are zero in all calibration batches"):
        found = input_ranges(Calibration(model, vectors(4)), {"2": [FULL]})
    assert found["2", FULL] == InputRange(1.0, 0)


def test_what_was_never_seen_and_what_is_not_finite_are_refused():
    unused = nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(6, 2)})
    calibration = Calibration(unused, vectors(4), forward_fn=lambda model, batch: model["a"](batch))
    with pytest.raises(ValueError, match="The inputs of b were not seen"):
        input_ranges(calibration, {"a": [FULL], "b": [FULL]})
    with pytest.raises(NonFiniteError, match="layer '0' are NaN or infinite in batch 2"):
        input_ranges(Calibration(mlp(6, 2), [*vectors(2), torch.full((1, 6), torch.inf)]), {"0": [FULL]})
    with pytest.raises(ValueError, match="cannot be quantized: it is of type Embedding"):
        input_ranges(Calibration(nn.Sequential(nn.Embedding(3, 3)), [torch.ones(2).long()]), {"0": [FULL]})
    with pytest.raises(ValueError, match="at least one calibration batch"):
        input_ranges(Calibration(mlp(6, 2), []), {"0": [FULL]})


def test_inputs_beyond_float32_are_refused():
    """In which a step is stored: a step of 1 in its place would clip everything."""
    with pytest.raises(NonFiniteError, match=r"inputs of the layer '0' reach 1e\+60, and steps .* float32"):
        input_ranges(Calibration(mlp(3, 2).double(), [torch.full((2, 3), 1e60, dtype=torch.float64)]), {"0": [FULL]})


def test_a_policy_takes_known_ranges_and_finds_the_others():
    model = mlp(6, 8, 3)
    tokens = LayerScheme(WeightScheme(4), InputScheme(8, "token"))
    policy = BitPolicy({"0": LayerScheme(WeightScheme(4), FULL), "2": tokens})
    known = {("0", FULL): InputRange(0.5, 1)}
    assert ranges_of_policy(Calibration(model, []), policy, known) == {"0": InputRange(0.5, 1)}
    assert ranges_of_policy(Calibration(model, vectors(4)), policy)["0"] != InputRange(0.5, 1)


def ranges_of_rank(parts: list[list[torch.Tensor]]) -> dict:
    own = parts[dist.get_rank()]
    return dict(input_ranges(Calibration(convnet(), own), {"conv": [FULL, InputScheme(6)], "head": [InputScheme(4)]}))


def test_two_processes_find_what_one_finds(pool):
    batches = images(3, 2, 4)
    found = pool.run(ranges_of_rank, [batches[:1], batches[1:]])
    with alone():
        alone_found = input_ranges(
            Calibration(convnet(), batches), {"conv": [FULL, InputScheme(6)], "head": [InputScheme(4)]}
        )
    assert found[0] == found[1] == alone_found
