"""Shared nouns, configuration, seeding, console. Imports nothing else of onpol."""
