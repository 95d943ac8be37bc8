"""Schemes and policies: contradictions, storage counts and the JSON form."""

import json
import os

import pytest
from helpers.odd_json import odd_texts, refusal
from helpers.special_files import make
from hypothesis import given
from hypothesis import strategies as st

from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

schemes = st.builds(
    WeightScheme,
    bits=st.integers(2, 8),
    granularity=st.one_of(st.sampled_from(["tensor", "channel"]), st.integers(1, 300)),
    grid=st.sampled_from(DEFAULT_GRIDS),
    clip=st.one_of(st.sampled_from(["absmax", "mse"]), st.floats(0.01, 1)),
    scale_dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
)

input_schemes = st.one_of(
    st.just("float"),
    st.builds(
        InputScheme,
        bits=st.integers(4, 8),
        granularity=st.sampled_from(["tensor", "token"]),
        symmetric=st.booleans(),
        clip=st.sampled_from(["mse", "percentile", "absmax"]),
    ),
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bits": 1}, "bits must be an integer from 2 to 8, got 1"),
        ({"bits": 3.0}, "bits must be an integer"),
        ({"bits": True}, "bits must be an integer"),
        ({"bits": 4, "granularity": 0}, "granularity must be"),
        ({"bits": 4, "granularity": "row"}, "granularity must be"),
        ({"bits": 4, "grid": "log"}, "grid must be one of .*symmetric"),
        ({"bits": 4, "clip": 1.5}, "clip must be"),
        ({"bits": 4, "clip": 0}, "clip must be"),
        ({"bits": 4, "scale_dtype": "int8"}, "scale_dtype must be one of"),
    ],
)
def test_contradictions_are_sentences(arguments, said):
    with pytest.raises(ValueError, match=said):
        WeightScheme(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bits": 3}, "bits of inputs must be an integer from 4 to 8, got 3"),
        ({"bits": True}, "bits of inputs must be an integer"),
        ({"bits": 8, "granularity": "channel"}, "granularity of inputs must be one of 'tensor', 'token'"),
        ({"bits": 8, "clip": 0.5}, "clip of inputs must be one of 'mse'"),
        ({"bits": 8, "symmetric": 1}, "symmetric must be one of True, False"),
    ],
)
def test_contradictions_of_inputs_are_sentences(arguments, said):
    with pytest.raises(ValueError, match=said):
        InputScheme(**arguments)


def test_what_is_no_scheme_of_inputs_is_refused():
    with pytest.raises(ValueError, match="have an InputScheme, or input='float'; got 8"):
        LayerScheme(WeightScheme(4), 8)
    with pytest.raises(ValueError, match="The scheme of inputs has the keys bits, clip.* got width as well"):
        LayerScheme.from_dict({"weight": {"bits": 4}, "input": {"bits": 8, "width": 1}})
    with pytest.raises(ValueError, match="The scheme of inputs needs the key 'bits'"):
        LayerScheme.from_dict({"weight": {"bits": 4}, "input": {"symmetric": True}})


def test_a_policy_says_whose_inputs_are_quantized():
    schemes = {"block": LayerScheme(WeightScheme(4), InputScheme(8)), "head": WeightScheme(3)}
    policy = BitPolicy(schemes, {"block": ("conv1", "conv2")})
    assert policy.inputs() == {"conv1": InputScheme(8), "conv2": InputScheme(8)}
    assert str(policy["block"]) == "4-bit symmetric/channel, 8-bit inputs"
    written = json.loads(policy.to_json())["groups"]
    assert written["block"]["input"] == {"bits": 8, "granularity": "tensor", "symmetric": False, "clip": "mse"}
    assert written["head"]["input"] == "float"


def test_storage_counts_codes_scales_and_zero_points():
    assert WeightScheme(3, scale_dtype="float32").stored_bits(16, 9) == 144 * 3 + 16 * 32
    assert WeightScheme(3, "tensor").stored_bits(16, 9) == 144 * 3 + 16
    assert WeightScheme(4, 4, "asymmetric").stored_bits(2, 9) == 24 * 4 + 6 * (16 + 8)  # 18 codes padded to 24


@given(st.dictionaries(st.text(min_size=1), st.builds(LayerScheme, schemes, input_schemes), max_size=4))
def test_json_brings_the_policy_back(choice):
    policy = BitPolicy(choice, {name: (name + ".a", name + ".b") for name in choice} if len(choice) < 2 else {})
    again = BitPolicy.from_json(policy.to_json())
    assert again == policy
    assert again.by_layer() == policy.by_layer()


