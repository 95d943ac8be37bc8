"""Adapters that need no environment of their own: their answers are taken, and fit the budget."""

import importlib

import pytest
import torch

from benchmarks.methods.clado import clado_matrix
from benchmarks.runs.peers.adapters import scores
from benchmarks.runs.peers.checking import checked
from benchmarks.runs.peers.peers import PEERS
from benchmarks.runs.peers.problems import drawn_targets, pretrained
from benchmarks.runs.peers.records import Answer, CannotError, total_bytes

NEEDS = {"torchao": "torchao", "brevitas": "brevitas"}
HERE = [peer for peer in PEERS if peer.adapter in ("ours", "nearest", "scores", *NEEDS)]


@pytest.fixture(scope="module")
def problem():
    return pretrained("made_up", None, 32, seed=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", HERE, ids=[peer.name for peer in HERE])
def test_an_adapter_s_answer_is_taken(peer, problem):
    pytest.importorskip(NEEDS.get(peer.adapter, "torch"), reason="the adapter is of it")
    adapter = importlib.import_module(f"benchmarks.runs.peers.adapters.{peer.adapter}")
    task = problem.task(4.0, 0, peer.options)
    found = adapter.quantize(task)
    answer = Answer(found.layers, found.others, total_bytes(task, found.layers), 0.0, 0.0, 0, {})
    assert 0 < problem.quality(checked(task, answer))["unseen_loss"] < 0.05


def test_clado_says_where_pairs_are_too_many(problem, monkeypatch):
    monkeypatch.setattr(scores, "CLADO_MOST", 26)
    with pytest.raises(CannotError, match="27 pairs of candidates, each a pass over all samples: more than 26"):
        scores.quantize(problem.task(4.0, 0, {"score": "clado"}))


def test_clado_s_matrix_of_a_quadratic_loss_is_its_hessian_s_without_negative_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weights = {name: torch.randn(3, generator=generator, dtype=torch.float64) for name in "ab"}
    before = {name: weight.clone() for name, weight in weights.items()}
    errors = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(4)]
    groups = ["a", "a", "b", "b"]
    moves = torch.zeros(4, 6, dtype=torch.float64)
    for row, (group, error) in enumerate(zip(groups, errors, strict=True)):
        moves[row, slice(0, 3) if group == "a" else slice(3, 6)] = error

    def loss():
        moved = torch.cat([weights[name] - before[name] for name in "ab"])
        return float((moved @ root).square().sum() / 2)

    expected = (moves @ root) @ (moves @ root).T
    same_layer = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool() & ~torch.eye(4).bool()
    values, vectors = torch.linalg.eigh(expected.masked_fill(same_layer, 0.0))
    expected = (vectors * values.clamp(min=0)) @ vectors.T
    torch.testing.assert_close(clado_matrix(weights, groups, errors, loss), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights, before, rtol=0, atol=1e-15)


def test_targets_are_drawn_from_what_the_model_says(problem):
    loaded = problem.subject
    with torch.no_grad():
        outputs = torch.cat([loaded.model(batch) for batch in loaded.calibration])
    drawn = torch.cat([drawn_targets(loaded, seed) - outputs for seed in range(50)])
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(drawn.var()) == pytest.approx(loaded.likelihood.variance, rel=0.05)
    assert torch.equal(drawn_targets(loaded, 0), drawn_targets(loaded, 0))
