"""Small models of `transformers`, as they come: dict batches with padding, every kind of block, every precision."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.state import state_of
from torch import Tensor, nn

import lightning_mpq as mpq
from lightning_mpq.modules import packed_layers
from lightning_mpq.network.named_weights import named_layers

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
T5_SIZES = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
DISTIL_SIZES = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}


def model_of(kind: str, **sizes: Any) -> Callable[[], nn.Module]:
    """Return a maker of a model; `kind` is that of `transformers`, whose configuration has its beginning."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        family = next(end for end in ("LMHead", "For", "Model") if end in kind)
        name = kind[: kind.index(family)]
        config = getattr(transformers, f"{name}TextConfig" if name == "Llama4" else f"{name}Config")
        return getattr(transformers, kind)(config(**sizes)).eval()

    return make


LLAMA = model_of("LlamaForCausalLM", **GROUPED)


def checkpointed() -> nn.Module:
    model = LLAMA()
    model.gradient_checkpointing_enable()
    return model.train()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2, whose Linear layers are transposed": model_of(
        "GPT2LMHeadModel", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32
    ),
    "Mixtral, whose experts are fused": model_of(
        "MixtralForCausalLM", **GROUPED, num_local_experts=4, num_experts_per_tok=1
    ),
    "Falcon, whose Linear layers multiply by hand": model_of(
        "FalconForCausalLM", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    ),
    "GPT-OSS, whose experts are the other way round": model_of(
        "GptOssForCausalLM", **GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2
    ),
    "Llama 4, whose experts get all tokens": model_of(
        "Llama4ForCausalLM", **GROUPED, head_dim=8, num_local_experts=2, intermediate_size_mlp=48
    ),
    "JetMoE, whose experts get sorted tokens": model_of(
        "JetMoeForCausalLM",
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_key_value_heads=2,
        kv_channels=8,
        intermediate_size=32,
        num_local_experts=4,
    ),
    "Llama": LLAMA,
    "Llama, tied": model_of("LlamaForCausalLM", **GROUPED, tie_word_embeddings=True),
    "Llama, bfloat16": lambda: LLAMA().bfloat16(),
    "Llama, float16": lambda: LLAMA().half(),
    "Llama, checkpointed": checkpointed,
    "Gemma 2, sliding window": model_of("Gemma2ForCausalLM", **GROUPED, head_dim=8, sliding_window=4),
    "BERT": model_of("BertModel", **SIZES),
    "BERT, classes": model_of("BertForSequenceClassification", **SIZES, num_labels=3),
    "RoBERTa, tokens": model_of("RobertaForTokenClassification", **SIZES, num_labels=3),
    "DistilBERT": model_of("DistilBertForMaskedLM", **DISTIL_SIZES),
    "T5": model_of("T5ForConditionalGeneration", **T5_SIZES, decoder_start_token_id=0),
    "ViT": model_of(
        "ViTForImageClassification",
        **{key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=3,
    ),
}
QUICK = ("GPT-2, whose Linear layers are transposed", "Mixtral, whose experts are fused")


def batches(name: str, side: str = "right", length: int = 10) -> list[dict[str, Tensor]]:
    """Return two batches of four samples, padded on one side."""
    generator = torch.Generator().manual_seed(0)
    if name == "ViT":
        return [{"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)} for _ in range(2)]
    found = []
    for _ in range(2):
        ids = torch.randint(3, VOCABULARY, (4, length), generator=generator)
        mask = torch.ones_like(ids)
        for row, count in enumerate([0, 1, 3, 5][: 4 if length > 5 else 0]):
            mask[row, slice(length - count, None) if side == "right" else slice(count)] = 0
        batch = {"input_ids": ids * mask, "attention_mask": mask}
        found.append({**batch, "decoder_input_ids": batch["input_ids"]} if name == "T5" else batch)
    return found


def quantized(model: nn.Module, data: list[dict[str, Tensor]]) -> tuple[nn.Module, mpq.Allocation]:
    """Do by hand what the callback does, with few candidates."""
    groups = mpq.find_groups(model)
    offered = mpq.make_candidates(groups, bits=[2, 4, 8], grids=["symmetric"])
    rounded = mpq.round_candidates(model, data, groups, offered)
    taylor = mpq.profile(model, data, groups=groups, rounded=rounded)
    allocation = mpq.allocate(taylor, mpq.Budget(average_bits=4.0))
    return mpq.quantize(copy.deepcopy(model), allocation.policy, data, rounded=rounded), allocation


def check(model: nn.Module, data: list[dict[str, Tensor]]) -> None:
    """Quantize a model; what is packed computes what the float model with the dequantized weights does."""
    before = state_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which likelihood was taken, and which outputs
        packed, allocation = quantized(model, data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert allocation.costs["average_bits"] <= 4.0
    assert len(allocation.policy.by_layer()) == len(list(packed_layers(packed)))
    twin, packed = copy.deepcopy(model).eval(), packed.eval()
    twin.load_state_dict(packed.state_dict(), strict=False)  # biases may have been repaired
    floats = named_layers(twin, remove_duplicate=False)
    with torch.no_grad():
        for layer, own in packed_layers(packed).items():
            floats[layer].weight.copy_(own.weight)
        ours, oracle = packed(**data[0])[0].float(), twin(**data[0])[0].float()
    assert torch.isfinite(ours).all()
    half = next(model.parameters()).dtype != torch.float32
    torch.testing.assert_close(ours, oracle, rtol=0.05 if half else 1e-4, atol=0.05 if half else 1e-5)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_model_is_quantized_as_it_comes(name):
    check(MODELS[name](), batches(name))


@pytest.mark.slow
def test_padding_on_the_left():
    check(LLAMA(), batches("Llama", "left"))


@pytest.mark.slow
def test_sequences_of_one_token():
    check(LLAMA(), batches("Llama", length=1))


@pytest.mark.slow
def test_under_mixed_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed, _ = quantized(LLAMA(), batches("Llama"))
        assert torch.isfinite(packed(**batches("Llama")[0]).logits).all()