def groups_as_json(groups: object) -> str:
    return json.dumps({"format": "lightning_mpq.policy", "version": 1, "groups": groups})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "this is not"),
        ("[]", "Expected a policy"),
        ('{"format": "other"}', "Expected a policy"),
        (json.dumps({"format": "lightning_mpq.policy", "version": 9}), "version 1 or 2, got 9"),
        (groups_as_json([]), r"one entry a group, got \[\]"),
        (groups_as_json({"a": 3}), "group 'a' .* needs 'layers' as a list of names; got 3"),
        (groups_as_json({"a": {"scheme": {"bits": 3}}}), "group 'a' .* needs 'layers' as a list of names"),
        (groups_as_json({"a": {"layers": []}}), "group 'a' .*: it needs 'scheme'"),
        (groups_as_json({"a": {"scheme": {"bits": 3}, "layers": "a"}}), "a list of names; got .*'layers': 'a'"),
        (
            groups_as_json({"a": {"scheme": [], "layers": []}}),
            r"is an object with the keys bits, .*got \[\]",
        ),
        (groups_as_json({"a": {"scheme": {}, "layers": []}}), "group 'a' .* needs the key"),
        (groups_as_json({"a": {"scheme": {"bits": 3, "x": 1}, "layers": []}}), "got x as well"),
        (groups_as_json({"a": {"scheme": {"bits": 3, "scale_dtype": []}, "layers": []}}), r"scale_dtype .*got \[\]"),
    ],
)
def test_foreign_json_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        BitPolicy.from_json(text)


def test_a_layer_belongs_to_one_group():
    four = WeightScheme(4)
    with pytest.raises(ValueError, match="'x' is in the groups 'a' and 'b'"):
        BitPolicy({"a": four, "b": four}, {"a": ("x",), "b": ("x", "y")})


def test_a_file_holds_the_policy(tmp_path):
    policy = BitPolicy({"a": WeightScheme(3, 16, "half"), "b": WeightScheme(8)}, {"a": ("x", "y")})
    path = policy.save(tmp_path / "plans" / "policy.json")
    assert BitPolicy.load(path) == policy
    assert json.loads(path.read_text())["groups"]["a"]["layers"] == ["x", "y"]


def test_a_file_that_holds_no_policy_is_named(tmp_path):
    path = tmp_path / "policy.json"
    for content, said in ((b"{", "this is not"), (b"{}", "Expected a policy"), (b"\xff\xfe", "codec can't decode")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"policy.json: .*{said}"):
            BitPolicy.load(path)
    with pytest.raises(FileNotFoundError):
        BitPolicy.load(tmp_path / "gone.json")


def test_odd_values_are_refused_in_one_way_and_shortly():
    policy = BitPolicy({"a": WeightScheme(3, 4, clip=0.5), "b": WeightScheme(2)}, {"a": ("x", "y")})
    for text in odd_texts(policy.to_json()):
        assert len(refusal(ValueError, BitPolicy.from_json, text)) < 2_000


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "giant", "loop"])
def test_what_is_no_ordinary_file_is_refused(tmp_path, kind):
    with pytest.raises((OSError, ValueError), match="policy"):
        BitPolicy.load(make(kind, tmp_path / "policy.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3],), r"BitPolicy: schemes must be a mapping from names to LayerScheme or WeightScheme, got \[3\]\."),
        (
            ({"a": 3},),
            r"BitPolicy: schemes must be a mapping from names to LayerScheme or WeightScheme, got \{'a': 3\}\.",
        ),
        ((None,), "BitPolicy: schemes must be a mapping .* got None"),
        (({"a": WeightScheme(3)}, ["b"]), "BitPolicy: layers must be a mapping .* got"),
    ],
)
def test_what_is_no_policy_is_said(arguments, message):
    with pytest.raises(TypeError, match=message):
        BitPolicy(*arguments)


def test_the_name_of_one_layer_is_no_list_of_names():
    with pytest.raises(ValueError, match=r"layers of 'block' must be a tuple of names, got 'conv1': give \('conv1',\)"):
        BitPolicy({"block": WeightScheme(3)}, {"block": "conv1"})
