"""ggml's types decided, written into a user's GGUF file, and computed by llama.cpp itself."""

import pytest
import torch
from helpers.deployed import packed_for
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import pack_model, packed_layers, policy_of
from lightning_mpq.targets import LlamaCpp, export_for, llama_recipe, offer
from lightning_mpq.targets.gguf_names import tensor_names

gguf = pytest.importorskip("gguf", reason="needs the extra 'llama-cpp'")
pytest.importorskip("transformers", reason="needs transformers")
from helpers.gguf_llama import llama, tokens, write_gguf  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=[False, True], ids=["head", "tied"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model = llama(tied=request.param)
    target = LlamaCpp(write_gguf(model, folder / "float.gguf"))
    groups, candidates, chosen = packed_for(target, model)
    return model, target, groups, chosen, export_for(target, model, folder / "m.gguf", {"input_ids": tokens()})


def test_types_are_offered_where_their_columns_fit(tmp_path):
    _, candidates = offer(LlamaCpp(), llama(hidden=288), mpq.CandidateOptions())
    wide = {c.scheme.weight.grid for c in candidates if c.group == "model.layers.0.mlp.down_proj"}
    narrow = {c.scheme.weight.grid for c in candidates if c.group == "model.layers.0.mlp.up_proj"}
    assert narrow == {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"}
    assert wide == narrow | {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k"}
    groups, _ = offer(LlamaCpp(), nn.Sequential(nn.Linear(24, 8), nn.Linear(32, 8)), mpq.CandidateOptions())
    assert "stores 32 columns together, and the layer has 24" in groups.left_in_float["0"]


def test_bytes_are_as_counted_and_tensors_of_their_types(exported):
    model, target, groups, chosen, found = exported
    layers = packed_layers(model)
    assert found.layers == len(layers)
    counted = sum(candidate.stored_bits for candidate in chosen.values()) // 8
    assert sum(stored.bytes for stored in target.read(found.path).values()) == counted
    names = tensor_names(model)
    kinds = {each.name: each.tensor_type.name.lower() for each in gguf.GGUFReader(found.path).tensors}
    for layer, packed in layers.items():
        if (tensor := names[f"{layer}.weight"]) in kinds:
            assert kinds[tensor] == packed.scheme.grid


def test_llama_cpp_computes_what_the_packed_model_does(exported):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    *_, found = exported
    assert 0 < found.error < 0.05
    assert mpq.verify(found.path).error == found.error


def test_logits_take_as_many_threads_as_pytorch(exported, monkeypatch):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    asked = []

    def noted(*given, load=llama_cpp.Llama, **named):
        asked.append((named["n_threads"], named["n_threads_batch"]))
        return load(*given, **named)

    monkeypatch.setattr(llama_cpp, "Llama", noted)
    mpq.verify(exported[-1].path)
    assert asked == [(torch.get_num_threads(),) * 2]


def test_biases_are_those_of_the_model_after_repair(tmp_path):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    model = llama(biases=True)
    target = LlamaCpp(write_gguf(model, tmp_path / "float.gguf"))
    packed_for(target, model)
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 8
    with torch.no_grad():
        for number, bias in enumerate(biases):
            bias += torch.randn(bias.shape, generator=torch.Generator().manual_seed(number))
    assert export_for(target, model, tmp_path / "m.gguf", tokens()).error < 0.05
    with torch.no_grad():
        model.model.norm.weight += 0.3
    with pytest.raises(ValueError, match="output_norm.weight is not in the model what it is in the file"):
        export_for(target, model, tmp_path / "m.gguf", tokens())


def test_damage_is_noticed_and_names_the_layer(exported):
    *_, found = exported
    before = found.path.read_bytes()
    tensor = next(t for t in gguf.GGUFReader(found.path).tensors if t.name == "blk.1.ffn_up.weight")
    place = tensor.data_offset + tensor.n_bytes // 2
    found.path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    with pytest.raises(mpq.CorruptModelError, match=r"layer 'model.layers.1.mlp.up_proj' .* has other codes or scales"):
        mpq.verify(found.path)
    for content in (before[:-40], before[: len(before) // 3], b"GGUF", b""):
        found.path.write_bytes(content)
        with pytest.raises(mpq.CorruptModelError):
            mpq.verify(found.path)
    found.path.write_bytes(before)


def test_what_cannot_be_written_is_said(tmp_path):
    model = llama()
    packed_for(LlamaCpp(), model)
    inputs = {"input_ids": tokens()}
    with pytest.raises(ValueError, match=r"pass LlamaCpp\(gguf='model-f16.gguf'\).*llama_recipe"):
        export_for("llama-cpp", model, tmp_path / "m.gguf", inputs)
    with pytest.raises(FileNotFoundError, match="give the GGUF file of the float model"):
        export_for(LlamaCpp(tmp_path / "none.gguf"), model, tmp_path / "m.gguf", inputs)
    other = LlamaCpp(write_gguf(llama(seed=1), tmp_path / "other.gguf"))
    with pytest.raises(ValueError, match="the file of another model, or of one that was trained on since"):
        export_for(other, model, tmp_path / "m.gguf", inputs)
    smaller = LlamaCpp(write_gguf(llama(hidden=128), tmp_path / "smaller.gguf"))
    with pytest.raises(ValueError, match="it is the file of another model"):
        export_for(smaller, model, tmp_path / "m.gguf", inputs)
    plain = nn.Sequential(nn.Linear(32, 8))
    packed_for(LlamaCpp(), plain)
    with pytest.raises(ValueError, match="has no config: pass a model of transformers"):
        export_for(other, plain, tmp_path / "m.gguf", torch.randn(2, 32))
    pack_model(plain := llama(), mpq.BitPolicy({"lm_head": mpq.WeightScheme(4)}))
    with pytest.raises(ValueError, match=r"'lm_head' \(4-bit symmetric/channel\): its types are .*nearest: 4-bit q4"):
        export_for(other, plain, tmp_path / "m.gguf", inputs)
    assert {path.name for path in tmp_path.iterdir()} == {"other.gguf", "smaller.gguf"}


def test_a_recipe_has_a_type_for_each_tensor_and_mean_squares_of_inputs(tmp_path):
    model = llama()
    seen = []
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    groups, candidates = offer(LlamaCpp(), model, mpq.CandidateOptions(rounding="nearest"))
    schemes = {group.name: next(c for c in candidates if c.group == group.name).scheme for group in groups}
    policy = mpq.BitPolicy(schemes, {group.name: group.layers for group in groups})
    types, importance = llama_recipe(model, policy, tmp_path, [{"input_ids": tokens()}])
    lines = types.read_text().splitlines()
    assert len(lines) == len(policy.weights())
    assert r"^blk\.1\.ffn_up\.weight$=" + policy.weights()["model.layers.1.mlp.up_proj"].grid in lines
    file = gguf.GGUFReader(importance)
    assert file.get_field("general.type").contents() == "imatrix"
    tensors = {each.name: each.data for each in file.tensors}
    inputs = seen[0].flatten(0, 1).double()
    mean = tensors["blk.1.ffn_up.weight.in_sum2"] / tensors["blk.1.ffn_up.weight.counts"]
    torch.testing.assert_close(torch.tensor(mean[0]).double(), inputs.square().mean(0), rtol=1e-5, atol=1e-9)
    assert not policy_of(model).weights()
