"""A learner step end to end on a model of a few thousand parameters."""

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from onpol_cli.core.config import Config
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import random_model

CPU = torch.device("cpu")


def small(seed=0, dtype=torch.float64):
    config = Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, max_position_embeddings=128,
    )
    return random_model(config, seed, dtype, CPU)


def examples(seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        size = int(torch.randint(2, 9, (1,), generator=generator))
        ids = torch.randint(0, 37, (5 + size,), generator=generator).tolist()
        made.append(TrainExample(ids[:5], ids[5:], ce_weights=torch.ones(size)))
    return made


def test_sft_loss_falls_and_saved_folder_loads(tmp_path):
    config = Config()
    config.optim.lr = 1e-2
    learner = Learner(small(dtype=torch.float32), 37, config, 20, CPU)
    losses = [learner.step(examples())["loss/cross_entropy"] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    learner.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, learner.model.state_dict()[name])
