"""The layers of a model rounded one after the other, in a copy that takes each rounded weight at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..inputs.quantizer import InputRange
from ..inputs.sites import inputs_quantized
from ..network.calibration import Calibration
from ..network.isolation import isolated
from ..network.layer_kinds import rows_to_weight, weight_rows
from ..network.layerwise import LayerwiseForward, Stop
from ..network.lockstep import LockstepForward
from ..network.named_weights import named_layers
from ..quantizers import QuantizedRows, RowRounding
from ..schemes import InputScheme, WeightScheme
from ..tools.copying import copied
from ..tools.distributed import errors_shared, gather, on_rank_zero
from ..tools.finite import all_finite
from ..tools.progress import Progress
from .held_out import FIXED, Fit, Half, choose_fit, target
from .joint_moments import JointMoment, JointMoments, is_projected, joint_moments
from .kept_layers import KeptLayer, KeptLayers
from .parts_of_batches import PARTS, parts_of_batches


class LayerSequence:
    """Rounds layers one after the other, in a copy of the model that takes each rounded weight at once.

    Attributes:
        found: Layer name to rounded weight.
        unpaired: Layers rounded for the outputs of their own weights, because rows in the two passes may not be those
            of the same samples.
        unseen: Layers that the copy did not call.
    """

    def __init__(
        self,
        calibration: Calibration,
        schemes: Mapping[str, WeightScheme],
        known: Mapping[str, QuantizedRows],
        damping: float | None,
        kept: KeptLayers | None,
    ) -> None:
        self._calibration, self._schemes, self._damping, self._kept = calibration, schemes, damping, kept
        self._places = parts_of_batches(list(calibration.filled()))
        self._twin = copied(calibration.model)
        self._copies = named_layers(self._twin, remove_duplicate=False)
        self._inputs: Callable[[], AbstractContextManager[None]] = nullcontext
        self.found = dict(known)
        self.unpaired: dict[str, None] = {}
        self.unseen: dict[str, None] = {}
        for layer, quantized in known.items():
            _set_weight(self._copies[layer], quantized)

    def quantize_inputs(self, schemes: Mapping[str, InputScheme], ranges: Mapping[str, InputRange]) -> None:
        """Let layers of the copy compute with quantized inputs."""
        layers = {layer: self._copies[layer] for layer in schemes}
        self._inputs = partial(inputs_quantized, layers, schemes, ranges)

    def round(
        self,
        passes: type[LockstepForward | LayerwiseForward],
        statistics: Callable[[nn.Module], AbstractContextManager[None]],
        progress: Progress | None,
    ) -> set[str]:
        """Round all layers; return those that some pass called again when they had been rounded."""
        model, twin = self._calibration.model, self._twin
        floats = {name: named_layers(model, remove_duplicate=False)[name] for name in self._schemes}
        twins = {name: self._copies[name] for name in self._schemes}
        with (
            isolated(model),
            isolated(twin),
            statistics(model),
            statistics(twin),
            torch.no_grad(),
            self._inputs(),
            passes(self._calibration, floats, "after") as float_passes,
            passes(self._calibration.on(twin), twins, "before") as twin_passes,
        ):
            for number, (layer, module) in enumerate(floats.items()):
                if progress is not None:
                    done = number / len(floats)
                    progress(done, f"round {layer}, the {number} layers before it being rounded")
                self._round_one(layer, module, float_passes.at(layer), twin_passes.at(layer))
            repeated = gather(float_passes.repeated | twin_passes.repeated)
        return set().union(*repeated)

    def _round_one(
        self, layer: str, module: nn.Module, floats: Iterable[Stop | None], twins: Iterable[Stop | None]
    ) -> None:
        kept = self._kept
        found = None if kept is None else on_rank_zero(partial(kept.find, layer, self._schemes[layer]))
        if found is not None:
            _go_on(floats, twins)
        else:
            moments = joint_moments(module, floats, twins, self._places)
            if not moments.parts:
                self.unseen[layer] = None
                return
            found = on_rank_zero(partial(self._rounded, layer, module, moments))
        if not found.paired:
            self.unpaired[layer] = None
        self.found[layer] = found.rounded
        _set_weight(self._copies[layer], found.rounded)

    def _rounded(self, layer: str, module: nn.Module, moments: JointMoments) -> KeptLayer:
        """Round a layer, and keep it if it is to be kept."""
        if not all(all_finite(mean) for part in moments.parts for mean in part.means()):
            raise NonFiniteError(f"The inputs of the layer {layer!r} are NaN or infinite, or too large to square.")
        found = KeptLayer(_rounded(module, moments.parts, self._schemes[layer], self._damping), moments.paired)
        if self._kept is not None:
            self._kept.keep(layer, found)
        return found


def _go_on(floats: Iterable[Stop | None], twins: Iterable[Stop | None]) -> None:
    """Let passes come to a layer whose codes are known: they go on from it, and show what they call again."""
    with errors_shared():
        for _ in zip(floats, twins, strict=True):
            pass


def _set_weight(module: nn.Module, quantized: QuantizedRows) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.copy_(rows_to_weight(module, quantized.dequantize(weight.dtype), weight.shape))


def _rounded(module: nn.Module, parts: list[JointMoment], scheme: WeightScheme, damping: float | None) -> QuantizedRows:
    """Round a layer by the moments of all parts, fitted to them as far as each half says of the other.

    The moments are used up: they are most of what it takes.
    """
    rows = weight_rows(module).detach()
    groups = len(parts[0].own)
    weights = rows.unflatten(0, (groups, -1))
    halves = [Half.of(weights, part) for part in parts] if damping is None and len(parts) == PARTS else []
    whole = JointMoment.over(parts)
    if damping is not None:
        fit = Fit(1.0, damping, damping)
    else:
        fit = choose_fit(halves).with_twice_the_samples() if halves else FIXED
    del halves
    aim, rounding = _by_groups(target(weights, whole, fit), groups), RowRounding(whole.own, fit.feedback)
    del whole
    if not is_projected(weights.shape):
        return rounding.round(rows, [scheme], aim=aim)[0].quantized
    rows = aim(rows.to(torch.promote_types(rows.dtype, torch.float32)))  # all at once: of these the moment knows
    del aim
    return rounding.round(rows, [scheme])[0].quantized


def _by_groups(aim: Callable[[Tensor], Tensor], groups: int) -> Callable[[Tensor], Tensor]:
    return lambda rows: aim(rows.unflatten(0, (groups, -1))).flatten(0, 1)
