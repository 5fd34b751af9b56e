"""Families of problems that can prompt and grade. One task object serves reward and evaluation."""
