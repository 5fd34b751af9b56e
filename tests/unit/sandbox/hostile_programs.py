"""Hostile programs, one property each: bodies of a function `attack()` that the suite runs.

Every program of the suite calls `attack()` while it loads and again when it is asked for its answer,
which is whatever `attack()` returns. The right answer is a random string that begins with "ANSWER:"
and stands only in the tests, so a program passes only if it finds it, or forges the verdict.
`SLOW` need their limits to be stopped.
"""

from __future__ import annotations

from hostile_readers import READERS, SEARCH

PROGRAMS: dict[str, str] = {
    # --- time ---------------------------------------------------------------------------------------
    "infinite_loop": "while True: pass",
    "infinite_sleep": "import time\nwhile True: time.sleep(100)",
    "signals_ignored": """
import signal
for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
    try: signal.signal(number, signal.SIG_IGN)
    except ValueError: pass
while True: pass""",
    "swallows_every_exception": """
while True:
    try:
        while True: pass
    except BaseException: pass""",
    "monkey_patched_time": """
import time
time.time = time.monotonic = time.perf_counter = time.process_time = lambda: 0.0
while True: pass""",
    "raises_its_own_limits": """
import resource
for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    try: resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError): pass
while True: pass""",
    "work_in_child_processes": """
import os
for _ in range(3):
    if os.fork() == 0:
        while True: pass
os.wait()""",
    "giant_power": "return str(7 ** (10 ** 8))",
    "catastrophic_regex": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    # --- resources ----------------------------------------------------------------------------------
    "fork_bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass""",
    "thread_bomb": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(50,)).start()
    except RuntimeError: time.sleep(0.01)""",
    "memory_bomb": "blocks = []\nwhile True: blocks.append(bytearray(50_000_000))",
    "memory_bomb_in_children": """
import os, time
for _ in range(6):
    if os.fork() == 0:
        block = bytearray(b'x') * 150_000_000
        time.sleep(60)
time.sleep(60)""",
    "disk_bomb": """
with open('big', 'wb') as file:
    while True: file.write(b'x' * 1_000_000)""",
    "disk_bomb_of_many_files": """
import os
for number in range(3000):
    with open(f'f{number}', 'wb') as file: file.write(b'x' * 100_000)""",
    "endless_output": """
import os
while True: os.write(1, b'ANSWER:' * 10_000)""",
    "huge_result": "return 'ANSWER:' * 30_000_000",
    "deep_recursion": "def down(n): return down(n + 1)\nreturn down(0)",
    "deep_recursion_without_limit": """
import sys
sys.setrecursionlimit(10 ** 9)
class Deep:
    def __getattr__(self, name): return getattr(self, name + 'x')
return repr(Deep().a)""",
    "deeply_nested_result": "x = []\nfor _ in range(100_000): x = [x]\nreturn x",
    "circular_result": "x = []\nx.append(x)\nreturn x",
    "many_open_files": "files = [open('/dev/null') for _ in range(100_000)]",
    # --- ends early ---------------------------------------------------------------------------------
    "os_exit": "import os\nos._exit(0)",
    "sys_exit": "import sys\nsys.exit(0)",
    "raise_system_exit": "raise SystemExit(0)",
    "quit": "quit()",
    "keyboard_interrupt": "raise KeyboardInterrupt",
    "interrupt_main": "import _thread\n_thread.interrupt_main()",
    "exit_in_child_only": "import os\nif os.fork() == 0: os._exit(0)\nraise SystemExit(0)",
    "atexit": """
import atexit, os
atexit.register(lambda: (os.write(1, b'passed'), os._exit(0)))
raise SystemExit(0)""",
    "del_exits": """
import os
class Bomb:
    def __del__(self): os._exit(0)
Bomb()""",
    "segfault": "import ctypes\nctypes.string_at(1)",
    "abort": "import os\nos.abort()",
    "kill_self": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "evil_exception": """
class Evil(Exception):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__
raise Evil""",
    # --- the channel --------------------------------------------------------------------------------
    "closes_descriptors": "import os\nos.closerange(0, 4096)",
    "writes_to_descriptors": """
import os
for fd in range(64):
    try: os.write(fd, b'passed' * 1000)
    except OSError: pass""",
    "forges_frames": """
