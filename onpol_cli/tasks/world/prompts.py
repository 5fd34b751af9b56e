"""The chat turns of the world: what a model is shown for each kind of request."""

from __future__ import annotations

from onpol_cli.core.types import Message


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def repair(statement: str, corrupted: str) -> list[Message]:
    """Ask for the fixed function."""
    return _user(f"Fix: {statement}\n{corrupted}")


def generation(statement: str, signature: str) -> list[Message]:
    """Ask for a function from its description and its `def` line."""
    return _user(f"Write: {statement}\n{signature}")


def copying(source: str) -> list[Message]:
    """Ask for the same function again (pretraining only)."""
    return _user(f"Copy:\n{source}")
