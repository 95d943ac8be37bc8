r"""The Fisher information of all candidates from one backward pass for each draw.

For sample n and a random output gradient v_n with covariance H_n (the score of a label drawn from the model's
own prediction, or ``L z`` with random signs), the derivative of ``<v_n, outputs_n>`` along candidate i is

    s_ni = sum over uses of layer l and positions of <dv_n / d out_l, D_i * in_l>,

so that ``E[s_n s_n^T] = J^T H_n J`` along the candidates: the Fisher information, equal to the Gauss-Newton matrix
(J. Martens, New Insights and Perspectives on the Natural Gradient Method, JMLR 2020, sections 5 and 9). One backward
pass yields the output gradients of all layers at once, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import cos, sqrt
from typing import Any

import torch
from torch import Generator, Tensor

from ...network.batches import of_each_sample, sample_count, slice_batch
from ...network.evaluator import Evaluator, not_differentiable
from ...network.layer_kinds import kind_of
from ...network.likelihood import Likelihood
from ...tools.checks import shown
from ...tools.warning import warn
from .base import Estimator, Setting
from .batch_fisher import BatchScores
from .batched_forward_mode import BatchedForwardMode
from .forward_mode import input_change
from .input_perturbation import InputPerturbations
from .input_probes import InputProbes
from .layer_scores import layer_scores
from .layer_taps import LayerTaps, Use
from .measurement import Measurement
from .perturbation import Perturbations
from .pieces import pieces
from .weights import scores_of_backward, substituted, weight_variables


class SampleScores:
    """Measures scores of single samples; the gradient of the divergence is zero.

    Groups whose weights are used in ways that layer calls do not show (outside of their layer's forward, or where
    samples cannot be told apart) are found on the first batch by comparison with ordinary automatic
    differentiation and measured by forward mode: ``s_ni = <v_n, J D_i>``, one more pass for each such candidate. So
    are, from the start, weights that outputs of their layer are not linear in (LSTM, GRU, RNN).
    """

    def __init__(
        self,
        evaluator: Evaluator,
        perturbations: Perturbations,
        likelihood: Likelihood,
        draws: int = 1,
        inputs: InputPerturbations | None = None,
    ) -> None:
        """Prepare.

        Args:
            evaluator: Runs the model.
            perturbations: All candidates.
            likelihood: What the outputs mean.
            draws: Random output gradients for each sample.
            inputs: What schemes do to inputs, whose columns come after those of weights; None for no such columns.
        """
        self._evaluator = evaluator
        self._perturbations = perturbations
        self._likelihood = likelihood
        self._draws = draws
        self._nonlinear = {
            (columns.start, columns.stop): layer
            for layer, columns in perturbations.columns.items()
            if (kind := kind_of(perturbations.modules[layer])) is not None and kind.operation == "nonlinear"
        }
        self._by_forward_mode = dict(self._nonlinear)
        self._verified = False
        self._scores: Tensor | None = None
        self._forward_mode = BatchedForwardMode(evaluator, perturbations)
        self._inputs, self._inputs_by_forward_mode = inputs, dict[tuple[int, int], str]()
        self._taps = LayerTaps(evaluator, perturbations, self._add, inputs, self._add_input)

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return the scores of each sample."""
        rows = self.scores(batch, generator).transpose(0, 1) / sqrt(self._draws)
        return Measurement(len(rows), rows=rows)

    def scores(self, batch: Any, generator: Generator) -> Tensor:
        """Return s for each draw, sample and candidate, [draws, N, K], float64; see `scores_along`."""

        def draws(outputs: Tensor) -> Iterator[Tensor]:
            return (self._likelihood.score(outputs, batch, generator) for _ in range(self._draws))

        return self.scores_along(batch, self._draws, draws)

    def scores_along(self, batch: Any, count: int, directions: Callable[[Tensor], Iterator[Tensor]]) -> Tensor:
        """Return ``<v_n, J_n D_i>`` for each output gradient v, sample n and candidate i, [count, N, K], float64.

        Args:
            batch: The samples.
            count: Number of output gradients.
            directions: Outputs to the output gradients, each shaped like them.

        Raises:
            ValueError: If the outputs carry no gradient.
        """
        with self._taps.attached():
            outputs = self._taps.outputs(batch)
            width = torch.float32 if outputs.device.type == "mps" else torch.float64
            columns = self._perturbations.count + (0 if self._inputs is None else self._inputs.count)
            scores = torch.zeros(count, outputs.shape[0], columns, dtype=width, device=outputs.device)
            gradients = []
            for draw, gradient in enumerate(directions(outputs.detach())):
                gradients.append(gradient)
                self._scores = scores[draw]
                if outputs.requires_grad:
                    torch.autograd.backward(outputs, gradient, retain_graph=draw + 1 < count)
        self._scores = None
        if not self._verified:
            mixture = [cos(1 + draw) for draw in range(count)]  # all directions at once, none of which cancels another
            mixed_scores = sum(factor * part for factor, part in zip(mixture, scores, strict=True))
            mixed_gradient = sum(factor * part for factor, part in zip(mixture, gradients, strict=True))
            assert isinstance(mixed_scores, Tensor)
            assert isinstance(mixed_gradient, Tensor)
            self._verify(batch, mixed_scores, mixed_gradient)
        slow = [index for start, stop in self._by_forward_mode for index in range(start, stop)]
        for index, change in chain(self._forward_mode.changes(slow, batch), self._slow_inputs(batch)):
            for draw, gradient in enumerate(gradients):
                scores[draw, :, index] = of_each_sample(change * gradient).to(scores)
        return scores

    def _add(self, use: Use, gradient: Tensor) -> None:
        """Add the scores of one use of a layer, once the gradient of its output is known."""
        columns = self._perturbations.columns[use.layer]
        if (columns.start, columns.stop) in self._by_forward_mode:
            return
        assert self._scores is not None
        self._refuse_overwritten(use)
        module, samples = self._perturbations.modules[use.layer], self._scores.shape[0]
        kind = kind_of(module)
        if not use.inputs.numel() or not gradient.numel():  # an expert that no sample was sent to
            return
        inputs, fixed = use.inputs, kind is not None and kind.operation == "any"
        leading = gradient if fixed else inputs
        if not use.call.samples_known:
            self._by_forward_mode[columns.start, columns.stop] = use.layer
            return
        call = use.call
        if call.tokens is None and (leading.dim() == 0 or leading.shape[0] % samples):
            if fixed or inputs.dim() < 2 or inputs.shape[1] != samples:
                self._by_forward_mode[columns.start, columns.stop] = use.layer
                return
            inputs, gradient = inputs.transpose(0, 1), gradient.transpose(0, 1)  # positions before samples
        for part, x, slope, deltas in pieces(self._perturbations, use.layer, inputs, gradient, call.rows):
            if call.tokens is not None:
                rows = layer_scores(module, x, slope, deltas, rows=call.rows)
                sample = call.tokens * samples // call.token_count
                self._scores[:, part] = self._scores[:, part].index_add(0, sample, rows.to(self._scores))
            else:
                rows = layer_scores(module, x, slope, deltas, call.extra, call.options, call.rows)
                self._scores[:, part] += rows.to(self._scores).unflatten(0, (samples, -1)).sum(1)
            del deltas  # before the next ones are made

    def _add_input(self, use: Use, gradient: Tensor) -> None:
        """Add the scores of what a layer was called on, once the gradient of it is known."""
        assert self._inputs is not None
        assert self._scores is not None
        own = self._inputs.columns[use.layer]
        if (own.start, own.stop) in self._inputs_by_forward_mode or not use.inputs.numel():
            return
        self._refuse_overwritten(use)
        x, samples = use.inputs, self._scores.shape[0]
        if x.dim() == 0 or x.shape[0] % samples:
            if x.dim() < 2 or x.shape[1] != samples:
                self._inputs_by_forward_mode[own.start, own.stop] = use.layer
                return
            x, gradient = x.transpose(0, 1), gradient.transpose(0, 1)  # positions before samples
        rows = self._inputs.inner_products(use.layer, x, gradient).unflatten(0, (samples, -1)).sum(1)
        first = self._perturbations.count
        self._scores[:, first + own.start : first + own.stop] += rows.to(self._scores)

    def _slow_inputs(self, batch: Any) -> Iterator[tuple[int, Tensor]]:
        """Yield the columns of inputs that are measured by forward mode, with the change of the outputs."""
        for start, stop in self._inputs_by_forward_mode:
            for index in range(start, stop):
                assert self._inputs is not None
                yield self._perturbations.count + index, input_change(self._evaluator, self._inputs, index, batch)

    def _refuse_overwritten(self, use: Use) -> None:
        if use.inputs._version != use.version:
            raise RuntimeError(
                f"The input of the layer {use.layer!r} was overwritten in place after the layer had read it, so that "
                "its weight could not be trained either. Use the operation that is not in place."
            )

    def _verify(self, batch: Any, scores: Tensor, gradient: Tensor) -> None:
        """Compare the scores of one sample with ordinary weight gradients; groups that differ go to forward mode.

        Args:
            batch: The batch that the scores are of.
            scores: [N, K].
            gradient: The drawn output gradient, shaped like the outputs.
        """
        self._verified = True
        samples = gradient.shape[0]
        reference: Tensor | None = None
        separable = sample_count(batch) == samples
        for size in (1, samples) if separable else (samples,):
            part = slice_batch(batch, 0, size) if size < samples else batch
            try:
                reference = self._reference(part, gradient[:size])
            except (RuntimeError, TypeError):  # some models do not take a single sample
                if size == samples:
                    raise
                continue
            break
        assert reference is not None
        error = (scores[:size].sum(0) - reference).abs()
        largest = float(reference.abs().max())
        tolerance = min(0.5, 30 * sqrt(torch.finfo(gradient.dtype).eps))
        first = self._perturbations.count
        inputs = {} if self._inputs is None else self._inputs.columns
        # A value of another last bit, in one sample beside many, may take the next code: one whole error of thousands.
        of_codes = min(0.5, 30 * tolerance)
        for offset, slow, by_layer, allowed in (
            (0, self._by_forward_mode, self._perturbations.columns, tolerance),
            (first, self._inputs_by_forward_mode, inputs, of_codes),
        ):
            for layer, own in by_layer.items():
                columns = slice(offset + own.start, offset + own.stop)
                scale = max(float(reference[columns].norm()), 1e-3 * largest)
                if float(error[columns].norm()) > allowed * scale:
                    slow.setdefault((own.start, own.stop), layer)
        found = {key: layer for key, layer in self._by_forward_mode.items() if key not in self._nonlinear}
        if slow_layers := {*found.values(), *self._inputs_by_forward_mode.values()}:
            names = ", ".join(sorted(slow_layers))
            extra = sum(stop - start for start, stop in (*found, *self._inputs_by_forward_mode))
            warn(
                f"The calls of these layers do not show how each sample uses their weights: {names}. (A weight read "
                f"outside of its layer, or inputs without one row for each sample?) Forward mode measures them "
                f"exactly, at {extra} more passes over each batch."
            )

    def _reference(self, batch: Any, gradient: Tensor) -> Tensor:
        """Return the summed scores of a batch by differentiating by the weights, and inputs, themselves, [K]."""
        variables = weight_variables(self._perturbations)
        probes = InputProbes(self._inputs, self._perturbations.device)
        with substituted(self._perturbations, variables), probes.attached():
            outputs = self._evaluator.outputs(batch)
            if not outputs.requires_grad:
                raise not_differentiable("outputs do")
            if outputs.shape != gradient.shape:
                raise RuntimeError("The model's outputs for one sample do not look like a row of those for many.")
            return scores_of_backward(self._perturbations, variables, probes, outputs, gradient)


@dataclass(frozen=True)
class Fisher(Estimator):
    """The Fisher information, sampled: one backward pass for each draw, whatever the number of layers.

    Attributes:
        draws: Random output gradients for each sample, or for each chunk where samples act on each other.
    """

    draws: int = 1

    name = "fisher"
    scores_batches = True
    sees_inputs = True

    def __post_init__(self) -> None:
        """Refuse what is no count."""
        if isinstance(self.draws, bool) or not isinstance(self.draws, int) or self.draws < 1:
            raise ValueError(f"draws must be a positive integer, got {shown(self.draws)}.")

    def start(self, setting: Setting) -> SampleScores | BatchScores:
        """See `Estimator.start`."""
        kind = BatchScores if setting.interacting else SampleScores
        known = setting.known_likelihood()
        return kind(setting.evaluator, setting.perturbations, known, self.draws, setting.inputs)
