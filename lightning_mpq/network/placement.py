"""Where the weights of a model lie: on one device, with values, alike on all processes, or they are refused."""

from __future__ import annotations

from itertools import chain

from torch import nn

from ..tools.distributed import active, errors_shared, gather
from .sharded import is_sharded

_AGAIN = "Load it onto one device (from_pretrained without device_map, or model.to(device)"


def refuse_spread(model: nn.Module) -> None:
    """Refuse a model whose weights have no values, lie on several devices, or are cut between processes.

    Raises:
        ValueError: If they do.
    """
    name = type(model).__name__
    if is_sharded(model):
        raise ValueError(
            f"The parameters of {name} are cut between processes. Let MixedPrecisionQuantization put them together at "
            "the end of a fit with strategy='fsdp', or call lightning_mpq.network.sharded.gather_whole(model) in every "
            "process first."
        )
    devices: dict[str, str] = {}
    for own, parameter in model.named_parameters():
        devices.setdefault(str(parameter.device), own)
    if "meta" in devices:
        raise ValueError(
            f"The parameter {devices['meta']!r} of {name} is on the meta device, without values: it was never loaded, "
            f"or device_map has put it on disk or on the processor. {_AGAIN}; model.to_empty(device=...) and "
            "load_state_dict where it was made without values)."
        )
    placed = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1 or len(placed) > 1:
        shown = ", ".join(f"{own!r} on {device}" for device, own in devices.items()) if len(devices) > 1 else placed
        raise ValueError(
            f"The parameters of {name} lie on several devices ({shown}). {_AGAIN}), in bfloat16 if it is large, and "
            "keep rounded candidates on disk by cache_dir."
        )


def refuse_different_layers(model: nn.Module) -> None:
    """Refuse processes whose models differ in more than values; every process must call this.

    Raises:
        ValueError: If one has a parameter or buffer that another has not, or has in another shape or type.
    """
    with errors_shared():
        refuse_spread(model)
    if not active():
        return
    named = chain(model.named_parameters(), model.named_buffers())
    own = [f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in named]
    first, *others = gather(own)
    for number, other in enumerate(others, start=1):
        if different := sorted(set(first) ^ set(other)):
            holder = 0 if different[0] in first else number
            raise ValueError(
                f"The processes hold models with different layers: rank {holder} alone of 0 and {number} has "
                f"{different[0]}. Build the same model on every rank, from the same arguments."
            )
