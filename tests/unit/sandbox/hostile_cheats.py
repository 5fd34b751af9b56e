"""Hostile programs that cheat the tests' tools, the keepers of their process, or the judge's decoder.

The same form as `hostile_programs`; `THIEVES` are whole programs that look for the secret with which the
verdict of in-process tests travels, and send a verdict of their own.
"""

from __future__ import annotations

_FRAME = """
import os, struct, time
def frame(text):
    os.write(3, struct.pack('!Q', len(text)) + text.encode())
"""
_SAME = """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
"""

TOOLS: dict[str, str] = {
    "skips_the_test": "import unittest\nraise unittest.SkipTest('passed')",
    "stops_the_test": "import unittest.case\nraise unittest.case._ShouldStop",
    "hides_assertions_in_subclass": """
import unittest
for cls in unittest.TestCase.__subclasses__(): cls.assertEqual = lambda *args, **kwargs: None""",
    "marks_tests_as_skipped": """
import unittest
for cls in unittest.TestCase.__subclasses__(): cls.__unittest_skip__ = True""",
    "changes_the_bases_of_tests": """
import unittest
Lax = type('Lax', (unittest.TestCase,), {'assertEqual': lambda *args, **kwargs: None})
for cls in unittest.TestCase.__subclasses__():
    if cls is not Lax and cls.__module__ == '__test__': cls.__bases__ = (Lax,)""",
    "empties_tests_as_they_are_defined": """
import unittest
def empty(cls):
    unittest.TestCase._class_cleanups = cls._classSetupFailed = None
    cls._class_cleanups = []
    cls._classSetupFailed = False
    for name in [n for n in vars(cls) if n.startswith('test')]: setattr(cls, name, lambda self: None)
unittest.TestCase.__init_subclass__ = classmethod(empty)""",
    "patches_outcome": """
import contextlib, unittest.case
@contextlib.contextmanager
def fine(self, case, subTest=False):
    try: yield
    except BaseException: pass
unittest.case._Outcome.testPartExecutor = fine""",
    "patches_contextlib": """
import contextlib
contextlib._GeneratorContextManager.__exit__ = lambda self, *error: True""",
    "patches_exc_info": "import sys\nsys.exc_info = lambda: None",
    "hides_builtins_in_unittest": "import unittest.case\nunittest.case.issubclass = lambda *args: False",
    "changes_defaults_of_assertions": """
import unittest
unittest.TestCase.assertAlmostEqual.__defaults__ = (None, None, 1e18)
unittest.TestCase.assertEqual.__defaults__ = ('passed',)""",
    "class_of_an_invented_library": f"""{_SAME}
import sys, types
library = types.ModuleType('library')
library.Same, Same.__module__, Same.__qualname__ = Same, 'library', 'Same'
sys.modules['library'] = library
return Same()""",
    "class_planted_in_a_library": f"""{_SAME}
import json
json.Same, Same.__module__, Same.__qualname__ = Same, 'json', 'Same'
return Same()""",
    "liar_deep_inside": f"{_SAME}\nreturn [[[[[[Same()]]]]]]",
    "liar_in_a_deque": f"{_SAME}\nfrom collections import deque\nreturn deque([Same()])",
}
"""Against the tools of tests that run in the program's process."""

KEEPERS: dict[str, str] = {
    "interrupts_its_zygote": """
import os, signal, time
for number in set(range(1, 65)) - {9, 19}:
    for pid in (1, os.getppid()):
        try: os.kill(pid, number)
        except OSError: pass
time.sleep(0.1)""",
    "owner_of_a_descriptor": """
import fcntl, os, socket, time
for number in (9, 2):
    a, b = socket.socketpair()
    for pid in (os.getppid(), 1):
        try:
            fcntl.fcntl(a, fcntl.F_SETOWN, pid)
            fcntl.fcntl(a, 10, number)
            fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            b.send(b'x')
        except OSError: pass
time.sleep(0.1)""",
    "takes_its_line_into_the_queue": """
import array, os, socket
line = socket.socket(fileno=os.dup(3))
line.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [3, 1]))])
os._exit(0)""",
    "folders_without_end": """
import os
for _ in range(1200):
    os.mkdir('d')
    os.chdir('d')""",
    "memory_files": """
import os
block, files = b'x' * 1_000_000, []
for _ in range(50):
    files.append(os.memfd_create('x'))
    for _ in range(8): os.write(files[-1], block)""",
    "both_processes_answer": "import os\nos.fork()",
}
"""Against zygote, kernel and what follows."""

