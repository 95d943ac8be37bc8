"""Distillation: the explicit loss and its gradient, and a teacher that leaves no trace."""

import copy

import pytest
import torch
from helpers.named_weights import first, make
from helpers.padded_tokens import one_by_one, padded, tagger
from helpers.state import state_of
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from lightning_mpq.finetune import DistillationLoss, Teacher, fake_quantize, with_extra_loss
from lightning_mpq.finetune.distillation import predictions_of
from lightning_mpq.network.likelihood import Bernoulli, Categorical, Gaussian
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

POLICY = BitPolicy({"0": WeightScheme(2, grid="half"), "5": WeightScheme(2)})


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    )


IMAGES, LABELS = torch.randn(6, 2, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
BATCH = (IMAGES, LABELS)


def test_loss_and_gradient_are_hintons():
    net = network().eval()
    distillation = DistillationLoss(net, Teacher(net), weight=0.7, temperature=3.0, likelihood=Categorical())
    plain = copy.deepcopy(net)
    handle = fake_quantize(net, POLICY)
    with distillation.capture():
        student = net(IMAGES)
    student.retain_grad()
    loss = distillation.loss(BATCH)
    with torch.no_grad():
        teacher = plain(IMAGES)
    expected = (
        0.7
        * 9
        * kl_div(log_softmax(student / 3, 1), log_softmax(teacher / 3, 1), log_target=True, reduction="batchmean")
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    slope = 0.7 * 3 * (torch.softmax(student / 3, 1) - torch.softmax(teacher / 3, 1)) / len(IMAGES)
    torch.testing.assert_close(student.grad, slope.detach())
    assert all(scale.grad.abs().sum() > 0 for scale in handle.parameters())


def test_gaussian_outputs_are_pulled_by_their_squared_change_whatever_the_temperature():
    net = network().eval()
    plain = copy.deepcopy(net)
    distillation = DistillationLoss(net, Teacher(net), temperature=5.0, likelihood=Gaussian(variance=2.0))
    fake_quantize(net, POLICY)
    with distillation.capture():
        student = net(IMAGES)
    torch.testing.assert_close(distillation.loss(BATCH), (student - plain(IMAGES)).square().mean() / 4)


def test_ignored_positions_do_not_count():
    torch.manual_seed(0)
    net = nn.Linear(4, 5)
    model = nn.Sequential(net)
    distillation = DistillationLoss(model, Teacher(model), likelihood=Categorical(class_dim=-1))
    plain = copy.deepcopy(model)
    fake_quantize(model, BitPolicy({"0": WeightScheme(2)}))
    inputs, labels = torch.randn(2, 3, 4), torch.tensor([[1, 2, -100], [0, -100, -100]])
    with distillation.capture():
        student = model(inputs)
    kept = labels != -100
    expected = kl_div(
        log_softmax(student[kept], 1), log_softmax(plain(inputs)[kept], 1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(distillation.loss((inputs, labels)), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("likelihood", [Categorical(class_dim=-1), Gaussian(), Bernoulli()])
def test_the_mean_is_over_tokens_that_are_not_hidden(side, likelihood):
    model = tagger()
    distillation = DistillationLoss(model, Teacher(model), likelihood=likelihood)
    fake_quantize(model, BitPolicy({name: WeightScheme(2) for name in ("inner", "flat", "head")}))

    def loss(batch):
        with distillation.capture():
            model(batch["input_ids"], batch["attention_mask"])
        return distillation.loss(batch).detach()

    sequences = one_by_one()
    tokens = torch.tensor([float(batch["attention_mask"].sum()) for batch in sequences]).double()
    expected = tokens @ torch.stack([loss(batch) for batch in sequences]) / tokens.sum()
    torch.testing.assert_close(loss(padded(side)), expected)


def test_the_teacher_leaves_no_trace_and_is_left_alone():
    net = network().train()
    teacher = Teacher(net)
    before = state_of(teacher)
    handle = fake_quantize(net, POLICY)
    optimizer = torch.optim.SGD([*net.parameters(), *handle.parameters()], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        net(IMAGES).square().mean().backward()
        optimizer.step()
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    random_state = torch.get_rng_state()
    outputs = teacher(IMAGES)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert all(module.training for module in net.modules())
    assert not outputs.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    torch.testing.assert_close(outputs, network().eval()(IMAGES))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_teacher_in_half_precision_takes_half_the_bytes(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(256, 64)).eval()
    full, half = Teacher(net), Teacher(net, dtype)
    assert half.bytes < 0.55 * full.bytes
    outputs = half(IMAGES)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, full(IMAGES), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("case", ["attention", "encoder", "lstm", "cell"])
def test_attention_and_recurrent_layers_teach_in_half_precision(case):
    model, x = make(case)
    torch.testing.assert_close(
        predictions_of(Teacher(model, "bfloat16")(x)), first(model(x)).detach(), rtol=0.05, atol=0.05
    )


def test_a_module_that_holds_a_graph_can_teach():
    net = network()
    net.last = (net[5].weight * 2).sum()
    Teacher(net)(IMAGES)


def test_a_step_that_never_calls_the_module_is_told_so():
    net = network()
    distillation = DistillationLoss(net, Teacher(net))
    with distillation.capture():
        pass
    with pytest.raises(RuntimeError, match="did not call the Sequential"):
        distillation.loss()
    assert not net._forward_hooks


@pytest.mark.parametrize("arguments", [{"weight": -1.0}, {"temperature": 0.0}])
def test_settings_out_of_range(arguments):
    net = network()
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DistillationLoss(net, Teacher(net), **arguments)


def test_extra_loss_joins_whatever_a_step_returns():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert with_extra_loss(one, two) == 3
    assert with_extra_loss({"loss": one, "note": 5}, two) == {"loss": torch.tensor(3.0), "note": 5}
    assert with_extra_loss(None, two) is None


def test_the_teacher_sees_inputs_as_they_were_before_the_student_changed_them():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.body(inputs.mul_(0.5))

    torch.manual_seed(0)
    net, inputs = InPlace(), torch.randn(8, 4)
    distillation = DistillationLoss(net, Teacher(net), likelihood=Gaussian())
    with distillation.capture():
        net(inputs.clone())
    assert distillation.loss() == 0  # nothing is quantized yet
    with distillation.capture():
        net(nn.functional.relu(inputs.requires_grad_()) + 0)
    assert distillation.loss() == 0
