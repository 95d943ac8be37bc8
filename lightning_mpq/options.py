"""Settings of each stage as plain values, so that a callback or a YAML can carry them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .allocation import Rules
from .allocation.allocate import check_settings as check_solver
from .curvature.estimators.base import Estimator, Loss
from .curvature.estimators.registry import check_settings as check_profile
from .grids.registry import DEFAULT_GRIDS
from .groups.candidates import Candidate, OfferedInput, make_candidates, offered_inputs, offered_schemes
from .groups.fused import Fuse, check_fuse
from .groups.groups import LayerGroups
from .network.likelihood import Likelihood
from .schemes import WeightScheme
from .tools.checks import check_one_of, shown


@dataclass(frozen=True)
class CandidateOptions:
    """What may be quantized, what shares a decision, and which schemes are offered.

    Attributes:
        bits: Widths offered to every group.
        rounding: How a width is rounded where ``schemes`` is None: "second_order" finds codes, clip range and grid of
            each layer on the calibration batches, "nearest" needs the weight alone and takes clip range and grid
            of the least squared weight error.
        grids: Grids to choose from, for each group and width.
        granularities: What may share a scale: "channel", "tensor", or the length of a block of columns; several make
            one candidate each for every width, and the program chooses by what their scales cost and gain. None:
            "channel", and for wide Linear layers blocks of 128, 64 or 32 columns beside it.
        schemes: Schemes offered instead of ``bits``.
        inputs: How inputs of Linear, Conv and ConvTranspose layers may be quantized: widths of 4 to 8 bits,
            `InputScheme`, or "float"; each is offered with every scheme of the weight. None: inputs stay in float.
        groups: Group name to patterns of layers that share one scheme (see `find_groups`).
        keep_float: Patterns of layers that stay in float.
        fixed_bits: Pattern to the one width its layers get.
        min_bits: Pattern to the least width its layers may get.
        max_bits: Pattern to the largest width its layers may get.
        fuse: Sets of names of layers in one module that share a decision, such as
            ``[("q_proj", "k_proj", "v_proj")]``, or "vllm" for those that vLLM fuses (see `find_groups`).

    Example::

        candidates = mpq.CandidateOptions(bits=(2, 3, 4, 8), granularities=("channel", 64), keep_float=["head"])
        mpq.MixedPrecisionQuantization(3.0, candidates=candidates)
    """

    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    rounding: Literal["second_order", "nearest"] = "second_order"
    grids: Sequence[str] = DEFAULT_GRIDS
    granularities: Sequence[str | int] | None = None
    schemes: Sequence[WeightScheme] | None = None
    inputs: Sequence[OfferedInput] | None = None
    groups: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    keep_float: Sequence[str] = ()
    fixed_bits: Mapping[str, int] = field(default_factory=dict)
    min_bits: Mapping[str, int] = field(default_factory=dict)
    max_bits: Mapping[str, int] = field(default_factory=dict)
    fuse: Fuse = ()

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be offered after it."""
        check_one_of("rounding", self.rounding, ("second_order", "nearest"))
        offered_inputs(self.inputs)
        check_fuse(self.fuse)
        if not self.offered_schemes():
            raise ValueError(
                "There is no scheme to offer: give at least one of bits, of grids that have levels for them, and of "
                "granularities; or schemes."
            )

    def rules(self) -> dict[str, Any]:
        """Return what `find_groups` takes."""
        own = ("bits", "rounding", "grids", "granularities", "schemes", "inputs")
        return {key: value for key, value in vars(self).items() if key not in own}

    def offered_schemes(self) -> Sequence[WeightScheme]:
        """Return the schemes offered to every group that the rules allow their widths."""
        if self.schemes is not None:
            return self.schemes
        shared = ("channel",) if self.granularities is None else self.granularities
        return offered_schemes(self.bits, self.rounding, shared, self.grids)

    def candidates(self, groups: LayerGroups) -> tuple[Candidate, ...]:
        """Return what may be chosen for groups; see `make_candidates`."""
        return make_candidates(
            groups,
            self.bits,
            rounding=self.rounding,
            granularities=self.granularities,
            grids=self.grids,
            schemes=self.schemes,
            inputs=self.inputs,
        )


