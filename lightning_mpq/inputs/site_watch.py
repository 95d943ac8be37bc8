"""Which sums, averages and products of a model read nothing but what layers compute, seen while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..network.calibration import Calibration
from ..network.hooks import first_argument, hooked
from ..network.layer_kinds import float_class
from ..network.tokens import real_operand, token_mask
from ..tools.changed_class import ChangedClass
from ..tools.finite import all_finite
from .histogram import InputHistogram
from .operations import MULTIPLY, PRODUCTS, Followed, Site, no_counts
from .same_tensors import TensorNumbers, values_of
from .sites import SITE_TYPES, input_sites

_PRODUCT = "a product"
"""Stands for products of attention among what a tensor is computed of."""
_Operand = tuple[Site, int]


class SiteWatch:
    """Follows outputs of layers through a forward pass, to the sums, averages and products that read them.

    Attributes:
        read: Layer, or operand, to the values that it has read, in order; see `values_of`.
        histograms: Operand to what its values look like.
    """

    def __init__(self, model: nn.Module, products: bool) -> None:
        """Prepare to look at a model, and at products or not."""
        self.model, self._products = model, products
        self.names = {module: name for name, module in model.named_modules()}
        self.read: dict[Any, list[tuple[int, int]]] = {name: [] for name in input_sites(model)}
        self.histograms: dict[_Operand, InputHistogram] = {}
        self._number = TensorNumbers()
        self._computed_of: dict[int, frozenset[str]] = {}
        self._calls: list[tuple[nn.Module, dict[str, int]]] = []
        self._counts: dict[tuple[str, str], set[int]] = {}
        self._order: dict[str, int] = {}
        self._linear: set[str] = {_PRODUCT}
        self._sources: dict[Site, frozenset[str] | None] = {}
        self._batch, self._mask = 0, token_mask(None)

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
        self._batch, self._mask = number, token_mask(batch)
        self._calls.clear()
        self._computed_of.clear()
        with Followed(self._on_call):
            calibration.forward(batch, number)

    def found(self) -> dict[Site, list[str]]:
        """Return site to convolutions in the order of their calls, for those that can be quantized."""
        return {
            site: sorted(sources - {_PRODUCT}, key=self._order.__getitem__)
            for site, sources in self._sources.items()
            if sources is not None and len(self._counts[site.module, site.kind]) == 1
        }

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append((module, no_counts()))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        _, counts = self._calls.pop()
        for kind, count in counts.items():
            self._counts.setdefault((self.names[module], kind), set()).add(count)
        if isinstance(output, Tensor) and float_class(module) in SITE_TYPES:
            name = self.names[module]
            self._order.setdefault(name, len(self._order))
            self._linear |= {name} if float_class(module) is nn.Linear else set()
            self._computed_of[self._number(output)] = frozenset({name})

    def _on_layer(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(given := first_argument(args, kwargs), Tensor):
                self.read[name].append(values_of(given))

        return see

    def _on_call(self, kind: str | None, function: Callable[..., Any], read: list[Tensor]) -> Callable[[Any], None]:
        numbers = [self._number(x) for x in read]
        sources = [self._computed_of.get(number) for number in numbers]
        known = [source for source in sources if source is not None]
        if kind in PRODUCTS:
            operands = sources[: Site("", kind, 0).operands]
            whole, known = None not in operands, [frozenset({_PRODUCT}), *known]
        elif kind == "add":
            whole = len(known) == len(sources)
        else:
            whole = bool(sources) and sources[0] is not None and function not in MULTIPLY
        if kind is not None and self._calls:
            of_sum = kind in PRODUCTS or self._linear.isdisjoint(frozenset().union(*known))
            self._on_site(kind, read, known if whole and of_sum else None)

        def after(output: Any) -> None:
            for found in output if isinstance(output, (tuple, list)) else (output,):
                if isinstance(found, Tensor) and whole:
                    self._computed_of[self._number(found)] = frozenset().union(*known)

        return after

    def _on_site(self, kind: str, read: list[Tensor], sources: list[frozenset[str]] | None) -> None:
        for _, counts in self._calls:
            counts[kind] += 1
        if kind in PRODUCTS and not self._products:
            return
        module, counts = self._calls[-1]
        site = Site(self.names[module], kind, counts[kind] - 1)
        before = self._sources.get(site, frozenset())
        if sources is None or before is None or not _can_change(module):
            self._sources[site] = None
            return
        self._sources[site] = before.union(*sources)
        for index in range(site.operands):
            if not all_finite(read[index]):
                raise NonFiniteError(f"What {site.name!r} reads is NaN or infinite in batch {self._batch}.")
            self.read.setdefault((site, index), []).append(values_of(read[index]))
            counted = real_operand(read[index], self._mask) if kind in PRODUCTS else read[index]
            self.histograms.setdefault((site, index), InputHistogram()).add(counted.reshape(-1, 1))


def _can_change(module: nn.Module) -> bool:
    """Tell whether the class of a module can be changed for one that quantizes what its sums read."""
    own = isinstance(module, (ChangedClass, torch.jit.ScriptModule)) or "forward" in module.__dict__
    return not own and float_class(module) is None and not hasattr(module, "operand_scale")