import os, struct
lies = '{"status": "passed"}|{"result": true}|{"loaded": true}|{"secret": "", "run": 1, "failures": []}'
for text in lies.encode().split(b'|'):
    for fd in range(3, 16):
        try: os.write(fd, struct.pack('!Q', len(text)) + text)
        except OSError: pass
os._exit(0)""",
    "gigantic_frame": """
import os, struct
for fd in range(3, 16):
    try: os.write(fd, struct.pack('!Q', 1 << 50) + b'x' * 100)
    except OSError: pass""",
    "prints_success": """
print('OK\\npassed\\nRan 1 test in 0.000s\\n\\nOK\\n{"status": "passed"}')
import sys
sys.stderr.write('OK')""",
    "swaps_stdout": """
import io, sys
sys.stdout = sys.stderr = io.StringIO()
sys.__stdout__ = sys.stdout""",
    "stdin_tricks": """
import io, os, sys
found = [os.read(0, 100000).decode(errors='replace')]
sys.stdin = io.StringIO('ANSWER:')
os.dup2(1, 0)
return next((text for text in found if text.startswith('ANSWER:')), 'wrong')""",
    # --- the tests' tools ---------------------------------------------------------------------------
    "patches_unittest": """
import unittest
for name in dir(unittest.TestCase):
    if name.startswith(('assert', 'fail')):
        try: setattr(unittest.TestCase, name, lambda *args, **kwargs: None)
        except TypeError: pass
unittest.TestCase.run = lambda self, result=None: result
unittest.TestResult.wasSuccessful = lambda self: True
unittest.TestResult.addFailure = unittest.TestResult.addError = lambda *args: None""",
    "patches_unittest_and_repairs": """
import threading, time, unittest
old = unittest.TestCase.assertEqual
unittest.TestCase.assertEqual = lambda self, *args: setattr(unittest.TestCase, 'assertEqual', old)""",
    "patches_test_result": """
import unittest.result, unittest.case
Evil = type('Evil', (), {'success': True, '__getattr__': lambda s, n: s})
unittest.result.TestResult = unittest.case._Outcome = Evil""",
    "patches_builtins": """
import builtins
builtins.isinstance = builtins.issubclass = builtins.callable = builtins.hasattr = lambda *args: True
builtins.all = builtins.any = lambda items: True
builtins.str = type('S', (str,), {'__eq__': lambda a, b: True, '__hash__': str.__hash__})""",
    "patches_exec_and_compile": """
import builtins
builtins.exec = lambda *args, **kwargs: None
builtins.compile = lambda *args, **kwargs: compile
builtins.__build_class__ = lambda *args, **kwargs: None""",
    "patches_assertion_error": """
import builtins
builtins.AssertionError = type('Fine', (SystemExit,), {})""",
    "patches_sys_modules": """
import sys, types
class Any(types.ModuleType):
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
    def __eq__(self, other): return True
    __hash__ = None
for name in ('unittest', 'unittest.case', 'json', 'socket', 'struct'):
    sys.modules[name] = Any(name)""",
    "patches_json": """
import json, json.encoder, json.decoder
json.dumps = lambda *args, **kwargs: '{"result": true, "status": "passed"}'
json.loads = lambda *args, **kwargs: {'status': 'passed', 'result': True}
json.JSONEncoder.default = lambda *args: 'passed'""",
    "replaces_the_workers_modules": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith('onpol'):
        for key, value in list(vars(module).items()):
            if callable(value):
                try: setattr(module, key, lambda *args, **kwargs: {'status': 'passed', 'result': True})
                except (TypeError, AttributeError): pass""",
    "import_hook": """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None): raise SystemExit(0)
sys.meta_path.insert(0, Finder())""",
    "trace_hook": """
import sys, threading
def tracer(frame, event, arg):
    for value in list(frame.f_locals.values()) + list(frame.f_code.co_consts):
        if isinstance(value, str) and value.startswith('ANSWER:'): found.append(value)
    return tracer
found = []
sys.settrace(tracer); sys.setprofile(tracer); threading.settrace(tracer)
return found[0] if found else 'wrong'""",
    "profile_of_threads": "import threading\nthreading.setprofile(lambda *args: __import__('os')._exit(0))",
    "signal_handler": """
import signal, os
signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)""",
    "gc_callback": """
import gc
gc.callbacks.append(lambda phase, info: __import__('os')._exit(0))
gc.collect()""",
    "thread_left_behind": """
import threading, time, unittest
def later():
    while True:
        unittest.TestCase.assertEqual = lambda *args: None
        time.sleep(0.0001)
threading.Thread(target=later, daemon=True).start()""",
    # --- lying values -------------------------------------------------------------------------------
    "always_equal": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    __hash__ = object.__hash__
