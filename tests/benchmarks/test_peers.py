"""What the runner of peers refuses, of adapters that are wrong on purpose, and what it takes from one that is right."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.state import state_of

from benchmarks.runs.peers.adapters import nearest, networks
from benchmarks.runs.peers.adapting import per_row, run, widest_uniform
from benchmarks.runs.peers.asking import Peer, answered
from benchmarks.runs.peers.checking import checked
from benchmarks.runs.peers.exchange import read_answer, read_task, write_answer, write_cannot, write_task
from benchmarks.runs.peers.grid import Layer, QuantizedLayer, fault, stored_bytes
from benchmarks.runs.peers.measuring import row_of
from benchmarks.runs.peers.peers import PEERS
from benchmarks.runs.peers.problems import NETWORKS, pretrained
from benchmarks.runs.peers.records import Answer, CannotError, total_bytes
from benchmarks.tools.apart import RefusedError, run_process
from lightning_mpq import WeightScheme

ADAPTERS = Path(networks.__file__).parent


@pytest.fixture(scope="module")
def problem():
    return pretrained("made_up", None, 8, seed=1)


@pytest.fixture
def task(problem):
    return problem.task(3.0, 0, {"clip": "absmax"})


@pytest.fixture
def answer(task):
    layers = nearest.quantize(task).layers
    return Answer(dict(layers), {}, total_bytes(task, layers), 0.1, 0.1, 1, {})


def changed(answer, name="0", **fields):
    return answer._replace(layers={**answer.layers, name: answer.layers[name]._replace(**fields)})


def test_a_right_answer_is_taken_and_comes_back_whole(task, answer, tmp_path):
    taken = answered(lambda folder: write_answer(folder, answer), task, tmp_path)
    for name, layer in answer.layers.items():
        torch.testing.assert_close(taken.layers[name]._asdict(), layer._asdict(), rtol=0, atol=0)
    assert taken.stored_bytes == answer.stored_bytes <= task.budget_bytes


def test_a_task_comes_back_whole(task, tmp_path):
    write_task(tmp_path, task)
    found = read_task(tmp_path)
    assert found.layers == task.layers
    torch.testing.assert_close(found.state, task.state, rtol=0, atol=0)
    assert torch.equal(found.inputs, task.inputs)
    assert [len(inputs) for inputs, _ in found.batches()] == [8]
    assert (found.budget_bytes, found.variance, found.options) == (task.budget_bytes, 1.0, {"clip": "absmax"})


WEIGHT = torch.zeros(16, 12)
WRONG = {
    "off grid": (dict(weight=WEIGHT + 0.01), "'0': a weight is .* of a step off the grid it claims"),
    "not finite": (dict(weight=WEIGHT / 0), "'0': its weight is not finite everywhere"),
    "scale not finite": (dict(scale=torch.full((16, 1), torch.inf)), "'0': its scale is not finite everywhere"),
    "zero point not finite": (dict(zero_point=torch.tensor([torch.nan])), "its zero_point is not finite"),
    "wrong shape": (dict(weight=WEIGHT.T), r"its weight has the shape \[12, 16\], expected \[16, 12\]"),
    "flattened": (dict(weight=WEIGHT.flatten()), r"its weight has the shape \[192\], expected \[16, 12\]"),
    "too few scales": (
        dict(scale=torch.ones(8, 1)),
        r"its scale has the shape \[8, 1\], expected \[16, 1\] or",
    ),
    "blocks without scales": (dict(block=6), r"its scale has the shape \[16, 1\], expected \[16, 2\]"),
    "blocks of nothing": (dict(block=0), "0 columns share a scale, expected 1 to 12"),
    "zero points astray": (dict(zero_point=torch.ones(3, 1)), r"its zero point has the shape \[3, 1\]"),
    "fewer bits than codes": (dict(bits=2), r"it has codes from -?\d+ to \d+, and 2 bits hold 0 to 3"),
    "no width": (dict(bits=0), "it claims 0 bits, expected 1 to 8, or 32 or 16 for"),
    "half a bit": (dict(bits=2.5), "its bits is 2.5, expected an integer"),
    "a width in words": (dict(bits="3"), "its bits is '3', expected an integer"),
    "yes": (dict(bits=True), "its bits is True, expected an integer"),
    "float that is not": (dict(bits=32), "it claims 32 bits, a float weight as it was, but has changed it"),
    "half a float that is not": (dict(bits=16), "it claims 16 bits, a float weight as it was, but has changed it"),
    "zero scale": (dict(scale=torch.zeros(16, 1)), "it has weights other than zero where its scale is zero"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_layer_is_refused(name, task, answer):
    fields, message = WRONG[name]
    with pytest.raises(RefusedError, match=message):
        checked(task, changed(answer, **fields))


def test_one_weight_of_many_off_its_grid_is_enough(task, answer):
    layer = answer.layers["3"]
    weight = layer.weight.clone()
    weight[7, 3] += 0.1 * layer.scale[7, 0]
    with pytest.raises(RefusedError, match="'3': a weight is 0.1 of a step off"):
        checked(task, changed(answer, "3", weight=weight))


def test_bytes_must_add_up_and_fit(task, answer):
    for said in (1, "1", None, answer.stored_bytes - 1):
        with pytest.raises(RefusedError, match=rf"It says {said!r} bytes, and its layers take {answer.stored_bytes}\."):
            checked(task, answer._replace(stored_bytes=said))
    over = changed(answer, bits=4, zero_point=torch.tensor([4.0]))
    over = over._replace(stored_bytes=total_bytes(task, over.layers))
    assert over.stored_bytes > answer.stored_bytes + 20  # a fourth bit, and a zero point that no grid of 4 bits has
    with pytest.raises(RefusedError, match=rf"Its layers take {over.stored_bytes} bytes of {task.budget_bytes}"):
        checked(task, over)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"0.weight": WEIGHT}, "gives back '0.weight', which is quantized"),
        ({"nowhere.bias": WEIGHT}, "gives back 'nowhere.bias', which the network does not have"),
        ({"0.bias": torch.zeros(3)}, r"'0.bias' has the shape \[3\], expected \[16\]"),
        ({"0.bias": torch.full((16,), torch.nan)}, "'0.bias' is not finite everywhere"),
        ({"1.weight": torch.zeros(16)}, "It has changed '1.weight', expected nothing but biases and statistics"),
    ],
)
def test_other_tensors_that_are_none_of_its_business(others, message, task, answer):
    with pytest.raises(RefusedError, match=message):
        checked(task, answer._replace(others=others))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), None, "1", True])
def test_seconds_that_are_no_time(seconds, task, answer):
    with pytest.raises(RefusedError, match="Its seconds are"):
        checked(task, answer._replace(seconds=seconds))


def test_layers_missing_or_made_up(task, answer):
    layers = dict(answer.layers)
    first = layers.pop("0")
    with pytest.raises(RefusedError, match=r"It lacks the layer '0' \(1 in all\)"):
        checked(task, answer._replace(layers=layers))
    with pytest.raises(RefusedError, match="It has a layer that was not asked for, 'other'"):
        checked(task, answer._replace(layers={**answer.layers, "other": first}))


def test_files_that_are_no_answer(task, answer, tmp_path):
    def broken(text):
        def start(folder):
            write_answer(folder, answer)
            (folder / "answer.json").write_text(text)

        return start

    def without_tensors(folder):
        write_answer(folder, answer)
        (folder / "answer.safetensors").unlink()

    def cut(folder):
        write_answer(folder, answer)
        whole = (folder / "answer.safetensors").read_bytes()
        (folder / "answer.safetensors").write_bytes(whole[: len(whole) // 2])

    said = json.dumps({"layers": {}})
    half_said = json.dumps({**answer._asdict(), "others": None, "layers": {"0": {"bits": 3}}})
    starts = {
        "has written no answer.json": lambda folder: None,
        "has written no answer.safetensors": without_tensors,
        "cannot be read: JSONDecodeError": broken("{"),
        "cannot be read: TypeError: Answer": broken(said),
        "cannot be read: KeyError: 'block'": broken(half_said),
        "cannot be read: TypeError: list": broken("[]"),
        "cannot be read: SafetensorError": cut,
    }
    for message, start in starts.items():
        with pytest.raises(RefusedError, match=message):
            answered(start, task, tmp_path)


def test_an_answer_of_an_earlier_try_does_not_count(task, answer, tmp_path):
    write_answer(tmp_path, answer)
    with pytest.raises(RefusedError, match=r"has written no answer.json"):
        answered(lambda folder: None, task, tmp_path)


def test_processes_that_fail():
    for code, message in (
        ("raise SystemExit(3)", "It ended with status 3: without a word"),
        ("raise MemoryError('no room')", "It ended with status 1: MemoryError: no room"),
        ("import time; time.sleep(60)", "No answer within 1 seconds"),
    ):
        with pytest.raises(RefusedError, match=message):
            run_process([sys.executable, "-S", "-c", code], seconds=1 if "sleep" in code else 30)


def test_one_that_says_that_it_cannot(problem, tmp_path, monkeypatch):
    task = problem.task(3.0, 0, {})
    with pytest.raises(CannotError, match="no convolutions"):
        answered(lambda folder: write_cannot(folder, "no convolutions"), task, tmp_path)
    monkeypatch.setattr(Peer, "start", lambda self, seconds: lambda folder: write_cannot(folder, "too small"))
    row = row_of(problem, Peer("any", "nearest"), 3.0, 0, 60)
    assert row == {"budget_bytes": task.budget_bytes, "cannot": "too small"}
    monkeypatch.setattr(Peer, "start", lambda self, seconds: lambda folder: None)
    row = row_of(problem, Peer("any", "nearest"), 3.0, 0, 60)
    assert row["refused"] == "It has written no answer.json."


def test_an_adapter_writes_what_its_lines_return_or_why_not(task, tmp_path):
    write_task(tmp_path, task)
    run(nearest.quantize, ["safetensors"], [str(tmp_path)])
    found = checked(task, read_answer(tmp_path))
    assert found.versions.keys() == {"torch", "safetensors"}
    assert found.peak_bytes > 2**20

    def cannot(task):
        raise CannotError("not today")

    run(cannot, [], [str(tmp_path)])
    with pytest.raises(CannotError, match="not today"):
        read_answer(tmp_path)


def test_a_row_of_a_process_and_the_same_again(problem):
    peer = Peer("nearest, least squares", "nearest", options={"clip": "mse"})
    rows = [row_of(problem, peer, 3.0, 0, 300) for _ in range(2)]
    for key in ("stored_bytes", "unseen_loss", "widths", "cosine"):
        assert rows[0][key] == rows[1][key]
    assert rows[0]["widths"] == "333"
    assert rows[0]["stored_bytes"] == rows[0]["budget_bytes"]


def test_quality_is_that_of_the_weights_given_back_and_the_model_stays(problem, answer):
    before = state_of(problem.subject.model)
    assert problem.quality(answer)["unseen_loss"] > 0
    assert problem.unseen()["unseen_loss"] == 0.0
    torch.testing.assert_close(problem.subject.model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("grid", ["symmetric", "half", "asymmetric"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 5])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_bytes_are_counted_as_the_package_counts_its_own(grid, granularity, bits):
    rows, columns = 6, 12
    scheme = WeightScheme(bits, granularity, grid)
    block = granularity if granularity == 5 else columns
    shape = (1, 1) if granularity == "tensor" else (rows, -(-columns // block))
    zero = torch.tensor([2.0 ** (bits - 1) - (0.5 if grid == "half" else 0)])
    if grid == "asymmetric":
        zero = torch.full(shape, 1.0)
        zero[0, 0] = 3.0
    layer = QuantizedLayer(torch.zeros(rows, columns), bits, torch.ones(shape), zero, block)
    if grid == "asymmetric" and bits == 3 and granularity == "tensor":
        return  # a single zero point that is in the middle is that of the grid
    assert 8 * stored_bytes(Layer(rows, columns), layer) == scheme.stored_bits(rows, columns)


def test_bytes_of_float_weights_and_of_zero_points_that_are_no_integers():
    layer = per_row(torch.zeros(4, 8), 4, torch.ones(4), torch.full((4,), 7.3))
    assert stored_bytes(Layer(4, 8), layer) == 16 + 4 * 2 + 4 * 2
    assert [stored_bytes(Layer(4, 8), layer._replace(bits=bits)) for bits in (16, 32)] == [2 * 32, 4 * 32]


def test_float_weights_as_they_were():
    before = torch.randn(4, 8)
    for bits, weight in ((32, before), (16, before.half().float())):
        assert fault(Layer(4, 8), per_row(weight, 4, torch.ones(4))._replace(bits=bits), before) is None


@pytest.mark.parametrize("zero", [4.0, 3.5, torch.tensor([1.0, 2.0, 6.0, 0.0]), torch.tensor([0.3, 2.6, 6.9, 7.0])])
def test_every_code_of_a_grid_is_on_it(zero):
    codes = torch.arange(8.0).expand(4, 8)
    scale = torch.tensor([1e-6, 0.1, 3.0, 1e5])
    offset = zero[:, None] if isinstance(zero, torch.Tensor) else zero
    weight = (codes - offset) * scale[:, None]
    layer = per_row(weight.view(4, 2, 2, 2), 3, scale, zero)
    assert fault(Layer(4, 8), layer, torch.zeros(4, 2, 2, 2)) is None
    assert "codes from 0 to 7, and 2 bits" in fault(Layer(4, 8), layer._replace(bits=2), torch.zeros(4, 2, 2, 2))


def test_the_largest_width_that_fits(task):
    assert widest_uniform(task) == 3
    assert widest_uniform(task._replace(budget_bytes=10**6)) == 8
    with pytest.raises(CannotError, match="two bits everywhere take more than 8 bytes"):
        widest_uniform(task._replace(budget_bytes=8))


def test_networks_of_adapters_are_those_of_the_problems(task, problem):
    net = networks.float_network(task)
    outputs = torch.cat(networks.outputs(net, task))
    with torch.no_grad():
        assert torch.equal(outputs, torch.cat([problem.subject.model(b) for b in problem.subject.calibration]))
    assert set(networks.BUILDERS) == {*NETWORKS, "made_up"} - {"digits"}  # the same network as on clothes


def test_room_for_zero_points_is_granted_to_those_that_need_it(problem):
    plain, more = (problem.task(3.0, 0, {}, needed) for needed in (False, True))
    assert more.budget_bytes - plain.budget_bytes == 2 * (16 + 16 + 8)


def test_draws_of_samples_share_none():
    inputs = torch.cat([pretrained("made_up", None, 8, seed).task(3.0, seed, {}).inputs for seed in range(3)])
    assert len(inputs.unique(dim=0)) == 24


def test_peers_have_names_of_their_own_and_adapters():
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert (ADAPTERS / f"{peer.adapter}.py").is_file() or set(peer.cannot) == set(NETWORKS)
        assert peer.environment is None or (ADAPTERS.parent / "requirements" / f"{peer.environment}.txt").is_file()
        assert set(peer.cannot) <= set(NETWORKS)
