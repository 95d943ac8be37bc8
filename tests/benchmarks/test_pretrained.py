"""Figures of quality on unseen samples against other ways to compute them, and targets of rows with a known answer."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from benchmarks.pages.blocks.pretrained import block, switched_off, times
from benchmarks.problems.subjects import UNSEEN, subject
from benchmarks.runs.pretrained.targets import targets
from benchmarks.tools.quality import of_classes, of_embeddings, of_tokens


def two(*shape: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(0)
    reference = [torch.randn(shape) for _ in range(2)]
    return reference, [one + 0.5 * torch.randn(shape) for one in reference]


def test_embeddings():
    reference, found = two(7, 4)
    quality = of_embeddings(reference, found, [None, None])
    one, other = torch.cat(reference), torch.cat(found)
    assert quality["cosine"] == pytest.approx(float(cosine_similarity(one, other).mean()), rel=1e-5)

    def nearest(rows, i):
        return max((j for j in range(14) if j != i), key=lambda j: float(cosine_similarity(rows[i], rows[j], dim=0)))

    same = [nearest(one, i) == nearest(other, i) for i in range(14)]
    assert quality["neighbours"] == pytest.approx(sum(same) / 14)
    assert 0 < sum(same) < 14


def test_classes():
    reference, found = two(9, 5)
    quality = of_classes(reference, found, [None, None])
    one, other = torch.cat(reference).double(), torch.cat(found).double()
    expected = kl_div(other.log_softmax(1), one.softmax(1), reduction="batchmean")
    assert quality["divergence"] == pytest.approx(float(expected))
    assert quality["agreement"] == pytest.approx(float((one.argmax(1) == other.argmax(1)).double().mean()))


def test_tokens():
    reference, found = two(3, 6, 8)
    batches = [torch.randint(6, (3, 8)) for _ in range(2)]
    quality = of_tokens(reference, found, batches)
    loss = cross_entropy(torch.cat(found)[:, :, :-1], torch.cat(batches)[:, 1:])
    assert quality["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    tokens = [part.movedim(1, 2).reshape(-1, 6).double() for part in (torch.cat(reference), torch.cat(found))]
    each = kl_div(tokens[1].log_softmax(1), tokens[0].softmax(1), reduction="none").sum(1)
    assert quality["divergence"] == pytest.approx(float(each.mean()), rel=1e-5)
    assert quality["divergence_99"] == pytest.approx(float(each.quantile(0.99)), rel=1e-5)


def test_unseen_samples_are_others_and_odd_numbers_are_refused():
    loaded = subject("made_up", None, 16)
    assert sum(map(len, loaded.calibration)) == 16
    assert sum(map(len, loaded.unseen)) == UNSEEN["made_up"]
    seen = torch.cat(loaded.calibration)
    assert not any((seen == row).all(1).any() for row in torch.cat(loaded.unseen))
    with pytest.raises(ValueError, match="a multiple of the batch size"):
        subject("made_up", None, 17)


def rows() -> list[dict]:
    keys = {"network": "minilm", "samples": 512, "budget": 3.0, "without": "nothing", "stored_bytes": 9}
    none = dict.fromkeys(("agreement", "divergence", "divergence_99", "perplexity", "neighbours"))
    losses = {"calibration_loss": 0.1, "held_out_loss": None, "predicted_loss": 0.2, **none}
    stages = {"seconds": {"round": 60.0}, "processor_seconds": {"round": 50.0}, "peak_mib": {"round": 100}}
    now, before = {**keys, "version": "now", **losses}, {**keys, "version": "before", **losses}
    return [
        {**now, "model": "chosen", "unseen_loss": 0.14, "cosine": 0.9, **stages},
        {**now, "model": "uniform", "unseen_loss": 0.3, "cosine": 0.91},
        {**before, "model": "chosen", "unseen_loss": 0.28, "cosine": 0.8, **stages},
    ]


def test_targets_compare_with_the_version_before_and_with_one_width():
    found = {target.name.partition(": ")[2]: (target.measured, target.met) for target in targets(rows())}
    assert found == {
        "loss on unseen over that on calibration samples": (pytest.approx(1.4), True),
        "predicted loss over that on unseen samples": (pytest.approx(0.2 / 0.14), False),
        "loss on unseen samples over that of the version before": (pytest.approx(0.5), True),
        "cosine, the bound being that of one width everywhere": (0.9, False),
        "minutes of the whole job": (1.0, True),
    }


def test_one_width_in_many_more_bytes_is_no_bound():
    chosen, uniform, before = rows()
    found = targets([chosen, {**uniform, "stored_bytes": 10}, before])
    assert not [target for target in found if "one width" in target.name]


def test_the_page_has_a_row_for_each_policy_and_version():
    content = {"results": rows()}
    assert block(content, "").count("\n| 512, 3 |") == 3
    assert "| minilm, 512, 3 | now | 50 s, 100 MiB | 50 s |" in times(content, "")


def test_what_is_switched_off_stands_beside_the_whole_job():
    whole = rows()[0]
    without = {**whole, "without": "repair", "unseen_loss": 0.21}
    text = switched_off({"results": [without, *rows(), {**whole, "samples": 64}]}, "")
    assert [line.split(" | ")[1:4] for line in text.splitlines()[2:]] == [
        ["nothing", "0.14", "1.00"],
        ["repair", "0.21", "1.50"],
    ]
