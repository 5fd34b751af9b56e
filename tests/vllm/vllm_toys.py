"""Toy models for the engine tests, and one course of events that every engine goes through.

`exercise` returns plain JSON, so that the engine in process can run in a process of its own: vLLM changes
the process that it is loaded into, which other tests must not notice.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from onpol_cli.core.config import LoraConfig, RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.model import add_adapters
from onpol_cli.learner.weights import adapter_of, merged_weights
from onpol_cli.rollout.engine import HEAD, Prompt, build_engine
from onpol_cli.rollout.health import canary, mismatch, score_rollouts

REAL_TOKENS, REAL_ROWS = 151_669, 151_936
HOSTILE = {
    "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0,
    "eos_token_id": list(range(5, 50)),
}
UPDATES = 20
WORKER_SECONDS = 900
TOLERANCE = 1e-4


def word_tokenizer(size):
    """`size` words and an end of sequence, id 0."""
    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, size)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")


def qwen3_tokenizer():
    """The real one where the data is at hand, else one of the same size."""
    data = Path(os.environ.get("ONPOL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    folder = data / "qwen3_tokenizer"
    if (folder / "tokenizer.json").is_file():
        inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return word_tokenizer(REAL_TOKENS)


def write_toy(folder, *, real):
    """A random tied Qwen3 whose padded output rows would win every draw, beside a hostile generation_config.json."""
    torch.manual_seed(0)
    tokenizer = qwen3_tokenizer() if real else word_tokenizer(600)
    rows = REAL_ROWS if real else 640
    config = Qwen3Config(
        vocab_size=rows, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.ndim == 2 else weight.add_(0.1 * torch.randn_like(weight))
        embeddings = model.model.embed_tokens.weight
        padded = rows - len(tokenizer)
        embeddings[len(tokenizer) :] = 20 * embeddings[:padded]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(HOSTILE))
    return folder


def clean_environment():
    """A child's environment without vLLM's variables, whatever the caller or other tests have set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VLLM_") and name != "LD_PRELOAD"}


def inprocess(real, small, out):
    """What vLLM in process did with these toys, in a process of its own, and what that printed (`inprocess_worker`)."""
    command = [sys.executable, str(Path(__file__).with_name("inprocess_worker.py")), *map(str, (real, small, out))]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=WORKER_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()) | {"stdout": done.stdout}


def load_toy(folder):
    """Model and tokenizer of `write_toy`."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(folder)


def learner_distribution(model, prompt, completion, vocabulary):
    """Log-probs [T, V] that the transformers model gives at each position of the completion."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(ids, logits_to_keep=len(completion) + 1).logits[0, :-1, :vocabulary]
    return logits.float().log_softmax(-1).cpu()


def scorer(model, vocabulary):
    """The learner's side of every comparison: log-probs [T] of given tokens."""

    def score(sequences):
        found = []
        for prompt, completion in sequences:
            distribution = learner_distribution(model, prompt, completion, vocabulary)
            found.append(distribution.gather(1, torch.tensor(completion)[:, None])[:, 0])
        return found

    return score


def update(model, number):
    """One random step of all weights, the same wherever it is called."""
    noise = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=noise).to(weight.device))


def message(act):
    """What `act` complains of; empty if it does not."""
    try:
        act()
    except OnpolError as error:
        return str(error)
    return ""


def prompts(samples=3):
    """Three prompts of different lengths."""
    return [
        Prompt("a", tuple(range(11, 31)), samples, seed=1),
        Prompt("b", (7, 8, 9), samples, seed=2),
        Prompt("c", tuple(range(40, 110)), samples, seed=3),
    ]


def flood(vocabulary, length=200):
    """60 unlike prompts: with 200 tokens each, more than one step of any engine computes."""
    draw = random.Random(0)
    return [Prompt(str(i), tuple(draw.randrange(vocabulary) for _ in range(length)), seed=i) for i in range(60)]


def as_lists(rollouts):
    """Token ids of all rollouts."""
    return [list(rollout.completion_ids) for rollout in rollouts]


