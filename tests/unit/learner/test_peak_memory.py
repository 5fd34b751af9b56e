"""A run's peak is its own, not that of what the process did before nor of the process that started it."""

import subprocess
import sys

import pytest

PROBE = """
import sys, torch
from onpol_cli.learner.memory import forget_peak, peak_memory_mb
cpu = torch.device("cpu")
MIB = 2**20
block = bytearray(400 * MIB)
before = peak_memory_mb(cpu)
del block
forget_peak(cpu)
small = peak_memory_mb(cpu)
block = bytearray(200 * MIB)
print(before - small, peak_memory_mb(cpu) - small)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_peak_begins_anew():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    fallen, risen = map(float, done.stdout.split())
    assert 350 < fallen < 450 and 150 < risen < 250
