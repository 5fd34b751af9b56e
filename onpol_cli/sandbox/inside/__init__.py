"""Code that runs inside the isolated processes: zygote, program, judge. Standard library only.

These modules are loaded by `boot` in a fresh interpreter, under the same names as here but without
running the packages' `__init__` files, so that nothing of onpol's dependencies is imported.
"""
