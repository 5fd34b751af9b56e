"""How the first weights reach servers that are given."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from onpol_cli.core.config import RolloutConfig, WeightTransfer
from onpol_cli.rollout import vllm_server
from onpol_cli.rollout.server_client import Endpoint
from onpol_cli.rollout.vllm_server import ServerEngine

URL = "http://far:8000"


@pytest.fixture
def happened(monkeypatch):
    """What was done with the server, in order; it is there and sees no folder of this machine."""
    found = []

    def call(self, method, path, body=None, **parameters):
        found.append(path)

    @contextmanager
    def replacing(self, version):
        found.append(("held as", version.rsplit("-", 1)[-1]))
        yield

    monkeypatch.setattr(Endpoint, "call", call)
    monkeypatch.setattr(Endpoint, "replacing", replacing)
    monkeypatch.setattr(Endpoint, "model_name", lambda self: "model")
    return found


@pytest.mark.parametrize("kind", [WeightTransfer.nccl, WeightTransfer.reload])
def test_given_servers_get_the_first_weights_the_way_of_all_others(
    kind, happened, make_model, tokenizer, tmp_path, monkeypatch
):

    def send(endpoints, weights):
        happened.append([endpoint.url for endpoint in endpoints])
        assert len(list(weights)) == len(engines[0].names)

    def transfer(self, kind, model):
        engines.append(self)
        return SimpleNamespace(send=send, close=lambda: None)

    engines = []
    monkeypatch.setattr(vllm_server, "chosen", lambda config: kind)
    monkeypatch.setattr(ServerEngine, "_transfer", transfer)
    config = RolloutConfig(servers=[URL], exchange=str(tmp_path))
    with ServerEngine(config, "", tokenizer, model=make_model()) as engine:
        assert engine.weight_version == 0
    way = "/collective_rpc" if kind is WeightTransfer.reload else [URL]
    assert happened == [("held as", "0"), way]
