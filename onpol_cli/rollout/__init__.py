"""Rollout engines: completions of prompts from the policy as last synced, by transformers or vLLM."""
