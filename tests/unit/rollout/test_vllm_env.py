"""Loading vLLM leaves no trace in the process: variables, threads, streams."""

import logging
import os
import sys

import pytest
import torch

from onpol_cli.core.config import RolloutConfig
from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import OnpolError
from onpol_cli.rollout import vllm_env
from onpol_cli.rollout.server_process import entry_point, free_port, server_environment

NAMES = [*vllm_env.DEFAULTS, *vllm_env.CPU_DEFAULTS, "VLLM_SERVER_DEV_MODE", "VLLM_LOGGING_CONFIG_PATH", "LEFT_BEHIND"]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_variables_are_put_back_even_those_that_vllm_sets_itself(monkeypatch):
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "mine")
    before = dict(os.environ)
    with vllm_env.contained({"VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "0"}):
        assert os.environ["VLLM_CONFIGURE_LOGGING"] == "0"
        os.environ["LEFT_BEHIND"] = "x"
        del os.environ["VLLM_NO_USAGE_STATS"]
    assert dict(os.environ) == before


def test_torch_threads_are_put_back():
    function, threads = torch.set_num_threads, torch.get_num_threads()
    with pytest.raises(KeyError), vllm_env.contained({}):
        torch.set_num_threads = lambda count: None
        raise KeyError
    assert torch.set_num_threads is function
    assert torch.get_num_threads() == threads


def test_the_users_own_values_win(monkeypatch):
    assert vllm_env.defaults()["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert "VLLM_NO_USAGE_STATS" not in vllm_env.defaults()
    assert server_environment(RolloutConfig())["VLLM_NO_USAGE_STATS"] == "0"
    assert server_environment(RolloutConfig())["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert server_environment(RolloutConfig())["VLLM_SERVER_DEV_MODE"] == "1"


def test_output_of_native_code_goes_to_the_log(tmp_path, capfd):
    log = tmp_path / "vllm.log"
    with vllm_env.quiet(log):
        os.write(1, b"from C++\n")
        sys.stderr.write("from Python\n")
    sys.stdout.write("after\n")
    out = capfd.readouterr()
    assert log.read_text() == "from C++\n" and (out.out, out.err) == ("after\n", "from Python\n")


def test_the_log_lies_beside_the_runs_log(tmp_path):
    handler = logging.FileHandler(tmp_path / "run.log", delay=True)
    others = list(LOGGER.handlers)
    LOGGER.handlers[:] = [handler]
    try:
        assert vllm_env.log_path("vllm-server-1") == tmp_path / "vllm-server-1.log"
    finally:
        LOGGER.handlers[:] = others
        handler.close()


def test_the_tail_of_a_log_fits_a_message(tmp_path):
    log = tmp_path / "a.log"
    assert vllm_env.log_tail(log) == "no log"
    log.write_text("one\ntwo\nthree\n\nfour\nfive\n")
    assert vllm_env.log_tail(log, 3) == "four | five"


def test_missing_vllm_is_explained(monkeypatch):
    monkeypatch.setattr(vllm_env, "find_spec", lambda name: None)
    with pytest.raises(OnpolError, match=r"rollout=vllm needs vLLM.*Or use rollout=hf"):
        vllm_env.require_vllm("rollout=vllm")


@pytest.mark.parametrize(("version", "old"), [("0.26.0", True), ("0.27.0", False), ("1.0", False), ("0.9.1", True)])
def test_a_vllm_too_old_for_servers_is_named_with_what_it_lacks(version, old, monkeypatch):
    monkeypatch.setattr(vllm_env, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_env, "installed_version", lambda *names: version)
    assert (vllm_env.too_old("0.27") is not None) is old
    vllm_env.require_vllm("rollout=vllm")
    if old:
        with pytest.raises(OnpolError, match=f"rollout=vllm_server needs vLLM: version 0.27 or newer .*{version}"):
            vllm_env.require_vllm("rollout=vllm_server", "0.27")


@pytest.mark.parametrize("version", [None, "0.1.dev1+g12ab", "0.33.1.dev20", "unknown"])
def test_builds_between_releases_are_taken_as_new(version, monkeypatch):
    monkeypatch.setattr(vllm_env, "installed_version", lambda *names: version)
    assert vllm_env.too_old("0.27") is None


def test_ports_are_usable_and_commands_are_pythons_own():
    assert 1024 <= free_port() < 65536
    assert entry_point()[:2] == [sys.executable, "-m"]


def test_log_records_go_to_the_log_unless_configured(tmp_path, monkeypatch):
    logger = logging.getLogger("vllm")
    before = list(logger.handlers), logger.level, logger.propagate
    logger.handlers.clear()
    try:
        monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "mine.json")
        vllm_env.route_logs(tmp_path / "vllm.log")
        assert not logger.handlers
        monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH")
        vllm_env.route_logs(tmp_path / "vllm.log")
        logging.getLogger("vllm.engine").info("loaded")
        assert "INFO vllm.engine: loaded" in (tmp_path / "vllm.log").read_text()
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers[:], logger.level, logger.propagate = before
