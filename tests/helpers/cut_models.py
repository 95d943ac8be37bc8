"""A small model that FSDP cuts, on each rank of a process group."""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lightning_mpq.network.placement import refuse_spread
from lightning_mpq.network.sharded import gather_whole, is_sharded


def network() -> nn.Module:
    """Return a model with a shared weight, a frozen one and a buffer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 7, bias=False))
    model[3].weight = model[0].weight
    return model.eval()


def cut(kind: str) -> nn.Module:
    """Return the model under FSDP1 or FSDP2, after a backward pass and a pass without gradients."""
    if kind == "fsdp1":
        policy, device = ModuleWrapPolicy({nn.Linear}), torch.device("cpu")
        model: nn.Module = FullyShardedDataParallel(
            nn.Sequential(*network()[:3]), auto_wrap_policy=policy, device_id=device, use_orig_params=True
        )
    else:
        model, mesh = network(), init_device_mesh("cpu", (2,))
        fully_shard(model[1], mesh=mesh)
        fully_shard(model, mesh=mesh)
    tokens = torch.arange(6)
    model(tokens).sum().backward()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        model(tokens)
    return model


def gathered(kind: str) -> dict[str, Any]:
    """Cut a model, put it together, and tell what came of it."""
    model = cut(kind)
    try:
        refuse_spread(model)
        refused = ""
    except ValueError as error:
        refused = str(error)
    was_cut = is_sharded(model)
    whole = gather_whole(model)
    expected = network() if kind == "fsdp2" else nn.Sequential(*network()[:3])
    state = whole.state_dict()
    return {
        "cut": was_cut,
        "still": is_sharded(whole),
        "refused": refused,
        "types": [type(module).__name__ for module in whole.modules()],
        "equal": {name: torch.equal(value, state[name]) for name, value in expected.state_dict().items()},
        "tied": kind == "fsdp1" or whole[3].weight is whole[0].weight,
        "outputs": torch.equal(whole.eval()(torch.arange(6)), expected.eval()(torch.arange(6))),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in whole.modules()),
        "gradients": all(parameter.requires_grad for parameter in whole.parameters()),
    }
