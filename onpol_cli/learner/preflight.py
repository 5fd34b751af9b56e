"""Checks of models before anything is computed with them that would be wrong without failing.

That a student and a teacher speak of the same tokens: a distillation between models that differ in tokenizer,
end of sequence, chat template or *real* vocabulary trains on nonsense; padded output rows (151936 against 152064)
are fine. That a model's logits are what the losses take them for: its last hidden states times its output matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.head import HeadOptions, chunk_logits
from onpol_cli.learner.weights import evaluating

ROUNDING = 0.02
"""Share of the largest logit by which a model's own logits may differ from ours: bf16 rounds them to 0.4%."""


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """torch's own attention while the context lasts: others refuse the CPU, or float32 outside autocast."""
    chosen = model.config._attn_implementation
    if chosen in ("eager", "sdpa"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)


@torch.no_grad()
def check_logits(model: PreTrainedModel, vocab: int) -> None:
    """Refuse models that do more to their logits than the chunked losses do, by a look at four tokens' logits.

    Gemma 2 caps them, Cohere and Granite scale them, Phi adds a bias.

    Args:
        model: whole (not sharded), on the device where it will run.
        vocab: real tokens.

    Raises:
        OnpolError: the model's logits are not its last hidden states times its output matrix.
    """
    ids = torch.arange(min(4, vocab), device=model.device)[None]
    seen: list[torch.Tensor] = []
    watch = model.base_model.register_forward_hook(lambda module, given, out: seen.append(out.last_hidden_state[0]))
    try:
        with evaluating(model), _plain_attention(model):
            theirs = model(input_ids=ids, use_cache=False).logits[0, :, :vocab].float()
    finally:
        watch.remove()
    ours = chunk_logits(seen[0], model.get_output_embeddings().weight, HeadOptions(vocab))  # type: ignore[union-attr, arg-type]
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)  # near 0 a cap changes little
    if capped or (theirs - ours).abs().max() > ROUNDING * theirs.abs().max():
        raise OnpolError(
            f"{type(model).__name__} caps, scales or shifts its logits (or its last states): they are not last hidden "
            "states times output matrix, which all losses here are computed from. Use a model of another architecture, "
            "e.g. Qwen, Llama or Mistral."
        )


def check_pair(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_config: Any, teacher_config: Any
) -> None:
    """Raise `OnpolError` naming every difference that would make per-token distillation wrong.

    Args:
        student: tokenizer of the policy.
        teacher: tokenizer of the teacher.
        student_config: Hugging Face configuration of the policy (for its output rows).
        teacher_config: the same of the teacher.
    """
    differences = [*_token_differences(student, teacher), *_row_differences(student, student_config, "student")]
    differences += _row_differences(teacher, teacher_config, "teacher")
    if differences:
        raise OnpolError(
            "Student and teacher do not share their tokens: " + "; ".join(differences) + ". "
            "Choose a tutor trained from the same base (or with the same tokenizer) as model.path."
        )


def _token_differences(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> list[str]:
    found = []
    if len(student) != len(teacher):
        found.append(f"real vocabulary {len(student)} (student) and {len(teacher)} (teacher) tokens")
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    if mine != theirs:
        unequal = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
        first = unequal[0]
        found.append(
            f"{len(unequal)} tokens have different ids (first {first!r}: {mine.get(first)} and {theirs.get(first)})"
        )
    elif _pipeline(student) != _pipeline(teacher):
        found.append("the tokenizers cut text differently (merges, normaliser or pre-tokeniser)")
    if student.eos_token_id != teacher.eos_token_id:
        ends = [f"{tokenizer.eos_token!r} ({tokenizer.eos_token_id})" for tokenizer in (student, teacher)]
        found.append(f"EOS {ends[0]} and {ends[1]}")
    if student.chat_template != teacher.chat_template:
        found.append("the chat templates differ")
    return found


def _pipeline(tokenizer: PreTrainedTokenizerBase) -> Any:
    """What turns text into pieces, without padding and truncation state; None for slow tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = json.loads(backend.to_str())
    return {name: parts.get(name) for name in ("normalizer", "pre_tokenizer", "model")}


def _row_differences(tokenizer: PreTrainedTokenizerBase, config: Any, who: str) -> list[str]:
    rows = getattr(config, "vocab_size", None)
    if rows is not None and rows < len(tokenizer):
        return [f"the {who} has {rows} output rows for {len(tokenizer)} tokens"]
    return []
