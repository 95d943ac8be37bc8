"""onnxruntime by ONNX: 2, 4 and 8 bits fused into products, 4 and 8 into look-ups, others dequantized as they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import CorruptModelError
from ..export.example_inputs import ExampleInputs
from ..export.extras import require
from ..export.onnx.containers import held_bits, may_saturate, multiplies
from ..export.onnx.exporting import POLICY_KEY, export_onnx, refusal
from ..network.layer_kinds import kind_of
from ..policy import BitPolicy
from ..schemes import InputScheme, LayerScheme, WeightScheme
from ..tools.checks import check_one_of
from ..tools.reading import require_ordinary
from .base import StoredLayer, Target

_PARTS = ("levels", "scale", "zero_point", "half")


class OnnxRuntime(Target):
    """onnxruntime 1.32 and later: ``.onnx`` files with any batch size and length.

    Operations are standard ones, but for ``GatherBlockQuantized``, which dequantizes those rows of a table that are
    looked up, and ``MatMulIntegerToFloat``, which multiplies integers by integers. Codes lie in 2, 4 or 8 bits, so that
    3 bits cost 4 there and 5 to 7 cost 8; the half grid takes one bit more in products. What is not worth its bytes so
    is not offered.

    Args:
        dynamic_batch: Whether the first dimension of all inputs may have any size.
        dynamic_length: Whether tokens may be as many as one likes; by default where there are tokens by name, and the
            batch is dynamic. See `export_onnx`.
        integer_products: Whether products by weights with one scale a row are those of integers, each token being
            rounded to 8 bits by its own largest value. Faster than float32 where there are several tokens, which
            products by weights of 8 bits are not otherwise; weights in blocks are left to onnxruntime's own kernel.
    """

    name = "onnxruntime"
    extra = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    ending = ".onnx"

    def __init__(
        self, *, dynamic_batch: bool = True, dynamic_length: bool | None = None, integer_products: bool = True
    ) -> None:
        check_one_of("dynamic_batch", dynamic_batch, (True, False))
        check_one_of("dynamic_length", dynamic_length, (None, True, False))
        check_one_of("integer_products", integer_products, (True, False))
        self.dynamic: dict[str, Any] = {"dynamic_batch": dynamic_batch, "dynamic_length": dynamic_length}
        self.integer_products = integer_products

    def why_not(self, layer: nn.Module, scheme: WeightScheme) -> str | None:
        """See `Target.why_not`."""
        return refusal(layer, scheme)

    def why_not_inputs(self, layer: nn.Module, scheme: InputScheme) -> str | None:
        """See `Target.why_not_inputs`."""
        return None if scheme.needs_range else "a range for each token is found when the layer runs"

    def stored_bits(self, layer: nn.Module, scheme: WeightScheme) -> int:
        """See `Target.stored_bits`."""
        return held_bits(layer, scheme)

    def stored_bits_with_inputs(self, layer: nn.Module, scheme: LayerScheme) -> int:
        """See `Target.stored_bits_with_inputs`."""
        if scheme.quantized_input is None:
            return self.stored_bits(layer, scheme.weight)
        return held_bits(layer, scheme.weight, by_integers=True)

    def is_slow(self, layer: nn.Module, scheme: LayerScheme) -> bool:
        """See `Target.is_slow`: integers by integers are fast where signed weights are exact on any processor."""
        inputs, kind = scheme.quantized_input, kind_of(layer)
        if inputs is None and not (self.integer_products and multiplies(layer)):
            return False
        in_float = (kind is not None and kind.operation == "transposed") or isinstance(scheme.weight.granularity, int)
        return in_float or may_saturate(scheme.weight, 2 ** (8 if inputs is None else inputs.bits) - 1)

    def write(self, model: nn.Module, path: Path, inputs: ExampleInputs) -> None:
        """See `Target.write`; what onnxruntime computes differently is refused, and nothing written."""
        export_onnx(model, path, inputs, **self.dynamic, standard=False, integer_products=self.integer_products)

    def read(self, path: Path) -> Mapping[str, StoredLayer]:
        """See `Target.read`."""
        onnx = require("onnx", "onnx", "Reading an ONNX file")
        require_ordinary(path)
        try:
            content = onnx.load(path)
            said = {entry.key: entry.value for entry in content.metadata_props}
            layers = BitPolicy.from_json(said[POLICY_KEY]).weights()
        except Exception as error:  # protobuf's errors are of its own types
            raise CorruptModelError(f"{path} is no ONNX file that was exported here: {error!r}.") from error
        tensors = {tensor.name: tensor for tensor in content.graph.initializer}
        found = {}
        for name, levels in tensors.items():
            stem, _, part = name.rpartition(".")
            layer = stem if stem in layers else stem.removesuffix(".weight")
            if part == _PARTS[0] and layer in layers:
                parts = [tensors[key] for own in _PARTS if (key := f"{stem}.{own}") in tensors]
                digest = sha256(b"".join(tensor.raw_data for tensor in parts)).hexdigest()
                kind = onnx.TensorProto.DataType.Name(levels.data_type)
                size = sum(len(tensor.raw_data) for tensor in parts)
                found[layer] = StoredLayer(int(kind.lstrip("UINT")), size, digest)
        return found

    def error(
        self,
        path: Path,
        batches: Sequence[ExampleInputs],
        expected: Sequence[Sequence[Tensor]],
        model: nn.Module | None,
    ) -> float:
        """See `Target.error`: that of onnxruntime as it comes, which rounds inputs of products to 8 bits.

        Raises:
            ValueError: If it computes something else also where it keeps inputs in float32.
        """
        self.require_packages()
        from ..export.onnx.check import compare, tolerance_of  # imports the packages of the extra

        content = path.read_bytes()
        return compare(content, batches, expected, tolerance_of(content, self.tolerance)).default_error
