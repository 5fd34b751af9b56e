"""onpol: a laboratory bench for on-policy distillation.

Train tutors (SFT, rSFT, DPO, RL), distil students from them on-policy, evaluate everything on the
same problems, and write one comparison. `docs/` explains the methods; `onpol --help` the commands.
"""

__version__ = "0.1.0"
