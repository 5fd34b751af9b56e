"""Facts about benches, and where their data are looked for."""

import os
import subprocess
import sys

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.catalog import BENCHES, locate_data


def test_every_bench_says_what_it_is():
    for info in BENCHES.values():
        assert info.kind in ("edit", "generation") and info.licence and info.size > 0 and info.description
        assert info.generated or (info.source.startswith("https://") and info.files and (info.hub or info.download))


def test_a_given_path_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("ONPOL_DATA", "/nowhere")
    path = tmp_path / "mine.jsonl"
    path.touch()
    assert locate_data("mbpp", str(path)) == path


def test_a_given_path_must_exist(tmp_path):
    with pytest.raises(OnpolError, match=r"mbpp: .*none\.jsonl does not exist\. Get sanitized-mbpp\.json from https"):
        locate_data("mbpp", str(tmp_path / "none.jsonl"))


def test_the_data_folder_is_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("ONPOL_DATA", str(tmp_path))
    (tmp_path / "quixbugs").mkdir()
    (tmp_path / "quixbugs" / "quixbugs.jsonl").touch()
    assert locate_data("quixbugs") == tmp_path / "quixbugs" / "quixbugs.jsonl"


def test_without_data_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.delenv("ONPOL_DATA", raising=False)
    with pytest.raises(OnpolError, match=r"quixbugs needs a data file: --data FILE.*github.com/jkoppel/QuixBugs"):
        locate_data("quixbugs")


def test_the_hub_out_of_reach_says_how_to_get_it(tmp_path):
    code = "from onpol_cli.tasks.catalog import locate_data\nlocate_data('livecodebench')"
    env = {k: v for k, v in os.environ.items() if k != "ONPOL_DATA"} | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("onpol_cli.core.errors.OnpolError: livecodebench: cannot get test6.jsonl from the hub")
    assert "hf download livecodebench/code_generation_lite test6.jsonl --repo-type dataset" in last
