"""Benches of samplers: no repeat has prompts that an engine's prefix cache may hold from another call."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from onpol_cli.rollout import engine as engines

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
REAL = engines.build_engine


class Calls(list):
    """The prompts' ids of each call of `generate`, of engines that this builds."""

    def build(self, *arguments: Any, **named: Any) -> Any:
        """The real engine, overheard."""
        engine = REAL(*arguments, **named)
        generate = engine.generate

        def listened(prompts: Any, sampling: Any) -> Any:
            self.append([prompt.ids for prompt in prompts])
            return generate(prompts, sampling)

        engine.generate = listened  # type: ignore[method-assign]
        return engine


def assert_all_other(calls: list[list[tuple[int, ...]]], repeats: int) -> None:
    """No prompt comes twice; the full calls are of the same lengths."""
    every = [ids for call in calls for ids in call]
    assert len(set(every)) == len(every)
    full = [list(map(len, call)) for call in calls if len(call) == max(map(len, calls))]
    assert len(full) >= repeats and all(lengths == full[0] for lengths in full)


def test_the_gpu_check_samples_other_prompts_in_each_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    common, sampling = (importlib.import_module(f"gpu_parts.{name}") for name in ("common", "sampling"))
    calls = Calls()
    monkeypatch.setattr(sampling, "build_engine", calls.build)
    found = dict(sampling.sampler(common.Setting("cpu", small=True), "0.6b", "hf"))
    assert found["generation"]["tokens_per_s"] > 0 and "prefix cache" in found["call"]["repeats"]
    assert_all_other(calls, 2)


@pytest.mark.parametrize("name", ["hf", "generate:8"])
def test_the_rollout_bench_samples_other_prompts_in_each_repeat(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS / "bench"))
    rollouts = importlib.import_module("rollouts")
    for setting, value in {"PROMPTS": 10, "SAMPLES": 1, "SHORTEST": 2, "LONGEST": 4}.items():
        monkeypatch.setattr(rollouts, setting, value)
    calls, generate = Calls(), rollouts.run_generate

    def listened(model: Any, rows: Any, batch: int) -> int:
        calls.append([ids for ids, _ in rows])
        return generate(model, rows, batch)

    monkeypatch.setattr(engines, "build_engine", calls.build)
    monkeypatch.setattr(rollouts, "run_generate", listened)
    rollouts.write_model(tmp_path)
    records = rollouts.measure(name, str(tmp_path), "float32", 3)
    assert len({record["tokens"] for record in records}) == 1 and len(records) == 3
    assert_all_other(calls, 3)
