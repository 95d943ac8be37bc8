"""Which of Lightning's strategies can be worked with."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

_AFTERWARDS = (
    "train as you do without this callback, and call its quantize_trained with a Trainer on one device afterwards, on "
    "a module that was loaded from the checkpoint"
)


def refuse_unsupported(strategy: Strategy) -> None:
    """Refuse a strategy that the end of a fit cannot be quantized under, and say what to do.

    Raises:
        ValueError: If the model is cut into pieces, or its processes end with the fit.
    """
    name = type(strategy).__name__
    if isinstance(strategy, SingleDeviceStrategy):
        return
    if not isinstance(strategy, DDPStrategy):
        raise ValueError(
            f"MixedPrecisionQuantization works on one device or under DDP, where every process holds the whole model, "
            f"and got {name}. Use strategy='ddp', or {_AFTERWARDS}."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        # The main process gets back nothing but a state dict, and loads what fits of it into its float model.
        raise ValueError(
            f"MixedPrecisionQuantization packs the model in the processes that train it, and those of "
            f"{strategy._start_method!r} end with the fit and with them the packed layers. Start a script with "
            f"strategy='ddp' (or by torchrun), or {_AFTERWARDS}."
        )


def refuse_several_processes(strategy: Strategy) -> None:
    """Refuse a strategy of several processes for what is done outside of a Trainer's fit.

    Raises:
        ValueError: If the strategy is not one of a single device.
    """
    if not isinstance(strategy, SingleDeviceStrategy):
        raise ValueError(
            f"quantize_trained works on one device, CPU or GPU, and got the strategy {type(strategy).__name__}, whose "
            "processes live within a fit only. Pass a Trainer(devices=1); or let the callback quantize at the end of "
            "a fit with strategy='ddp'."
        )
