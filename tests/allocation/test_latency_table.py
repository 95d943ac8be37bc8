"""Whatever stands in the file of a latency table, it is read or refused in one way."""

import json

import pytest
from helpers.odd_json import odd_texts, refusal
from helpers.special_files import make

from lightning_mpq import LatencyTable

ROWS = [{"group": "a", "scheme": "3", "milliseconds": 0.5}, {"group": "b", "scheme": 4, "milliseconds": "1"}]


def test_odd_json_is_refused_in_one_way(tmp_path):
    path = tmp_path / "table.json"
    for text in odd_texts(json.dumps(ROWS)):
        path.write_text(text)
        assert len(refusal(ValueError, LatencyTable.read, path)) < 2_000


@pytest.mark.parametrize("row", ['a,3,"' + "x" * 200_000, "a,3", 'a,3,"', "a,3,x", "a,3,nan", "a,3,1\na,3,1", "\0", ""])
def test_odd_csv_is_refused_in_one_way(tmp_path, row):
    path = tmp_path / "table.csv"
    path.write_text(f"group,scheme,milliseconds\n{row}")
    with pytest.raises(ValueError, match=r"table\.csv|a @ 3"):
        LatencyTable.read(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "giant"])
def test_what_is_no_ordinary_file_is_refused(tmp_path, kind):
    with pytest.raises(ValueError, match="ordinary file is expected|at most"):
        LatencyTable.read(make(kind, tmp_path / "x.csv"))
