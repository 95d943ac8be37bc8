"""What training does around fake-quantized layers: compiled, in low precision, sparse, and on several processes."""

import pytest
import torch
from torch import nn

from lightning_mpq.finetune import FakeQuantizedLayer, fake_quantize
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

POLICY = BitPolicy({"0": WeightScheme(2, grid="half"), "4": WeightScheme(3, granularity=5)})


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def images(count=6):
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_a_network_compiled_before_is_compiled_anew_without_a_graph_break():
    plain, net = network(), network()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    compiled(images())
    net.load_state_dict(network().state_dict())
    handles = [fake_quantize(each, POLICY) for each in (plain, net)]
    outputs = [plain(images()), compiled(images())]
    for each in outputs:
        each.square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    for one, two in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad)
    for one, two in zip(*(handle.parameters() for handle in handles), strict=True):
        torch.testing.assert_close(two.grad, one.grad)
    handles[1].restore()
    torch.testing.assert_close(compiled.eval()(images()), net.eval()(images()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_in_full_precision_as_the_packed_model_does(dtype):
    net = network().eval()
    handle = fake_quantize(net, POLICY)
    with torch.autocast("cpu", dtype=dtype):
        outputs = net(images())
    assert outputs.dtype == dtype
    outputs.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in [*net.parameters(), *handle.parameters()])
    handle.pack()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(net(images()), outputs)


def test_a_model_in_bfloat16_computes_what_its_packed_form_does():
    net = network().eval().bfloat16()
    handle = fake_quantize(net, POLICY)
    last = net(images().bfloat16())
    last.float().sum().backward()
    assert next(handle.parameters()).dtype == torch.float32
    handle.pack()
    assert torch.equal(net(images().bfloat16()), last)


def test_casting_and_moving_keep_the_scales():
    net = network()
    handle = fake_quantize(net, POLICY)
    scales = {id(scale): scale.detach().clone() for scale in handle.parameters()}
    net.half().to("cpu").float()
    assert all(torch.equal(scale, scales[id(scale)]) for scale in handle.parameters())


def test_sparse_embeddings_get_dense_gradients():
    net = nn.Sequential(nn.Embedding(6, 4, sparse=True))
    handle = fake_quantize(net, BitPolicy({"0": WeightScheme(2)}))
    net(torch.tensor([1, 2])).sum().backward()
    gradient = next(net.parameters()).grad
    assert gradient.layout == torch.strided
    assert gradient[[0, 3, 4, 5]].count_nonzero() == 0
    assert next(handle.parameters()).grad[[1, 2]].abs().sum() > 0


def test_frozen_weights_stay_while_scales_learn():
    net = network()
    handle = fake_quantize(net, POLICY)
    next(net.parameters()).requires_grad_(False)
    net(images()).square().sum().backward()
    assert next(net.parameters()).grad is None
    assert next(handle.parameters()).grad.abs().sum() > 0


def test_scales_need_not_learn():
    net = network()
    handle = fake_quantize(net, POLICY, learn_scales=False)
    assert list(handle.parameters()) == []
    net(images()).square().sum().backward()
    assert next(net.parameters()).grad.abs().sum() > 0


def test_a_fake_quantized_model_is_not_taken_for_a_float_one():
    net = network()
    handle = fake_quantize(net, POLICY)
    with pytest.raises(ValueError, match="0: it is fake-quantized"):
        find_groups(net)
    with handle.float_weights():
        assert [group.name for group in find_groups(net)] == ["0", "4"]
    assert isinstance(net[0], FakeQuantizedLayer)


def train(rank_slice, synchronize):
    """Three steps with momentum; the second scale takes part on even samples only."""
    net = network().eval()
    handle = fake_quantize(net, POLICY)
    model = nn.parallel.DistributedDataParallel(net) if synchronize else net
    optimizer = torch.optim.SGD([*net.parameters(), *handle.parameters()], lr=0.1, momentum=0.9)
    batch = images(8)[rank_slice]
    for _ in range(3):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        handle.synchronize_gradients()
        optimizer.step()
    return [value.detach().clone() for value in [*net.parameters(), *handle.parameters()]]


def train_on_rank():
    rank = torch.distributed.get_rank()
    return train(slice(4 * rank, 4 * rank + 4), True)


def unused_on_one_rank():
    net = network().eval()
    handle = fake_quantize(net, POLICY)
    first, second = handle.parameters()
    if torch.distributed.get_rank() == 1:
        second.grad = torch.ones_like(second)
    handle.synchronize_gradients()
    return first.grad is None, second.grad


def test_two_processes_learn_the_same_scales_as_one(pool):
    one, two = pool.run(train_on_rank, seconds=300)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    alone = train(slice(0, 8), False)
    for both, single in zip(one, alone, strict=True):
        torch.testing.assert_close(both, single)


def test_a_scale_without_a_gradient_on_one_process_is_averaged_and_one_without_on_all_is_left_alone(pool):
    for none_at_all, gradient in pool.run(unused_on_one_rank, seconds=300):
        assert none_at_all
        torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5))