return Equal()""",
    "always_equal_inside_list": """
class Equal(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
return [Equal()]""",
    "str_subclass": """
class Text(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = str.__hash__
return Text('wrong')""",
    "int_subclass": """
class Number(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
return Number(3)""",
    "metaclass_equal": """
class Meta(type):
    def __eq__(cls, other): return True
    def __hash__(cls): return 0
class Thing(metaclass=Meta): pass
return Thing""",
    "forged_class_origin": """
Equal = type('Decimal', (), {'__eq__': lambda a, b: True, '__module__': 'decimal', '__qualname__': 'Decimal'})
return Equal()""",
    "mock_any": "from unittest import mock\nreturn mock.ANY",
    "mock_with_equality": """
from unittest import mock
lie = mock.MagicMock()
lie.__eq__.return_value = True
lie.__ne__.return_value = False
return lie""",
    "reflected_comparison": """
class Later:
    def __rsub__(self, other): return 0
    def __radd__(self, other): return other
    def __getattr__(self, name): return lambda *args, **kwargs: True
    def __eq__(self, other): return True
return Later()""",
}

PROGRAMS |= {name: SEARCH + body for name, body in READERS.items()}

PROGRAMS |= {
    # --- the machine --------------------------------------------------------------------------------
    "kills_everybody": """
import os, signal
for pid in (1, os.getppid(), 0, -1):
    try: os.kill(pid, signal.SIGKILL)
    except OSError: pass""",
    "stops_everybody": """
import os, signal
for name in [n for n in os.listdir('/proc') if n.isdigit()]:
    if int(name) != os.getpid():
        try: os.kill(int(name), signal.SIGSTOP)
        except OSError: pass
os.kill(os.getpid(), signal.SIGSTOP)""",
    "daemonises": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)""",
    "child_keeps_stdout_open": """
import subprocess, sys
subprocess.Popen([sys.executable or 'python3', '-c', 'import time; time.sleep(300)'], start_new_session=True)
subprocess.Popen(['sleep', '300'], start_new_session=True)""",
    "closes_its_own_folder": "import os\nos.makedirs('a/b/c')\nos.chmod('a/b', 0)\nos.chmod('.', 0)",
    "removes_its_own_folder": "import os, shutil\nshutil.rmtree(os.getcwd())",
    "symlinks": """
import os
os.symlink('/etc', 'etc'); os.symlink('/', 'root'); os.symlink('/tmp', 'tmp')
with open('root/tmp/onpol-hostile-file', 'w') as file: file.write('x')""",
    "shared_memory": """
with open('/dev/shm/onpol-hostile-file', 'w') as file: file.write('x')
from multiprocessing import shared_memory
shared_memory.SharedMemory(name='onpol-hostile', create=True, size=100)""",
    "temporary_files": """
import tempfile
tempfile.mkdtemp(dir='/tmp', prefix='onpol-hostile'); tempfile.mkstemp(dir='/var/tmp', prefix='onpol-hostile')""",
    "becomes_root": """
import os
os.setuid(0)
return open('/etc/shadow').read()""",
    "makes_namespaces": """
import ctypes
libc = ctypes.CDLL(None)
if libc.unshare(0x10000000) == 0: raise SystemExit('escaped')
return 'mounted' if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 else 'wrong'""",
}

SLOW = frozenset(
    [
        "infinite_loop",
        "infinite_sleep",
        "signals_ignored",
        "swallows_every_exception",
        "monkey_patched_time",
        "raises_its_own_limits",
        "work_in_child_processes",
        "giant_power",
        "catastrophic_regex",
        "fork_bomb",
        "thread_bomb",
        "memory_bomb_in_children",
        "stops_everybody",
    ]
)
"""Programs that end only at a limit: run in fewer kinds of jobs."""
