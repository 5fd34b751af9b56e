"""Run directories: creation, manifest, metrics, samples, checkpoints, lookup.

Everything that onpol later tabulates is read from these files; nothing is kept elsewhere.
"""
