"""Minimal Code Edit: corruption families, fidelity metrics, data sets and the task itself."""
