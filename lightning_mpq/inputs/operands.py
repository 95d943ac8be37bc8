"""What sums of convolutions' outputs, and products of attention, read: found, with ranges, in one pass over data."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..network.calibration import Calibration
from ..network.isolation import isolated
from ..policy import BitPolicy
from ..schemes import InputScheme
from ..tools.distributed import gather
from ..tools.warning import warn
from .calibrate import InputRanges
from .histogram import merged
from .operations import PRODUCTS, Site
from .quantizer import InputRange
from .range_search import best_range
from .same_tensors import sharing
from .site_watch import SiteWatch

OPERAND_SCHEME = InputScheme(8)
"""How what sums and averages read is quantized, unless a policy says otherwise."""


class Operands:
    """Sums and averages of nothing but outputs of convolutions, products of attention, and what these read.

    Products are those of what Linear layers and convolutions compute: of queries with keys, and of what becomes of
    that with values. They are quantized only where a policy names them.

    Attributes:
        sources: Site to the layers whose outputs it is computed of, in the order in which they are called.
    """

    def __init__(self, calibration: Calibration, products: bool = True) -> None:
        """Look at a float model in one pass over the batches of all processes; it is left as it was.

        Args:
            calibration: The model and its batches.
            products: Whether products are looked at, which takes a while where sequences are long.
        """
        watch = SiteWatch(calibration.model, products)
        with watch.hooks(), isolated(calibration.model), torch.no_grad():
            calibration.each(lambda number, batch: watch.pass_of(calibration, batch, number), "looking at sums")
        everywhere = gather((watch.found(), watch.histograms))
        sites = [site for site in everywhere[0][0] if all(site in found for found, _ in everywhere)]
        self.sources = {
            site: tuple(dict.fromkeys(layer for found, _ in reversed(everywhere) for layer in found[site]))
            for site in sites
        }
        self._histograms = everywhere[0][1]
        for _, others in everywhere[1:]:
            for operand, histogram in others.items():
                if operand in self._histograms:
                    self._histograms[operand].merge(histogram)
        self._readers = sharing(watch.read)

    @property
    def owners(self) -> dict[str, str]:
        """Sum or average, by its name, to the last convolution before it: it is quantized if that one's inputs are."""
        return {site.name: sources[-1] for site, sources in self.sources.items() if site.kind not in PRODUCTS}

    def schemes(self, policy: BitPolicy) -> dict[str, InputScheme]:
        """Return site to scheme, as a policy says or leaves it to the owners of sites.

        Raises:
            ValueError: If the policy names what is no site here.
        """
        if policy.operands is not None:
            known = {site.name for site in self.sources}
            if unknown := sorted(set(policy.operands) - known):
                raise ValueError(
                    f"The policy quantizes what {unknown[0]!r} reads, which is no sum or average of convolutions' "
                    f"outputs and no product of attention here. There are: {', '.join(sorted(known)) or 'none'}."
                )
            return dict(policy.operands)
        return schemes_by_owners(policy, self.owners)

    def ranges(self, policy: BitPolicy, layers: Mapping[str, InputRange]) -> dict[str, InputRange]:
        """Return the range of each operand under its name, see `Site.operand_name`.

        An operand that is the input of a layer, quantized in the same way, has that layer's range.

        Args:
            policy: The policy.
            layers: Layer to the range of its inputs.
        """
        inputs = policy.inputs()
        return self._ranges(self.schemes(policy), {layer: (inputs[layer], found) for layer, found in layers.items()})

    def offered(self, layers: InputRanges) -> InputRanges:
        """Return the range of each operand in `OPERAND_SCHEME`.

        Args:
            layers: Ranges of layers: an operand that is the input of one of them has its range.
        """
        own = {layer: (scheme, found) for (layer, scheme), found in layers.items() if scheme == OPERAND_SCHEME}
        everywhere = self._ranges(dict.fromkeys(self.owners, OPERAND_SCHEME), own)
        return {(name, OPERAND_SCHEME): found for name, found in everywhere.items()}

    def _ranges(
        self, schemes: Mapping[str, InputScheme], layers: Mapping[str, tuple[InputScheme, InputRange]]
    ) -> dict[str, InputRange]:
        found, zero = {}, []
        for name, scheme in schemes.items():
            site = Site.named(name)
            for index in range(site.operands):
                readers = self._readers[site, index]
                shared = (layers[r] for r in readers if isinstance(r, str) and r in layers and layers[r][0] == scheme)
                own = merged([self._histograms[reader] for reader in readers if not isinstance(reader, str)])
                found[site.operand_name(index)] = next(shared, (scheme, best_range(own, scheme)))[1]
                zero += [name] if not own.reach else []
        if zero:
            warn(
                f"What {', '.join(dict.fromkeys(zero))} read is zero in all calibration batches: any other value will "
                "be rounded to whole numbers. Calibrate on batches that activate these branches."
            )
        return found


def schemes_by_owners(policy: BitPolicy, owners: Mapping[str, str]) -> dict[str, InputScheme]:
    """Return site to scheme where a policy leaves it open: as soon as the inputs of its owner have a range.

    Args:
        policy: The policy.
        owners: See `Operands.owners`.
    """
    quantized = {layer for layer, scheme in policy.inputs().items() if scheme.needs_range}
    return {site: OPERAND_SCHEME for site, owner in owners.items() if owner in quantized}
