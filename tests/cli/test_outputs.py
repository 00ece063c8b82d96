"""The file of `--json` is refused before the work, and written after it."""

import errno
import json
import math
import os
import re
from pathlib import Path

import pytest

from jaxformer.cli.outputs import json_output
from jaxformer.errors import UserError


@pytest.mark.parametrize("name", ["absent/a.json", "folder", "fifo"])
def test_a_file_of_json_that_cannot_be_written_is_refused_before_the_work(name, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / name
    with pytest.raises(UserError, match=re.escape(f"--json {path}")), json_output(path):
        pytest.fail("the work began")


def test_a_directory_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    opened = Path.open

    def refuse(path, *args, **options):
        if path.parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"a\.json"), json_output(tmp_path / "a.json"):
        pytest.fail("the work began")


def test_json_is_written_when_the_work_has_ended_well(tmp_path):
    path = tmp_path / "a.json"
    with json_output(path) as write:
        write({"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    with pytest.raises(ZeroDivisionError), json_output(path) as write:
        write({"a": 1 / 0})
    assert json.loads(path.read_text()) == {"a": [1]}
    with json_output(None) as write:
        write({})
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_number_that_is_not_finite_becomes_null(tmp_path):
    path = tmp_path / "a.json"
    with json_output(path) as write:
        write({"a": math.nan, "b": [1.5, {"c": -math.inf}], "d": (math.inf, 2, "NaN", None, True)})

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": [1.5, {"c": None}], "d": [None, 2, "NaN", None, True]}
