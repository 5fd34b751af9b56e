"""The base model that ships with the package, held against its manifest."""

import hashlib
import json
from functools import cache
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from onpol_cli.core.compose import compose
from onpol_cli.core.config import RolloutConfig, SamplingConfig, SandboxConfig, TaskConfig
from onpol_cli.core.seeding import derive_seed
from onpol_cli.learner.chat import Chat
from onpol_cli.learner.model import PACKAGED_TINY, load_tokenizer
from onpol_cli.rollout.engine import Prompt
from onpol_cli.rollout.hf import HfEngine
from onpol_cli.sandbox import Sandbox
from onpol_cli.stages.base import data_hash
from onpol_cli.tasks.tiny_edit import build_bench
from onpol_cli.tasks.world.base import base_model_config, build_tokenizer

BASE = ["experiment=base", "method=pretrain"]


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((PACKAGED_TINY / "manifest.json").read_text())


@cache
def shipped_tokenizer():
    return load_tokenizer(PACKAGED_TINY)


@pytest.fixture(scope="module")
def tokenizer():
    return shipped_tokenizer()


def test_files_are_those_of_the_manifest(manifest: dict) -> None:
    hashes = {name: hashlib.sha256((PACKAGED_TINY / name).read_bytes()).hexdigest() for name in manifest["files"]}
    assert hashes == manifest["files"]
    assert sum(path.stat().st_size for path in PACKAGED_TINY.iterdir()) < 16_000_000


def test_trained_on_the_world_as_it_is(manifest: dict) -> None:
    """Fails when the world or the mixture changes: run scripts/rebuild_tiny_base."""
    assert data_hash(compose(BASE)) == manifest["data_hash"]


def test_loads_as_a_plain_qwen3_in_bf16() -> None:
    model = AutoModelForCausalLM.from_pretrained(PACKAGED_TINY)
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.dtype is torch.bfloat16
    assert model.config.tie_word_embeddings
    assert 1_500_000 < model.num_parameters() < 5_000_000


def test_room_to_gain_and_something_to_forget(manifest: dict) -> None:
    benches = manifest["scores"]["temperature 1.0"]
    repair = benches["tiny-edit-ood"]["metrics"]
    assert benches["tiny-edit-ood"]["n"] >= 500
    assert 0.5 < repair["pass@1"]["value"] < 0.8
    assert repair["excess_levenshtein"]["value"] > 0.1
    assert 0.5 < benches["tiny-codegen"]["metrics"]["pass@1"]["value"] < 0.88


def test_scores_are_those_of_the_manifest(manifest: dict, tokenizer) -> None:
    count = 160
    chat = Chat(tokenizer)
    with Sandbox(SandboxConfig(workers=1)) as sandbox:
        task = build_bench("tiny-edit-ood", TaskConfig(), sandbox)
        problems = task.problems("test")[:count]
        prompts = [
            Prompt(p.problem_id, chat.prompt_ids(task.messages(p)), seed=derive_seed(7, index))
            for index, p in enumerate(problems)
        ]
        engine = HfEngine(RolloutConfig(), str(PACKAGED_TINY), tokenizer, "cpu")
        rollouts = engine.generate(prompts, SamplingConfig(max_new_tokens=128))
        grades = task.grade([(p, r.completion()) for p, r in zip(problems, rollouts, strict=True)])
    claimed = manifest["scores"]["temperature 1.0"]["tiny-edit-ood"]["metrics"]["pass@1"]["value"]
    share = sum(grade.passed for grade in grades) / count
    assert abs(share - claimed) < 4 * sqrt(claimed * (1 - claimed) / count)


@pytest.mark.full
def test_tokenizer_and_shape_can_be_rebuilt(tokenizer) -> None:
    config = compose(BASE)
    built = build_tokenizer(derive_seed(config.seed, "tokenizer"), config.base)
    assert built.get_vocab() == tokenizer.get_vocab()
    shape = base_model_config(config.base, built)
    shipped = AutoModelForCausalLM.from_pretrained(PACKAGED_TINY).config
    assert (shape.hidden_size, shape.num_hidden_layers) == (shipped.hidden_size, shipped.num_hidden_layers)
    assert len(built) == shape.vocab_size == config.base.vocab


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = shipped_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    plain = not any(special in text for special in tokenizer.all_special_tokens)
    assert not plain or tokenizer.decode(ids) == text


def test_pieces_that_keep_answers_short(tokenizer) -> None:
    pieces = tokenizer.tokenize("def f(xs):\n    return 12")
    assert "ĊĠĠĠĠ" in pieces
    assert pieces[-2:] == ["Ġ1", "2"]
    assert len(pieces) <= 10


def test_chat_template_opens_the_answer(tokenizer) -> None:
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|><|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
