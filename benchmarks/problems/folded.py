"""Networks as they are deployed: BatchNorm layers merged into the convolutions in front of them."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """Return a copy in which every BatchNorm layer after a convolution has become that convolution's scale and bias.

    Args:
        network: A network that ``torch.fx`` can trace, in eval mode; left as it was.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> [type(layer).__name__ for layer in folded(net).children()]
        ['Conv2d', 'ReLU']
    """
    traced = fx.symbolic_trace(network)
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        norm = traced.get_submodule(str(node.target))
        convolution = traced.get_submodule(str(before.target))
        if isinstance(norm, _BatchNorm) and isinstance(convolution, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()
