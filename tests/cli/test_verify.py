"""The command says in a line what it found, and ends with 1 where that is not what was exported."""

from helpers.networks import mlp, vectors

import lightning_mpq as mpq
from lightning_mpq.cli.verify import main
from lightning_mpq.modules import pack_model


def test_a_line_for_each_path_and_an_exit_code(tmp_path, capsys):
    net = mlp(6, 8, 3)
    pack_model(net, mpq.BitPolicy({"0": mpq.WeightScheme(3)}))
    good, bad = tmp_path / "good", tmp_path / "bad"
    for path in (good, bad):
        mpq.export_for("torch", net, path, vectors(2)[0])
    assert main([str(good)]) == 0
    assert capsys.readouterr().out.startswith(f"{good}: loaded 1 of 1 layers at their widths; outputs not compared")
    next(bad.glob("*.safetensors")).write_bytes(b"no model")
    assert main([str(good), str(bad), str(tmp_path / "nothing")]) == 1
    said = capsys.readouterr()
    assert said.out.count("loaded") == 1
    assert said.err.count("lightning-mpq-verify: ") == 2
