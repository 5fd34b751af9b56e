"""Text to token ids and back, the one place where a chat template is applied.

The same ids go to sampler, teacher and learner; nothing re-tokenises a completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Message


class Chat:
    """A tokenizer with its chat template.

    Attributes:
        tokenizer: the transformers tokenizer.
        eos_id: the token that ends an answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise OnpolError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template. "
                "Add chat_template.jinja to its folder."
            )
        if tokenizer.eos_token_id is None:
            raise OnpolError(f"The tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token.")
        self.tokenizer = tokenizer
        self.eos_id: int = int(tokenizer.eos_token_id)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the chat up to where the answer starts. Thinking is switched off where a template has it."""
        text = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer to imitate, end-of-sequence token included."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_id)

    def text(self, ids: Sequence[int]) -> str:
        """Decoded answer without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
