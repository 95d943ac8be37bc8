"""The one loop over calibration batches: what is passed over, counted and refused."""

import copy

import pytest
import torch
from helpers.networks import mlp, vectors
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.network.calibration import Calibration


def test_batches_without_a_sample_are_passed_over_and_do_not_count():
    batches = [torch.zeros(0, 6), *vectors(3, 4), torch.zeros(0, 6)]
    calibration, seen = Calibration(mlp(6, 3), batches), []
    assert calibration.each(lambda number, batch: seen.append((number, len(batch))), "looking") == 2
    assert seen == [(1, 3), (2, 4)]
    assert calibration.samples == 7
    assert [len(batch) for batch in calibration.first(1).batches] == [3]


def test_a_generator_can_be_listed_and_gone_through_again():
    listed = Calibration(mlp(6, 3), (batch for batch in vectors(3, 4))).listed("rounding")
    assert listed.run("rounding") == listed.run("rounding") == 2


@pytest.mark.parametrize("verb", [lambda c: c.run("rounding"), lambda c: c.listed("rounding")])
@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 6)]], ids=["none", "empty"])
def test_nothing_to_go_through_is_a_sentence(verb, batches):
    with pytest.raises(ValueError, match="Rounding needs at least one calibration batch, got none"):
        verb(Calibration(mlp(6, 3), batches))


def test_the_way_a_model_is_called_is_kept_for_others():
    calibration = Calibration(mlp(6, 3), vectors(4), forward_fn=lambda model, batch: model(batch) * 0 + 1)
    other = nn.Linear(6, 2)
    assert calibration.on(other).model is other
    assert torch.equal(calibration.on(other).forward(vectors(4)[0]), torch.ones(4, 2))
    again = Calibration.of(other, calibration, forward_fn=None, loss_fn=None)
    assert again.forward_fn is calibration.forward_fn
    assert again.model is other


def test_progress_counts_batches_and_errors_name_them():
    reported = []
    calibration = Calibration(mlp(6, 3), [*vectors(3, 4), torch.zeros(2, 5)])
    with pytest.raises(TypeError, match="input of batch 3"):
        calibration.run("measuring", lambda fraction, message: reported.append((round(fraction, 2), message)))
    assert reported == [(0.33, "measuring: 1 batches"), (0.67, "measuring: 2 batches")]


class TestInferenceMode:
    @staticmethod
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def test_batches_that_were_made_under_it_are_copied(self):
        with torch.inference_mode():
            kept = [torch.randn(8, 4) * 1]
        taylor = mpq.profile(self.network(), kept, likelihood=mpq.Categorical())
        assert torch.equal(
            taylor.curvature, mpq.profile(self.network(), [kept[0].clone()], likelihood=mpq.Categorical()).curvature
        )

    def test_everything_can_be_done_under_it(self, tmp_path):
        model, batches = self.network(), [torch.randn(8, 4)]
        with torch.inference_mode():
            groups = mpq.find_groups(model)
            rounded = mpq.round_candidates(model, batches, groups, mpq.make_candidates(groups))
            taylor = mpq.profile(model, batches, groups=groups, rounded=rounded, likelihood=mpq.Categorical())
            policy = mpq.allocate(taylor, mpq.Budget(average_bits=8.0)).policy
            mpq.save(mpq.quantize(model, policy, batches, rounded=rounded), tmp_path)
            loaded = mpq.load(tmp_path, self.network())
        for net in (model, loaded):
            assert not any(tensor.is_inference() for tensor in net.state_dict().values())

    @pytest.mark.parametrize("verb", [mpq.profile, mpq.round_candidates])
    def test_weights_that_were_made_under_it_are_a_sentence(self, verb):
        with torch.inference_mode():
            born = self.network()
        with pytest.raises(
            ValueError, match=r"'0.weight' of Sequential was made under torch.inference_mode\(\).*deepcopy"
        ):
            verb(born, [torch.randn(8, 4)])
        verb(copy.deepcopy(born), [torch.randn(8, 4)])
