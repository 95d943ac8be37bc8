"""What sums and averages of convolutions' outputs read: found, and given ranges, in one pass over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..network.calibration import Calibration
from ..network.hooks import first_argument, hooked
from ..network.isolation import isolated
from ..network.layer_kinds import float_class
from ..policy import BitPolicy
from ..schemes import InputScheme
from ..tools.changed_class import ChangedClass
from ..tools.distributed import gather
from .calibrate import InputRanges
from .histogram import InputHistogram, merged
from .operations import Followed, Site, no_counts
from .quantizer import InputRange
from .range_search import best_range
from .same_tensors import TensorNumbers, sharing
from .sites import input_sites

OPERAND_SCHEME = InputScheme(8)
"""How what sums and averages read is quantized, unless a policy says otherwise."""
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_PRODUCTS = (
    F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, F.scaled_dot_product_attention,
)  # fmt: skip
_Operand = tuple[Site, int]


class Operands:
    """Sums and averages that a model computes of nothing but outputs of convolutions, and what these look like.

    Attributes:
        sources: Site to the convolutions whose outputs it is computed of, in the order in which they are called.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Look at a float model in one pass over the batches of all processes; it is left as it was."""
        watch = _Watch(calibration.model)
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
        """Site, by its name, to the last convolution before it: it is quantized if that one's inputs are."""
        return {site.name: sources[-1] for site, sources in self.sources.items()}

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
                    f"outputs here. There are: {', '.join(sorted(known)) or 'none'}."
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
        everywhere = self._ranges({site.name: OPERAND_SCHEME for site in self.sources}, own)
        return {(name, OPERAND_SCHEME): found for name, found in everywhere.items()}

    def _ranges(
        self, schemes: Mapping[str, InputScheme], layers: Mapping[str, tuple[InputScheme, InputRange]]
    ) -> dict[str, InputRange]:
        found = {}
        for name, scheme in schemes.items():
            site = Site.named(name)
            for index in range(site.operands):
                readers = self._readers[site, index]
                shared = (layers[r] for r in readers if isinstance(r, str) and r in layers and layers[r][0] == scheme)
                own = merged([self._histograms[reader] for reader in readers if not isinstance(reader, str)])
                found[site.operand_name(index)] = next(shared, (scheme, best_range(own, scheme)))[1]
        return found


def schemes_by_owners(policy: BitPolicy, owners: Mapping[str, str]) -> dict[str, InputScheme]:
    """Return site to scheme where a policy leaves it open: as soon as the inputs of its owner have a range.

    Args:
        policy: The policy.
        owners: See `Operands.owners`.
    """
    quantized = {layer for layer, scheme in policy.inputs().items() if scheme.needs_range}
    return {site: OPERAND_SCHEME for site, owner in owners.items() if owner in quantized}


class _Watch:
    """Follows outputs of convolutions through a forward pass, to the sums and averages that read them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.read: dict[Any, list[int]] = {name: [] for name in input_sites(model)}
        self.histograms: dict[_Operand, InputHistogram] = {}
        self._number = TensorNumbers()
        self._computed_of: dict[int, frozenset[str]] = {}
        self._calls: list[tuple[nn.Module, dict[str, int]]] = []
        self._counts: dict[str, set[tuple[int, ...]]] = {}
        self._order: dict[str, int] = {}
        self._sources: dict[Site, frozenset[str] | None] = {}

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Know which module is running, for the time of a block."""
        every = list(self.names)
        layers = [(m, self._on_layer(name)) for name, m in input_sites(self.model).items()]
        with (
            hooked(before=[(m, self._enter) for m in every], after=[(m, self._leave) for m in every], with_kwargs=True),
            hooked(before=layers, with_kwargs=True),
        ):
            yield

    def pass_of(self, calibration: Calibration, batch: Any, number: int) -> None:
        """Let a batch pass through the model."""
        self._calls.clear()
        self._computed_of.clear()
        with Followed(self._on_call):
            calibration.forward(batch, number)

    def found(self) -> dict[Site, list[str]]:
        """Return site to convolutions in the order of their calls, for those that can be quantized."""
        return {
            site: sorted(sources, key=self._order.__getitem__)
            for site, sources in self._sources.items()
            if sources is not None and len(self._counts[site.module]) == 1
        }

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append((module, no_counts()))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        _, counts = self._calls.pop()
        self._counts.setdefault(self.names[module], set()).add(tuple(counts.values()))
        if isinstance(output, Tensor) and float_class(module) in _CONVOLUTIONS:
            name = self.names[module]
            self._order.setdefault(name, len(self._order))
            self._computed_of[self._number(output)] = frozenset({name})

    def _on_layer(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(given := first_argument(args, kwargs), Tensor):
                self.read[name].append(self._number(given))

        return see

    def _on_call(self, kind: str | None, function: Callable[..., Any], read: list[Tensor]) -> Callable[[Any], None]:
        numbers = [self._number(x) for x in read]
        sources = [self._computed_of.get(number) for number in numbers]
        known = [source for source in sources if source is not None]
        if kind == "add":
            whole = len(known) == len(sources)
        else:
            whole = bool(sources) and sources[0] is not None and function not in _PRODUCTS
        if kind is not None and self._calls:
            self._on_site(kind, read, numbers, known if whole else None)

        def after(output: Any) -> None:
            if isinstance(output, Tensor) and whole:
                self._computed_of[self._number(output)] = frozenset().union(*known)

        return after

    def _on_site(self, kind: str, read: list[Tensor], numbers: list[int], sources: list[frozenset[str]] | None) -> None:
        for _, counts in self._calls:
            counts[kind] += 1
        module, counts = self._calls[-1]
        site = Site(self.names[module], kind, counts[kind] - 1)
        before = self._sources.get(site, frozenset())
        if sources is None or before is None or not _can_change(module):
            self._sources[site] = None
            return
        self._sources[site] = before.union(*sources)
        for index in range(site.operands):
            self.read.setdefault((site, index), []).append(numbers[index])
            self.histograms.setdefault((site, index), InputHistogram()).add(read[index].reshape(-1, 1))


def _can_change(module: nn.Module) -> bool:
    """Tell whether the class of a module can be changed for one that quantizes what its sums read."""
    own = isinstance(module, (ChangedClass, torch.jit.ScriptModule)) or "forward" in module.__dict__
    return not own and float_class(module) is None and not hasattr(module, "operand_scale")
