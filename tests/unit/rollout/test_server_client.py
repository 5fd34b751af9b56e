"""Several endpoints as one: a small HTTP server stands for vLLM's."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.rollout import server_client
from onpol_cli.rollout.server_client import Endpoint, EndpointDown, Pool


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(server_client, "BACKOFF_S", 0.01)


@contextmanager
def serving(answers):
    """`answers(method, path, body) -> (status, object)` on a free loopback port; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            status, value = answers(self.command, self.path.split("?")[0], body)
            plain = isinstance(value, str)
            data = value.encode() if plain else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8" if plain else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def closed_port():
    with serving(lambda *args: (200, {})) as url:
        return url


def ask(endpoint, item):
    return endpoint.call("POST", "/v1/completions", {"item": item})["got"]


def echo(method, path, body):
    return 200, {"got": body["item"]}


def test_requests_keep_their_order_and_their_endpoint():
    seen = [[], []]

    def counting(number):
        def answer(method, path, body):
            seen[number].append(body["item"])
            return 200, {"got": body["item"] * 10}

        return answer

    with serving(counting(0)) as one, serving(counting(1)) as two:
        pool = Pool([Endpoint(one, 30), Endpoint(two + "/v1/", 30)], concurrency=4, retries=2)
        assert pool.map(ask, list(range(20)), [i // 5 for i in range(20)]) == [i * 10 for i in range(20)]
        pool.close()
    assert [sorted(items) for items in seen] == [[*range(5), *range(10, 15)], [*range(5, 10), *range(15, 20)]]


def test_a_dead_endpoint_is_left_out_and_the_others_do_its_work():
    with serving(echo) as url:
        pool = Pool([Endpoint(closed_port(), 30), Endpoint(url, 30)], concurrency=4, retries=4)
        assert pool.map(ask, list(range(8)), list(range(8))) == list(range(8))
        assert [endpoint.alive for endpoint in pool.endpoints] == [False, True]
        pool.close()


def test_a_hiccup_is_retried_at_the_same_endpoint():
    calls = []

    def flaky(method, path, body):
        calls.append(body)
        return (503, {}) if len(calls) == 1 else (200, {"got": 1})

    with serving(flaky) as url:
        pool = Pool([Endpoint(url, 30)], concurrency=1, retries=3)
        assert pool.map(ask, [0], [0]) == [1]
        assert pool.endpoints[0].alive
        pool.close()


def test_no_endpoint_left_ends_the_run():
    pool = Pool([Endpoint(closed_port(), 30)], concurrency=2, retries=5)
    with pytest.raises(RunFailed, match="No vLLM server is left"):
        pool.map(ask, [1, 2], [0, 1])
    pool.close()


def test_a_refused_request_is_the_users_mistake_and_not_retried():
    calls = []

    def refuse(method, path, body):
        calls.append(body)
        return 400, {"error": "prompt too long"}

    with serving(refuse) as url:
        pool = Pool([Endpoint(url, 30)], concurrency=1, retries=3)
        with pytest.raises(OnpolError, match="prompt too long"):
            pool.map(ask, [1], [0])
        pool.close()
    assert len(calls) == 1


def test_a_server_without_weight_endpoints_is_explained():
    lacking = r"vLLM 0\.27 or newer.*VLLM_SERVER_DEV_MODE=1"
    with serving(lambda *args: (404, {})) as url, pytest.raises(OnpolError, match=lacking):
        Endpoint(url, 30).weight_version()


def test_a_weight_update_is_checked_by_its_label():
    state, order = {"label": "default", "honest": True}, []

    def server(method, path, body):
        order.append(path)
        if path == "/update_weight_version" and state["honest"]:
            state["label"] = body["new_version"]
        return 200, {"success": True, "weight_version": state["label"]}

    with serving(server) as url:
        endpoint = Endpoint(url, 30)
        endpoint.load("/folder", "run-1")
        assert order == [
            "/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume", "/weight_info",
        ]
        state["honest"] = False
        with pytest.raises(EndpointDown, match="'run-1' instead of 'run-2'"):
            endpoint.load("/folder", "run-2")


def test_an_adapter_replaces_the_one_before_under_its_own_name():
    state = {"label": "default", "models": ["base", "run-1"], "order": []}

    def server(method, path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": n, "parent": None if n == "base" else "base"} for n in state["models"]]}
        state["order"].append((path, body))
        if path == "/v1/load_lora_adapter":
            state["models"].append(body["lora_name"])
        if path == "/v1/unload_lora_adapter":
            state["models"].remove(body["lora_name"])
        if path == "/update_weight_version":
            state["label"] = body["new_version"]
        answer = {"success": True, "weight_version": state["label"]}
        return 200, "Success: a sentence, as vLLM answers." if "lora" in path else answer

    with serving(server) as url:
        Endpoint(url, 30).load_adapter("/folder", "run-2")
        assert state["models"] == ["base", "run-2"] and state["label"] == "run-2"
        assert [path for path, _ in state["order"]] == [
            "/pause", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/reset_prefix_cache",
            "/update_weight_version", "/resume", "/weight_info",
        ]
        assert state["order"][1][1] == {"lora_name": "run-2", "lora_path": "/folder"}
        Endpoint(url, 30).load_adapter("/folder", "run-2")  # it has it already: nothing is loaded twice
        assert state["models"] == ["base", "run-2"]


def test_a_server_that_takes_no_adapters_is_explained():
    def server(method, path, body):
        return (404, {}) if "lora" in path else (200, {"data": [{"id": "base", "parent": None}]})

    with serving(server) as url, pytest.raises(OnpolError, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        Endpoint(url, 30).load_adapter("/folder", "run-1")


def test_each_leaves_out_those_that_fail():
    with serving(echo) as url:
        pool = Pool([Endpoint(url, 30), Endpoint(closed_port(), 30)], concurrency=1, retries=0)
        pool.each(lambda endpoint: ask(endpoint, 1))
        assert [endpoint.alive for endpoint in pool.endpoints] == [True, False]
        pool.close()