@dataclass(frozen=True)
class CurvatureOptions:
    """How the loss is measured.

    Attributes:
        estimator: "fisher" (one backward pass), "hessian" (exact, of the task loss), "gauss_newton", "secant", or an
            `Estimator` of your own.
        loss: "divergence" from the float model, "task", or None for the estimator's own default.
        statistics: What BatchNorm normalises by while the loss is measured: "frozen" running statistics, or
            "reestimated", which predicts the loss after statistics are measured again. "auto": the latter if
            that is what will happen.
        draws: Random output gradients of ``fisher``: per sample with frozen statistics (None: 1), per chunk of
            samples with re-estimated ones (None: 4).
        chunk_size: Most samples at once; None: whole batches, and 32 for ``fisher`` with re-estimated statistics.
        tolerance: Relative standard error of predictions at which no more batches are drawn; None for all.
        cluster: Samples in a row that hang together, as sequences cut from one document; see `profile`.
        shrink: Whether noisy entries are drawn towards zero by their standard errors, so that the solver cannot
            exploit them.
        likelihood: What the outputs mean: "auto" guesses and says so, or e.g. ``Categorical(class_dim=1)``.
        seed: Seed of the drawn labels, and of the order in which a Trainer's calibration batches are drawn.

    Example::

        curvature = mpq.CurvatureOptions(estimator="hessian", loss="task")     # of training_step's own loss
        mpq.MixedPrecisionQuantization(3.0, curvature=curvature)
    """

    estimator: str | Estimator = "fisher"
    loss: Loss | None = None
    statistics: Literal["auto", "frozen", "reestimated"] = "auto"
    draws: int | None = None
    chunk_size: int | None = None
    tolerance: float | None = None
    cluster: int = 1
    shrink: bool = True
    likelihood: Likelihood | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be profiled after it."""
        check_profile(
            self.estimator, self.loss, self.statistics, self.draws, self.chunk_size, self.tolerance, self.cluster
        )

    @property
    def known_likelihood(self) -> Likelihood | None:
        """What the outputs mean, None where that is to be guessed."""
        return None if self.likelihood == "auto" else self.likelihood


@dataclass(frozen=True)
class SolverOptions:
    """How the bits are assigned.

    Attributes:
        objective: "quadratic" (with all pairs of groups) or "additive" (each group alone).
        solver: "highs" or "cbc", both through python-mip.
        time_limit: Seconds after which the best policy so far is returned with its proven gap.
        gap: Relative gap at which a policy counts as optimal.
        seed: Seed of the local search.
        rules: Groups that must be equal, least and most bits, few distinct widths; see `Rules`.

    Example::

        solver = mpq.SolverOptions(time_limit=60, rules=mpq.Rules(equal=[("*.q", "*.k", "*.v")]))
        mpq.MixedPrecisionQuantization(3.0, solver=solver)
    """

    objective: Literal["quadratic", "additive"] = "quadratic"
    solver: Literal["highs", "cbc"] = "highs"
    time_limit: float = 10.0
    gap: float = 1e-3
    seed: int = 0
    rules: Rules | None = None

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be solved after it."""
        check_solver(self.objective, self.solver, self.time_limit, self.gap)


