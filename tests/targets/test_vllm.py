"""Whole models of transformers, decided for vLLM: what it fuses agrees, and transformers reads what was written."""

import json
from itertools import product

import pytest
import torch
from helpers.deployed import packed_for
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.export.compressed_tensors import export_compressed_tensors
from lightning_mpq.modules import pack_model, packed_layers
from lightning_mpq.targets import Vllm, export_for, offer
from lightning_mpq.targets.menu import refuse_policy

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("compressed_tensors", reason="needs the extra 'compressed-tensors'")
pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
IDS = torch.randint(0, 96, (2, 7), generator=torch.Generator().manual_seed(0))


def llama(tied=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).eval()


def bert():
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES)).eval()


def test_fused_layers_are_one_group_and_tables_stay_in_float():
    groups, candidates = offer(Vllm(), llama(), mpq.CandidateOptions())
    members = {group.layers for group in groups}
    first = "model.layers.0."
    assert tuple(f"{first}self_attn.{name}_proj" for name in "qkv") in members
    assert tuple(f"{first}mlp.{name}_proj" for name in ("gate", "up")) in members
    assert {(f"{first}self_attn.o_proj",), (f"{first}mlp.down_proj",), ("lm_head",)} <= members
    assert "does not unpack tables" in groups.left_in_float["model.embed_tokens"]
    assert {c.scheme.weight.grid for c in candidates} == {"symmetric"}  # half 3 bits cost as much as 4, and have less
    tied, _ = offer(Vllm(), llama(tied=True), mpq.CandidateOptions())
    assert {"model.embed_tokens", "lm_head"} <= set(tied.left_in_float)
    of_bert, _ = offer(Vllm(), bert(), mpq.CandidateOptions())
    assert len([group for group in of_bert if len(group.layers) == 3]) == 2


def test_linear_layers_of_types_of_transformers_are_refused_and_those_of_others_are_not():
    class Own(nn.Linear):
        def forward(self, x):
            return x @ self.weight.T

    sizes = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**sizes, tie_word_embeddings=False))
    groups, _ = offer(Vllm(), nn.ModuleDict({"model": model, "own": Own(64, 64, bias=False)}), mpq.CandidateOptions())
    assert {layer for group in groups for layer in group.layers} == {"model.lm_head", "own"}
    reason = groups.left_in_float["model.transformer.h.0.self_attention.dense"]
    assert "it does not unpack layers of the type FalconLinear, which multiply by themselves" in reason


def test_all_experts_of_a_block_agree():
    block = nn.ModuleDict({"experts": nn.ModuleList(nn.ModuleDict({n: nn.Linear(8, 8) for n in ("w1", "w2", "w3")})
                                                    for _ in range(2))})  # fmt: skip
    groups, _ = offer(Vllm(), nn.ModuleDict({"a": block, "other": nn.Linear(8, 8)}), mpq.CandidateOptions())
    assert [len(group.layers) for group in groups] == [6, 1]


@pytest.mark.parametrize("make", [llama, bert])
def test_a_policy_of_its_menu_is_read_by_transformers(make, tmp_path):
    model = make()
    packed_for(Vllm(), model)
    found = export_for("vllm", model, tmp_path / "model", {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    assert found.layers == len(packed_layers(model)) >= 12
    assert found.error < 1e-6
    assert mpq.verify(tmp_path / "model").error < 1e-6  # the model is not needed


@pytest.mark.parametrize("shift", range(3))
def test_auto_classes_load_whole_models_in_every_width_grid_and_granularity(shift, tmp_path):
    """Some 30 layers between them take the 39 schemes that the format has for them."""
    every = product(range(2, 9), ("channel", 32, 64), ("symmetric", "half"))
    schemes = [mpq.WeightScheme(*each) for each in every if (each[0], each[2]) != (8, "half")]
    model = llama()
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    pack_model(model, mpq.BitPolicy({n: schemes[(13 * shift + i) % 39] for i, n in enumerate(names)}))
    folder = export_compressed_tensors(model, tmp_path / "model")
    for kind, own in ((transformers.AutoModelForCausalLM, model), (transformers.AutoModel, model.model)):
        loaded, said = kind.from_pretrained(folder, output_loading_info=True)
        assert not said["missing_keys"]
        assert all(key.startswith("lm_head.") for key in said["unexpected_keys"])
        with torch.no_grad():
            assert torch.equal(loaded.eval()(IDS)[0], own(IDS)[0])


@pytest.mark.parametrize(
    ("name", "scheme", "said"),
    [
        ("lm_head", mpq.WeightScheme(4, grid="asymmetric"), "does not read packed zero points"),
        ("model.embed_tokens", mpq.WeightScheme(4), "does not unpack tables"),
    ],
)
def test_what_transformers_does_not_read_is_refused_with_the_way_out(name, scheme, said, tmp_path):
    model = llama()
    pack_model(model, mpq.BitPolicy({name: scheme}))
    with pytest.raises(ValueError, match=rf"does not read 1 layers, such as '{name}'.*{said}.*target='vllm'"):
        export_compressed_tensors(model, tmp_path / "model")
    with pytest.raises(ValueError, match=rf"does not fit the target 'vllm': '{name}' .*{said}"):
        export_for("vllm", model, tmp_path / "model", {"input_ids": IDS})


def test_mixed_widths_of_fused_layers_are_refused(tmp_path):
    schemes = {f"model.layers.0.self_attn.{n}_proj": mpq.WeightScheme(b) for n, b in zip("qkv", (4, 4, 3), strict=True)}
    with pytest.raises(ValueError, match=r"these must agree: 'model.layers.0.self_attn.q_proj' 4-bit .*v_proj' 3-bit"):
        refuse_policy(Vllm(), llama(), mpq.BitPolicy(schemes))
    with pytest.raises(ValueError, match=r"scales belong to channels, or to blocks.*nearest: 4-bit symmetric/channel"):
        refuse_policy(Vllm(), llama(), mpq.BitPolicy({"lm_head": mpq.WeightScheme(4, 16)}))


def test_a_layer_whose_width_was_edited_is_named(tmp_path):
    model = llama()
    packed_for(Vllm(), model)
    export_for("vllm", model, tmp_path / "model", {"input_ids": IDS}, verify=False)
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["weights"]["num_bits"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(mpq.CorruptModelError, match=r"the layer 'model.layers.* was written in . bits and is in . now"):
        mpq.verify(tmp_path / "model")


@pytest.mark.parametrize(
    "edited",
    [
        {},
        {"config_groups": []},
        {"config_groups": {"group_0": {"targets": ["lm_head"]}}},
        {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
        {"config_groups": {"group_0": {"targets": "lm_head", "weights": {"num_bits": 4}}}},
        {"config_groups": {"group_0": {"targets": [4], "weights": {"num_bits": 4}}}},
        {"config_groups": {"group_0": {"targets": ["lm_head"], "weights": {"num_bits": "4"}}}},
        {"config_groups": {"group_0": None}},
    ],
)
def test_a_configuration_that_is_none_is_said_to_be_none(edited, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": edited}))
    with pytest.raises(mpq.CorruptModelError, match=r"config.json is no configuration that was exported here"):
        Vllm().read(tmp_path)
