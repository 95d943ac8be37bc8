"""What TorchScript's compiler cannot take is refused in a sentence, before it trips over something within."""

from __future__ import annotations

from typing import NoReturn


class NotScriptable:
    """Mixin of modules whose weights are computed when they are read."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse ``torch.jit.script``, which asks every module for this method first."""
        raise NotImplementedError(
            f"{type(self).__name__} computes its weight when it is read, which torch.jit.script cannot compile. "
            "torch.jit.trace(model, inputs) can trace it, or a LightningModule's "
            "to_torchscript(method='trace', example_inputs=inputs); torch.export and lightning_mpq.export_onnx take it "
            "too."
        )