def exercise(engine, model, tokenizer):
    """Sampling, greedy decoding, 20 updates, and every way of being wrong that must be caught."""
    vocabulary, sampling = len(tokenizer), SamplingConfig(max_new_tokens=10)
    score = scorer(model, vocabulary)

    def gap(rollouts):
        return mismatch(rollouts, score_rollouts(rollouts, score)).largest

    record = {"version_at_start": engine.weight_version}
    rollouts = engine.generate(prompts(), sampling)
    record["order"] = [[r.problem_id, r.sample] for r in rollouts]
    record["gap_before"], record["largest_id"] = gap(rollouts), max(max(r.completion_ids) for r in rollouts)
    record["first"], record["again"] = as_lists(rollouts), as_lists(engine.generate(prompts(), sampling))
    texts = [tokenizer.decode(rollout.completion_ids, skip_special_tokens=True) for rollout in rollouts]
    record["texts_match"] = [rollout.text for rollout in rollouts] == texts
    record["finishes"] = [[r.finish.value, len(r.completion_ids), r.completion_ids[-1]] for r in rollouts]

    record["flood_gap"] = gap(engine.generate(flood(vocabulary), SamplingConfig(max_new_tokens=2)))
    greedy = engine.generate(prompts(1), SamplingConfig(temperature=0.0, max_new_tokens=10))
    losses = []
    for rollout in greedy:
        distribution = learner_distribution(model, rollout.prompt_ids, rollout.completion_ids, vocabulary)
        chosen = distribution.gather(1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
        losses.append((distribution.max(-1).values - chosen).max().item())
    record["greedy"], record["greedy_gap"] = as_lists(greedy), max(losses)

    for number in range(UPDATES):
        update(model, number)
        engine.sync_weights(merged_weights(model))
    rollouts = engine.generate(prompts(), sampling)
    record["gap_after_updates"], record["version"] = gap(rollouts), rollouts[0].weight_version
    record["canary"] = canary(engine, score, prompts(1), sampling, 0.02).largest

    update(model, 98)  # a sync that is skipped
    record["stale"] = message(lambda: canary(engine, score, prompts(1), sampling, 0.02))
    incomplete = [(name, weight) for name, weight in merged_weights(model) if name != HEAD]
    record["half_stale"] = message(lambda: engine.sync_weights(iter(incomplete)))
    engine.sync_weights(merged_weights(model))
    record["gap_after_recovery"] = gap(engine.generate(prompts(), sampling))
    cut = SamplingConfig(top_p=0.3, max_new_tokens=10)
    record["cut"] = message(lambda: canary(engine, score, prompts(1), cut, 0.02))
    foreign = [Prompt("x", (1, vocabulary))]
    record["foreign_token"] = message(lambda: engine.generate(foreign, sampling))
    return record


def load_adapted(folder):
    """The toy with LoRA adapters that already change it, and its tokenizer."""
    model, tokenizer = load_toy(folder)
    add_adapters(model, LoraConfig(rank=4), 0)
    update_adapters(model, 0)
    return model.eval(), tokenizer


def update_adapters(model, number):
    """New random adapter matrices, the same wherever it is called."""
    noise = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=noise))


def exercise_adapters(engine, model, tokenizer):
    """An engine that holds the base and is sent adapters, against the learner and against merged weights."""
    vocabulary, sampling = len(tokenizer), SamplingConfig(max_new_tokens=10)
    score = scorer(model, vocabulary)

    def apart():
        rollouts = engine.generate(prompts(), sampling)
        return mismatch(rollouts, score_rollouts(rollouts, score))

    record = {"none_sent": message(lambda: canary(engine, score, prompts(1), sampling, 0.02))}
    record |= {"gaps": [], "kls": [], "kl_none_sent": apart().kl}
    for number in range(UPDATES):
        update_adapters(model, number)
        engine.sync_adapter(adapter_of(model))
        if number in (0, 1, UPDATES - 1):
            found = apart()
            record["gaps"].append(found.largest)
            record["kls"].append(found.kl)
    record["version"] = engine.weight_version
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=10)
    record["greedy"] = as_lists(engine.generate(prompts(1), greedy))
    with build_engine(RolloutConfig(), "", tokenizer, 0, model.device, model) as merged:
        record["greedy_merged"] = as_lists(merged.generate(prompts(1), greedy))
        record["refused"] = message(lambda: merged.sync_adapter(adapter_of(model)))
    update_adapters(model, 99)  # a sync that is skipped
    record["stale"] = message(lambda: canary(engine, score, prompts(1), sampling, 0.02))
    return record
