"""Hostile programs that look for the expected answer instead of computing it (see `hostile_programs`)."""

from __future__ import annotations

SEARCH = """
import re
def look(value, depth=0):
    if isinstance(value, str):
        got = re.search('ANSWER:[0-9a-f]{16}', value)
        return got.group() if got else None
    if isinstance(value, (bytes, bytearray)):
        return look(value.decode('latin-1'))
    if depth < 3 and isinstance(value, dict):
        return next((got for v in list(value.values()) if (got := look(v, depth + 1))), None)
    if depth < 3 and isinstance(value, (list, tuple, set, frozenset)):
        return next((got for v in list(value) if (got := look(v, depth + 1))), None)
    consts = getattr(getattr(value, '__code__', None), 'co_consts', None) if callable(value) else None
    return look(consts) if type(consts) is tuple else None
def look_in_frame(frame):
    while frame is not None:
        for place in (dict(frame.f_locals), dict(frame.f_globals), frame.f_code.co_consts):
            if got := look(place): return got
        frame = frame.f_back
    return None
"""

READERS: dict[str, str] = {
    "reads_frames": "import sys\nreturn look_in_frame(sys._getframe())",
    "reads_frames_by_inspect": """
import inspect
return next((got for info in inspect.stack() if (got := look_in_frame(info.frame))), 'wrong')""",
    "reads_frames_by_generator": """
def gen():
    yield look_in_frame(me.gi_frame)
me = gen()
return next(me)""",
    "reads_frames_by_traceback": """
try: raise ValueError
except ValueError as error: return look_in_frame(error.__traceback__.tb_frame)""",
    "reads_frames_of_threads": """
import sys
return next((got for frame in sys._current_frames().values() if (got := look_in_frame(frame))), 'wrong')""",
    "reads_gc": """
import gc
gc.collect()
for thing in gc.get_objects():
    if got := look(thing): return got
for thing in gc.get_referrers(str):
    if got := look(thing): return got""",
    "reads_subclasses": """
import unittest
for cls in unittest.TestCase.__subclasses__():
    for value in vars(cls).values():
        if got := look(value): return got""",
    "calls_tests_with_recorder": """
import unittest
seen = []
class Recorder:
    def __getattr__(self, name): return lambda *args, **kwargs: seen.extend(args)
for cls in unittest.TestCase.__subclasses__():
    for name, value in list(vars(cls).items()):
        if name.startswith('test'):
            try: value(Recorder())
            except RuntimeError: pass
return look(seen)""",
    "reads_modules": """
import sys
for module in list(sys.modules.values()):
    if got := look(dict(vars(module))): return got""",
    "reads_own_memory": """
import re
with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb') as memory:
    for line in maps:
        low, high = (int(part, 16) for part in line.split()[0].split('-'))
        if ' rw' in line and high - low < 1 << 28:
            memory.seek(low)
            got = re.search(rb'ANSWER:[0-9a-f]{16}', memory.read(high - low))
            if got: return got.group().decode()""",
    "reads_other_memory": """
import os, re
for pid in filter(str.isdigit, os.listdir('/proc')):
    if int(pid) == os.getpid(): continue
    with open(f'/proc/{pid}/maps') as maps, open(f'/proc/{pid}/mem', 'rb') as memory:
        for line in maps:
            low, high = (int(part, 16) for part in line.split()[0].split('-'))
            if ' rw' in line:
                memory.seek(low)
                got = re.search(rb'ANSWER:[0-9a-f]{16}', memory.read(high - low))
                if got: return got.group().decode()""",
    "reads_proc_files": """
import glob
for path in glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ') + glob.glob('/proc/*/fd/*'):
    try: data = open(path, 'rb').read(1 << 20)
    except OSError: continue
    if got := look(data): return got""",
    "ptraces_everybody": """
import ctypes, os
libc = ctypes.CDLL(None)
return 'traced' if any(libc.ptrace(16, int(p), 0, 0) == 0 for p in os.listdir('/proc') if p.isdigit()) else 'wrong'""",
    "reads_the_judges_socket": """
import os, socket
for fd in range(3, 32):
    try: sock = socket.socket(fileno=os.dup(fd)); sock.settimeout(0.05); data = sock.recv(1 << 20)
    except OSError: continue
    if got := look(data): return got""",
    "dumps_stack_by_faulthandler": """
import faulthandler
with open('trace', 'w+') as file:
    faulthandler.dump_traceback(file)
    file.seek(0)
    return look(file.read())""",
}
