"""What is made of the results of peers: targets, and tables for README and docs."""

import json

import pytest

from benchmarks.pages.blocks.peers import block, in_short
from benchmarks.runs.peers.__main__ import main
from benchmarks.runs.peers.measuring import with_all_figures
from benchmarks.runs.peers.targets import targets
from benchmarks.tools.results import read_results


def test_the_target_names_the_best_peer():
    keys = {"network": "some", "seed": 0, "budget": 3.0}
    losses = {"ours": 0.2, "one": 0.4, "other": 0.1, "none": None}
    [found] = targets([{**keys, "peer": peer, "unseen_loss": loss} for peer, loss in losses.items()])
    assert (found.met, found.measured) == (False, 2.0)
    assert "some, 3 bits, draws of samples: 1, unseen loss over that of the best peer (other)" in found.name


def test_the_target_and_the_short_table_take_draws_that_both_have():
    keys = {"network": "some", "budget": 3.0, "stored_bytes": 1200}
    losses = {
        ("ours", 0): 1.0,
        ("ours", 1): 4.0,
        ("one", 0): 4.0,
        ("one", 1): 4.0,
        ("a score, our candidates", 1): 2.0,
        ("a score, our candidates", 2): 0.1,
    }
    rows = [{**keys, "peer": peer, "seed": seed, "unseen_loss": loss} for (peer, seed), loss in losses.items()]
    [found] = targets(rows)
    assert found.measured == 2.0
    assert in_short({"results": rows}, "results").splitlines()[2:] == [
        "| some | 3 | 2 | 1 | 2.5 | one: 2 times | a score: 0.5 times |",
    ]


@pytest.mark.parametrize("quality", ["cosine", "perplexity"])
def test_the_table_says_loss_quality_bytes_times_and_why_not(quality):
    keys = {"network": "some", "budget": 3.0, "stored_bytes": 1200, "accuracy": None, "cannot": None, "refused": None}
    figures = dict.fromkeys(("cosine", "neighbours", "agreement", "perplexity"))
    rows = [
        {
            **keys,
            **figures,
            "seed": seed,
            "peer": peer,
            "unseen_loss": loss,
            quality: 0.5,
            "processor_seconds": seconds,
        }
        for seed in (0, 1)
        for peer, loss, seconds in (("ours", 0.2 + seed / 10, 2.0), ("one", 0.4, 8.0), ("other", 0.5, 0.0))
    ]
    none = dict.fromkeys(("unseen_loss", quality, "processor_seconds", "stored_bytes"))
    rows.append({**rows[0], **none, "peer": "bad", "refused": "It lacks the layer '0' (1 in all)."})
    rows.append({**rows[0], **none, "peer": "none", "cannot": "too old"})
    rows.append({**rows[0], **none, "budget": 2.0, "cannot": "nobody was asked at 2 bits"})
    rows.append({**rows[0], **none, "network": "no answers", "cannot": "nobody was asked"})
    lines = block({"results": rows}, "results").splitlines()[2:]
    title = f"loss on unseen samples ({quality}) in bytes of the quantized layers"
    assert lines[0] == f"some, 2 draws of samples where a deviation stands: {title}"
    assert lines[2:7] == [
        "|  | 3 bits | processor time over ours |",
        "| --- | ---: | ---: |",
        "| ours | 0.25 ± 0.07 (0.500) 1,200 | 1 |",
        "| one | 0.4 ± 0 (0.500) 1,200 | 4 |",
        "| other | 0.5 ± 0 (0.500) 1,200 |  |",
    ]
    assert lines[8:] == ["- bad, 3 bits: refused: It lacks the layer '0' (1 in all).", "- none: too old"]


def test_answers_that_are_there_are_collected_with_each_reason_once_and_what_nobody_was_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["ours", "torchao", "nearest, absmax", "MCT"]
    folder = tmp_path / "outputs/parts/peers"
    folder.mkdir(parents=True)
    for seed, bits in ((0, 3), (0, 4), (1, 3)):
        keys = {"network": "digits", "seed": seed, "budget": float(bits)}
        answer = with_all_figures({**keys, "peer": "ours", "unseen_loss": 0.0123456789, "stored_bytes": 1200})
        (folder / f"digits-{seed}-{bits}-ours.json").write_text(json.dumps([answer]))
        refused = with_all_figures({**keys, "peer": "MCT", "refused": f"It failed at {bits} bits."})
        (folder / f"digits-{seed}-{bits}-MCT.json").write_text(json.dumps([refused]))
    asked = ["--budgets", "2.5", "3", "4", "--seeds", "0", "1", "--peers", *names]
    main(["digits", "minilm", "--known", *asked, "--output", "found.json"])
    found = read_results("found", tmp_path)
    assert [row["unseen_loss"] for row in found["results"] if row["peer"] == "ours"] == [0.0123457] * 3
    assert len([row for row in found["results"] if row["refused"]]) == 3
    [reason] = [row for row in found["results"] if row["cannot"]]
    assert (reason["peer"], reason["budget"]) == ("torchao", 3.0)  # nobody has answered at 2.5 bits
    assert found["settings"]["skipped"] == [
        "digits, nearest, absmax: not measured",
        *(f"minilm, {name}: not measured" for name in names),
    ]