@dataclass(frozen=True)
class RepairOptions:
    """What makes up for rounding once a policy is chosen.

    Attributes:
        sequential: Whether layers are rounded one after the other, each so that it comes closest to the float model's
            outputs with the layers before it rounded already; layers whose scheme rounds to nearest are not.
        batchnorm: Whether BatchNorm statistics are measured again with the quantized weights.
        biases: Whether biases are shifted until mean outputs are those of the float model, layer by layer. "auto":
            where there is no BatchNorm that makes up for them.

    Example::

        mpq.quantize(model, policy, batches, repair=mpq.RepairOptions(batchnorm=False))
    """

    sequential: bool = True
    batchnorm: bool = True
    biases: Literal["auto"] | bool = "auto"

    def __post_init__(self) -> None:
        """Refuse what is neither on nor off."""
        for name in ("sequential", "batchnorm", "biases"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (name, value) != ("biases", "auto"):
                raise ValueError(f"{name} must be true or false{' or auto' * (name == 'biases')}, got {shown(value)}.")


@dataclass(frozen=True)
class SelectionOptions:
    """Whether policies are measured before one is chosen.

    Attributes:
        policies: How many are measured at most: the solved one, the additive one, one width everywhere. 1 takes the
            solved policy as it is, unless there are rounds.
        rounds: How often the loss is expanded again around the best policy so far and solved again, if prediction and
            measurement of that policy disagree. A policy that quantizes inputs is taken as it is.
        trust: By which factor they may differ before that is done.
        resamples: How often the samples are drawn again for the report, to say how stable the policy is (see
            `Allocation.stability`); 0 for not at all.

    Example::

        # takes the solved policy as it is
        mpq.MixedPrecisionQuantization(3.0, selection=mpq.SelectionOptions(policies=1, rounds=0))
    """

    policies: int = 3
    rounds: int = 1
    trust: float = 1.5
    resamples: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if isinstance(self.resamples, bool) or not isinstance(self.resamples, int) or self.resamples < 0:
            raise ValueError(f"resamples must be an integer of at least 0, got {shown(self.resamples)}.")
        if self.policies < 1 or self.rounds < 0 or not self.trust >= 1:
            raise ValueError(
                f"Expected policies of at least 1, rounds of at least 0 and a trusted factor of at least 1, got "
                f"{self.policies}, {self.rounds} and {self.trust}."
            )

    @property
    def measures(self) -> bool:
        """Whether any policy is measured before the choice."""
        return self.policies > 1 or self.rounds > 0


@dataclass(frozen=True)
class FinetuneOptions:
    """How a quantized model is trained on.

    Attributes:
        epochs: How many; 0 for no fine-tuning.
        steps: Optimizer steps instead of epochs.
        learning_rate: Factor on the learning rates of ``configure_optimizers``, or of ``optimizers``.
        schedule: "cosine" decays to zero over the fine-tuning, "constant" does not. The module's own schedulers are
            paused.
        learn_scales: Whether scales learn with the weights (LSQ); otherwise rounding alone is straight-through.
        learn_ranges: Whether ranges of quantized inputs learn likewise, from the calibrated ones; otherwise they stay.
        scale_learning_rate: Factor on the learning rate of scales and ranges, on top of the other.
        margin: How far beyond the outermost levels gradients pass, in steps (see `fake_quantize`).
        batchnorm: "average" statistics on as in training, or keep them "frozen" as they are after quantization.
        distill: Weight of the divergence from the float model's outputs, which is added to the loss of
            ``training_step``; 0 for none.
        temperature: Of the distillation.
        distill_from: Name of the submodule whose outputs are compared; by default the module itself.
        teacher_dtype: Type in which the float weights are kept for it: "float32", "bfloat16" or "float16".
        optimizers: ``module -> what configure_optimizers may return``, to be used instead of it.
    """

    epochs: int = 0
    steps: int | None = None
    learning_rate: float = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    learn_scales: bool = True
    learn_ranges: bool = True
    scale_learning_rate: float = 1.0
    margin: float = 0.5
    batchnorm: Literal["average", "frozen"] = "average"
    distill: float = 0.0
    temperature: float = 1.0
    distill_from: str | None = None
    teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    optimizers: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, value, least in (("epochs", self.epochs, 0), ("steps", self.steps, 1)):
            given = value is not None or name == "epochs"
            if given and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} of fine-tuning must be an integer of at least {least}, got {shown(value)}.")
        if self.epochs and self.steps is not None:
            raise ValueError("Give epochs or steps of fine-tuning, not both.")
        for name in ("learn_scales", "learn_ranges"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {shown(getattr(self, name))}.")
        for name in ("learning_rate", "scale_learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {shown(getattr(self, name))}.")
        for name in ("distill", "margin"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {shown(getattr(self, name))}.")
        check_one_of("schedule", self.schedule, ("cosine", "constant"))
        check_one_of("batchnorm", self.batchnorm, ("average", "frozen"))
