"""Checks that a student and a teacher speak of the same tokens, before anything runs.

A distillation between models that differ in tokenizer, end of sequence, chat template or *real*
vocabulary trains on nonsense without failing; padded output rows (151936 against 152064) are fine.
"""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from onpol_cli.core.errors import OnpolError


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