FORGERIES: dict[str, str] = {
    "endless_tuple": _FRAME
    + """frame('{"result": {"": ["tuple", {"": ["range", [0, 1000000000000, 1]]}]}, "args": [0], "kwargs": {}}')""",
    "endless_fraction": _FRAME
    + """frame('{"result": {"": ["Fraction", "1e9999999999"]}, "args": [0], "kwargs": {}}')""",
    "endless_exception": _FRAME + """frame('{"raised": {"": ["range", [0, 1000000000000, 1]]}}')""",
    "many_small_values": _FRAME + """frame('{"result": [' + '[],' * 3_000_000 + '1], "args": [0], "kwargs": {}}')""",
    "exception_of_no_form": _FRAME + """frame('{"raised": 5}')""",
    "same_hashes": _FRAME
    + """
numbers = ','.join(str(i * ((1 << 61) - 1)) for i in range(1, 6000))
frame('{"result": {"": ["set", [' + numbers + ']]}, "args": [0], "kwargs": {}}')""",
    "controls_in_exception": "raise ValueError('\\ud800\\x1b[31mred\\x07')",
}
"""Against what decodes and shows answers."""

_STEAL = r"""
import json, os, re, struct, sys
def dig(value, depth=0):
    if type(value) is bytes: value = value.decode('latin-1')
    if type(value) is str:
        got = re.search(r'"secret": "([0-9a-f]{32})"', value)
        if got: win(got[1])
    elif type(value) is dict and depth < 3:
        if type(value.get('secret')) is str: win(value['secret'])
        for part in list(value.values()): dig(part, depth + 1)
def steal(*ignored):
    frame = sys._getframe()
    while frame is not None:
        dig(dict(frame.f_locals))
        frame = frame.f_back
def win(secret):
    data = json.dumps({'secret': secret, 'run': 1, 'failures': [], 'forged': []}).encode()
    os.write(3, struct.pack('!Q', len(data)) + data)
    os._exit(0)
def f(x): return 'wrong'
"""
_BODIES: dict[str, str] = {
    "gc_callback": "import gc\ngc.callbacks.append(steal)\ngc.set_threshold(1)",
    "finalizer_of_garbage": """
import gc
class Cycle:
    def __init__(self): self.me = self
    def __del__(self): steal(); Cycle()
gc.set_threshold(1, 1, 1)
Cycle()""",
    "finalizer_of_result": """
class Result:
    def __del__(self): steal()
def f(x): return Result()""",
    "weak_reference_to_result": """
import weakref
kept = []
def f(x):
    result = {1}
    kept.append(weakref.ref(result, steal))
    return result""",
    "audit_hook": "sys.addaudithook(steal)",
    "finder": """
class Finder:
    def find_spec(self, name, path=None, target=None): steal()
sys.meta_path.insert(0, Finder())""",
    "path_hook": """
def hook(path): steal(); raise ImportError
sys.path_hooks.insert(0, hook)
sys.path_importer_cache.clear()""",
    "module_beside_the_program": """
open('chunk.py', 'w').write('import __test__; __test__.steal()')
sys.path.insert(0, os.getcwd())""",
    "json_loads": "old = json.loads\njson.loads = lambda *args, **more: (steal(), dig(args[0]), old(*args, **more))[2]",
    "json_dumps": """
old = json.dumps
json.dumps = lambda v, *args, **more: old({**v, 'run': 1, 'failures': [], 'forged': []} if 'secret' in v else v)""",
    "encoder": """
encoder = sys.modules['onpol_cli.sandbox.codec']._Encoder
old = encoder.top
encoder.top = lambda self, v: old(self, {**v, 'failures': [], 'forged': []} if type(v) is dict and 'secret' in v else v)
""",
    "frames": """
frames = sys.modules['onpol_cli.sandbox.frames']
old = frames._read
def read(*args):
    data = old(*args)
    dig(data)
    return data
frames._read = read""",
    "builtins_of_the_runner": """
import builtins, unittest
old = zip
def short(*args, **more):
    return iter(()) if sys._getframe(1).f_code.co_name in ('_changes', 'changes', '<listcomp>') else old(*args, **more)
builtins.zip = short
unittest.TestCase.assertEqual = lambda *args, **more: None""",
    "builtins_while_called": """
def f(x):
    import builtins
    old = builtins.len
    builtins.len = lambda v: (steal(), old(v))[1]
    return 'wrong'""",
    "text_of_exception": """
class Loud(ValueError):
    def __str__(self): steal(); return 'x'
def f(x): raise Loud""",
    "argument_of_exception": """
class Loud:
    def __repr__(self): steal(); return 'x'
def f(x): raise KeyError(Loud())""",
    "metaclass_of_exception": """
class Meta(type):
    def __getattribute__(cls, name): steal(); return type.__getattribute__(cls, name)
class Loud(ValueError, metaclass=Meta): pass
def f(x): raise Loud""",
    "text_of_interrupt": """
class Loud(KeyboardInterrupt):
    def __str__(self): steal(); return 'x'
def f(x): raise Loud""",
    "items_of_result": """
class Items(list):
    def __getitem__(self, index): steal(); return 'x'
    def __iter__(self): steal(); return iter('x')
def f(x): return Items('x')""",
    "builtins_for_the_tests": "def str(x): steal(); return x",
}
CONSTANT = f"{_SAME}\nEXPECTED = Same()\ndef f(x): return 'wrong'"
THIEVES: dict[str, str] = {name: _STEAL + body for name, body in _BODIES.items()}
