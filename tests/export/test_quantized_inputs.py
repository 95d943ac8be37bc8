"""What exports make of quantized inputs: compressed-tensors computes with the same, torchao refuses them by name."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import linear

from lightning_mpq import export_compressed_tensors, quantize, torchao_config
from lightning_mpq.inputs.quantizer import InputRange, range_between
from lightning_mpq.modules import pack_model, packed_layers
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

POLICY = BitPolicy({"0": LayerScheme(WeightScheme(4), InputScheme(8))})
INPUTS = (InputScheme(8), InputScheme(8, symmetric=True), InputScheme(5), InputScheme(8, "token"))
WEIGHTS = (WeightScheme(8), WeightScheme(4), WeightScheme(8, "tensor"), WeightScheme(7, grid="half"),
           WeightScheme(8, grid="asymmetric"), WeightScheme(8, 16), WeightScheme(4, 16))  # fmt: skip
PAIRS = [LayerScheme(weight, inputs) for weight in WEIGHTS for inputs in INPUTS]
PAIRS += [LayerScheme(WeightScheme(8), InputScheme(8, "token", symmetric=True)), LayerScheme(WeightScheme(8))]


def layers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(32, 9) for _ in PAIRS)


def test_torchao_refuses_quantized_inputs_by_name():
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="carries weights only here, and the layer '0' has 8-bit inputs"):
        torchao_config(POLICY)


def test_compressed_tensors_computes_with_the_same_inputs(tmp_path):
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="needs the extra compressed-tensors")
    from compressed_tensors.compressors import ModelCompressor, decompress_module

    packed = layers()
    policy = BitPolicy({str(number): scheme for number, scheme in enumerate(PAIRS)})
    ranges = {name: range_between(-1, 2, scheme) for name, scheme in policy.inputs().items() if scheme.needs_range}
    pack_model(packed, policy, ranges=ranges)
    folder = export_compressed_tensors(packed, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    config = quantization.QuantizationConfig.model_validate(config)
    read = layers()
    quantization.apply_quantization_config(read, config)
    ModelCompressor(quantization_config=config).compress_model(read)
    stored = load_file(folder / "model.safetensors")
    assert {name: value.dtype for name, value in read.state_dict().items()} == {
        name: value.dtype for name, value in stored.items()
    }
    assert stored["0.weight"].dtype == torch.int8
    read.load_state_dict(stored)
    x = 1.5 * torch.randn(2, 5, 32)  # [batch, positions, features]: the library takes others for tokens of one value
    for number, scheme in enumerate(PAIRS):
        decompress_module(read[number])
        own, inputs = packed_layers(packed)[str(number)], scheme.quantized_input
        expected = own(x)
        if inputs is not None and inputs.symmetric and not inputs.needs_range:  # half a level further: 127.5 steps
            scale = x.abs().amax(-1, keepdim=True) / 127.5
            expected = linear((x / scale).round().clamp(-128, 127) * scale, own.weight, own.bias)
        torch.testing.assert_close(read[number](x), expected, atol=1e-6, rtol=1e-5, msg=str(scheme))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [8, 4])
def test_transformers_reads_weights_and_inputs(bits, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("compressed_tensors", reason="needs the extra 'compressed-tensors'")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )).eval()  # fmt: skip
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "lm_head" not in name]
    kinds = (InputScheme(8), InputScheme(8, symmetric=True), InputScheme(8, "token"))
    schemes = {name: LayerScheme(WeightScheme(bits), kinds[number % 3]) for number, name in enumerate(names)}
    ids = torch.randint(0, 96, (2, 7))
    quantize(model, BitPolicy(schemes), [{"input_ids": ids}], forward_fn=lambda model, batch: model(**batch).logits)
    folder = export_compressed_tensors(model, tmp_path / "model")
    loaded, said = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        for tokens in (ids, ids[:1, :3]):  # lengths may change
            torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-3)


def test_sums_that_read_quantized_tensors_are_refused_by_compressed_tensors(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs the extra 'compressed-tensors'")

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return x[:, None] + self.layer(x)[:, None]

    model = Sum()
    policy = BitPolicy({"layer": LayerScheme(WeightScheme(4), InputScheme(8))}, operands={"add0": InputScheme(8)})
    pack_model(model, policy, ranges=dict.fromkeys(("layer", "add0:0", "add0:1"), InputRange(0.5, 0)))
    with pytest.raises(ValueError, match="carries inputs of Linear layers, and 'add0' reads quantized"):
        export_compressed_tensors(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
