"""The operator under autograd, autocast, torch.compile and torch.export."""

import copy
import io

import pytest
import torch
from helpers.kernels import assert_close, needs_auto_round, packed_linear
from torch import nn

from lightning_mpq.modules import use_kernels
from lightning_mpq.schemes import WeightScheme

SCHEMES = [WeightScheme(3, 4, "half"), WeightScheme(5, "channel", "asymmetric"), WeightScheme(8, "tensor")]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_operator_keeps_its_promises(recording, scheme, bias):
    layer = packed_linear(6, 10, scheme, bias=bias)[0]
    inputs = torch.randn(2, 3, 10, requires_grad=True)
    parts = (layer.packed_codes, layer.scale, layer.zero_point, layer.bias)
    numbers = (scheme.bits, str(scheme.granularity), scheme.grid, 6, 10, "auto")
    torch.library.opcheck(torch.ops.lightning_mpq.packed_linear, (inputs, *parts, *numbers))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gradients_are_those_of_the_plain_path(recording, scheme):
    nets = [packed_linear(6, 10, scheme), packed_linear(6, 10, scheme)]
    use_kernels(nets[1])
    results = []
    for net in nets:
        inputs = torch.linspace(-1, 1, 60).view(2, 3, 10).requires_grad_()
        loss = net(inputs).pow(3).sum()
        (first,) = torch.autograd.grad(loss, inputs, create_graph=True)
        first.square().sum().backward()
        results.append((first.detach(), inputs.grad, net[0].bias.grad))
    for found, expected in zip(*results[::-1], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_treats_it_as_any_linear_layer(recording, dtype):
    net = packed_linear(6, 10)
    inputs = torch.randn(3, 10)
    with torch.autocast("cpu", dtype):
        expected = net(inputs)
        use_kernels(net)
        assert_close(net(inputs), expected)
    assert recording.calls


def test_inputs_of_another_type_raise_as_in_a_linear_layer(recording):
    net = packed_linear(6, 10)
    use_kernels(net)
    with pytest.raises(RuntimeError, match="dtype|type"):
        net(torch.randn(3, 10, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="shape|size"):
        net(torch.randn(3, 11))


@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs_hold_the_stored_format_alone(recording, strict):
    net = nn.Sequential(packed_linear(6, 10)[0], nn.ReLU())
    expected = net(torch.randn(4, 10))
    use_kernels(net)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(net, (torch.randn(3, 10),), dynamic_shapes=(batch,), strict=strict)
    stored = {name for name in program.state_dict}
    assert stored == {"0.packed_codes", "0.scale", "0.bias"}
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    calls = len(recording.calls)
    for again in (program.module(), torch.export.load(file).module()):
        inputs = torch.randn(5, 10)
        assert_close(again(inputs), net(inputs))
    assert len(recording.calls) > calls + 2
    assert expected.shape == (4, 6)


def test_compiles_whole_and_recompiles_for_another_choice(recording):
    torch._dynamo.reset()
    net = packed_linear(6, 10)
    inputs = torch.randn(3, 10)
    expected = net(inputs)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs), expected)
    use_kernels(net)
    assert_close(compiled(inputs), expected)
    compiled(inputs).sum().backward()
    calls = len(recording.calls)
    assert calls
    use_kernels(net, "plain")
    assert torch.equal(compiled(inputs), expected)
    assert len(recording.calls) == calls


def test_inference_mode_and_tensors_made_in_it(recording):
    with torch.inference_mode():
        net = packed_linear(6, 10)
        inputs = torch.randn(3, 10)
        expected = net(inputs)
        use_kernels(net)
        assert_close(net(inputs), expected)


@needs_auto_round
@pytest.mark.parametrize("strict", [True, False])
def test_auto_round_in_compiled_and_exported_programs(strict):
    torch._dynamo.reset()
    net = packed_linear(48, 64, SCHEMES[0])
    inputs = torch.randn(3, 64)
    with torch.no_grad():
        expected = net(inputs)
        use_kernels(net, "auto-round")
        assert_close(torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")(inputs), expected)
        assert_close(torch.export.export(net, (inputs,), strict=strict).module()(inputs), expected)
