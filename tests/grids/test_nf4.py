"""NF4, the grid without equal steps: one file, and everything from rounding to fine-tuning works with it."""

import ast
import copy
from pathlib import Path

import pytest
import torch
from scipy.stats import norm
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.grids.nf4 import NormalFloat4
from lightning_mpq.modules import packed_layers, stored_bytes

PACKAGE = Path(mpq.__file__).parent
LEVELS = torch.tensor(NormalFloat4.table)


def network() -> nn.Sequential:
    """Weights are normally distributed, as those of trained networks nearly are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 24), nn.Tanh(), nn.Linear(24, 5))
    for layer in (net[0], net[3], net[5]):
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    return net


def batches(count: int = 4) -> list[torch.Tensor]:
    return list(torch.randn(16 * count, 1, 6, 6, generator=torch.Generator().manual_seed(1)).split(16))


def test_levels_are_the_quantiles_of_the_paper():
    """Appendix E of the paper, as its authors' library computes it: eight quantiles on one side, seven on the other."""
    outermost = 0.9677083
    low = -norm.ppf(torch.linspace(outermost, 0.5, 8, dtype=torch.float64)[:-1].numpy())
    high = norm.ppf(torch.linspace(outermost, 0.5, 9, dtype=torch.float64)[:-1].numpy())
    levels = torch.tensor(sorted([*low, 0.0, *high]))
    torch.testing.assert_close(LEVELS.double(), levels / levels.max(), rtol=0, atol=1e-6)


def test_no_other_file_knows_it():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        said = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value == "nf4" and id(n) not in docs]
        assert not said or path.name == "nf4.py", path
        assert "NormalFloat4" not in path.read_text() or path.name == "nf4.py", path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
def test_from_rounding_to_a_loaded_model(tmp_path, rounding):
    model, data = network(), batches()
    floats = copy.deepcopy(model)
    groups = mpq.find_groups(model)
    grids = ["symmetric", "half", "nf4"]
    candidates = mpq.make_candidates(groups, [2, 4, 8], rounding=rounding, granularities=[64], grids=grids)
    rounded = mpq.round_candidates(model, data, groups, candidates)
    four = {c.group: c.scheme.weight.grid for c in rounded.candidates if c.scheme.bits == 4}
    assert set(four) == {group.name for group in groups}
    if rounding == "nearest":
        assert "nf4" in four.values()  # chosen, as its levels suit such weights better than equal steps
    taylor = mpq.profile(model, data, groups=groups, rounded=rounded, likelihood=mpq.Categorical())
    allocation = mpq.allocate(taylor, mpq.Budget(average_bits=4.6))
    policy = mpq.BitPolicy({name: mpq.WeightScheme(4, 64, "nf4", rounding=rounding) for name in four})
    for chosen in (allocation.policy, policy):
        packed = mpq.quantize(copy.deepcopy(floats), chosen, data, rounded=rounded if chosen is not policy else None)
        counted = sum(c.stored_bits for c in rounded.candidates if chosen[c.group] == c.scheme)
        if chosen is allocation.policy:
            assert stored_bytes(packed).packed * 8 == counted
        mpq.save(packed, tmp_path / "model")
        loaded = mpq.load(tmp_path / "model", copy.deepcopy(floats))
        assert torch.equal(loaded(data[0]), packed(data[0]))
        for layer in packed_layers(loaded).values():
            if layer.scheme.grid == "nf4":
                assert set(layer.weight.flatten().tolist()) <= set(every_level(layer).tolist())


def every_level(layer) -> torch.Tensor:
    """Return the levels of all scales of a layer."""
    return layer.scale.float().flatten()[:, None].mul(LEVELS).flatten()


def test_nearest_codes_are_nearest_by_brute_force():
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(2))
    layer = nn.Linear(70, 5)
    layer.weight.data = weight
    model = mpq.quantize(nn.Sequential(layer), mpq.BitPolicy({"0": mpq.WeightScheme(4, 32, "nf4")}))
    scale = model[0].scale.float().repeat_interleave(32, dim=1)[:, :70]
    best = (scale[..., None] * LEVELS - weight[..., None]).abs().min(-1).values
    torch.testing.assert_close((model[0].weight - weight).abs(), best)


@pytest.mark.filterwarnings("ignore")
def test_it_is_fine_tuned_and_packed_to_the_codes_of_the_last_step():
    model, data = network(), batches()
    floats = copy.deepcopy(model)
    targets = [floats(batch).detach() for batch in data]
    policy = mpq.BitPolicy({name: mpq.WeightScheme(4, "channel", "nf4") for name in ("0", "3", "5")})
    handle = mpq.fake_quantize(model, policy)
    start = sum(float((model(x) - y).square().mean()) for x, y in zip(data, targets, strict=True))
    optimizer = torch.optim.Adam([*model.parameters(), *handle.parameters()], lr=1e-3)
    for _ in range(20):
        for batch, target in zip(data, targets, strict=True):
            optimizer.zero_grad()
            (model(batch) - target).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        end = sum(float((model(x) - y).square().mean()) for x, y in zip(data, targets, strict=True))
        before = model.eval()(data[0])
        handle.pack()
        torch.testing.assert_close(model(data[0]), before, rtol=1e-6, atol=1e-6)
    assert end < 0.7 * start
    assert {layer.scheme.grid for layer in packed_layers(model).values()} == {"nf4"}


@pytest.mark.filterwarnings("ignore")
def test_it_reaches_the_callback(tmp_path):
    from helpers.trainer import SmallClassifier, SmallData, make_trainer

    options = mpq.CandidateOptions(bits=(4,), grids=["nf4"], granularities=("channel", 16))
    mixed = mpq.MixedPrecisionQuantization(8.0, candidates=options, calibration_batches=2)
    module = SmallClassifier()
    make_trainer(tmp_path, mixed, max_epochs=1).fit(module, SmallData())
    assert {layer.scheme.grid for layer in packed_layers(module).values()} == {"nf4"}


def refusing():
    model = mpq.quantize(nn.Sequential(nn.Linear(64, 16)), mpq.BitPolicy({"0": mpq.WeightScheme(4, 32, "nf4")}))
    return model, torch.randn(2, 64)


@pytest.mark.parametrize(
    ("package", "export"),
    [
        ("onnxscript", lambda model, inputs, folder: mpq.export_onnx(model, folder / "model.onnx", inputs)),
        ("compressed_tensors", lambda model, inputs, folder: mpq.export_compressed_tensors(model, folder / "ct")),
        ("torchao", lambda model, inputs, folder: mpq.torchao_config(mpq.BitPolicy({"0": model[0].scheme}))),
    ],
)
def test_exports_that_cannot_carry_it_refuse_by_name_and_write_nothing(tmp_path, package, export):
    pytest.importorskip(package, reason="needs the extra of the export")
    model, inputs = refusing()
    with pytest.raises(ValueError, match="layer '0' .*nf4"):
        export(model, inputs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_kernels_leave_it_to_plain_dequantizing_and_say_why():
    model, inputs = refusing()
    expected = model(inputs)
    choices = mpq.use_kernels(model)
    assert "nf4" in str(choices)
    assert torch.equal(model(inputs), expected)
