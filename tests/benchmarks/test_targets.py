"""Files of targets beside those of the runtimes' own quantizers: what is measured, on networks of a few layers."""

import math

import pytest
import torch

import lightning_mpq as mpq
from benchmarks.problems.llama import random_llama
from benchmarks.recorded_instances.wrapped_networks import LanguageModel
from benchmarks.runs.targets import gguf_model, vllm_model
from benchmarks.runs.targets.gguf_figures import quality
from benchmarks.runs.targets.targets import targets

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """Rows of a small Llama in llama.cpp, and the folder of its files."""
    pytest.importorskip("gguf", reason="needs the extra 'llama-cpp'")
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    pytest.importorskip("transformers", reason="needs transformers")
    from helpers.gguf_llama import llama, write_gguf

    folder = tmp_path_factory.mktemp("files")
    model = llama(hidden=288)  # as in SmolLM2, K types fit its second product only
    plain = write_gguf(model, folder / "f16.gguf")
    tokens = torch.randint(3, 96, (12, 44), generator=torch.Generator().manual_seed(0))
    network = LanguageModel(model).eval()
    parts = (list(tokens[:8].split(4)), tokens[8:])
    return list(gguf_model.rows("small", network, *parts, mpq.Categorical(), plain, 1)), folder


def test_files_have_the_bytes_and_the_types_of_the_mixes(language):
    rows, folder = language
    assert len(list(folder.glob("Q*.gguf"))) == 8
    for mix in gguf_model.MIXES:
        of_way = {row["way"]: row for row in rows if row["mix"] == mix}
        peer = of_way[gguf_model.PEER]
        assert of_way[gguf_model.SAME]["types"] == peer["types"]
        assert of_way[gguf_model.CHOSEN]["file_bytes"] <= peer["file_bytes"]
        assert of_way[gguf_model.CHOSEN]["types"] == of_way[gguf_model.ALONE]["types"]


def test_the_float_file_diverges_from_nothing_and_others_do(language):
    rows, _ = language
    assert rows[0]["way"] == gguf_model.FLOAT
    assert abs(rows[0]["divergence"]) < 1e-6
    assert all(row["divergence"] > 1e-4 and row["tokens_a_second"] > 0 for row in rows[1:])


def test_each_mix_has_targets_against_llama_cpp(language):
    rows, _ = language
    found = [target.name for target in targets([], [], rows, [])]
    assert len(found) == 18
    assert "smollm2 in llama.cpp, types chosen: divergence over that of Q3_K_M" in found


def test_perplexity_and_divergence_of_two_classes():
    tokens = torch.tensor([[0, 1, 1]])  # of which the last two are told
    wanted, found = (torch.tensor([[[0.5, 0.5], [share, 1 - share]]]).log() for share in (0.5, 0.2))
    figures = quality(tokens, wanted, found)
    assert figures["perplexity"] == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.8)) / 2))
    assert figures["divergence"] == pytest.approx(0.5 * (math.log(0.5 / 0.2) + math.log(0.5 / 0.8)) / 2)


def test_vllm_reads_what_was_written_for_it():
    if not vllm_model.PYTHON.exists():
        pytest.skip("needs vLLM in an environment of its own: make .peers/vllm/installed")
    pytest.importorskip("transformers", reason="needs transformers")
    tokens = torch.randint(0, 8192, (2, 24), generator=torch.Generator().manual_seed(0))
    for row in vllm_model.rows("small", random_llama("10M", blocks=2), tokens):
        assert row["layers"] == 6
        assert row["tokens"] == 46
        assert row["largest_difference"] < 1e-5
