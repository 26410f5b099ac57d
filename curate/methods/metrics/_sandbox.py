"""Runs a model's Python where accidents do no harm: no files, no processes, no network, limits on time and memory.

The program runs in an interpreter of its own, in an empty folder, behind an audit hook, which the interpreter calls
before anything that reaches outside, and under limits of the operating system. Code written to break out may succeed;
run such code on a machine of its own.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

_GUARD = """
import os, resource, sys, sysconfig

seconds, megabytes, report = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
password, _, code = sys.stdin.read().partition(chr(10))
del sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
if os.getuid() != 0:  # root has no such limit
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
library = tuple(os.path.realpath(sysconfig.get_path(p)) for p in ("stdlib", "platstdlib"))
outside = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "pty.", "signal.", "ftplib.", "http.", "urllib.",
           "smtplib.", "sqlite3.", "tempfile.", "webbrowser.", "glob.", "pathlib.", "mmap.", "fcntl.", "resource.",
           "sys.set", "sys.add", "gc.", "syslog.", "faulthandler.")
modules = {"ctypes", "_ctypes", "_posixsubprocess", "subprocess", "multiprocessing", "socket", "_socket", "pty",
           "resource", "fcntl", "mmap", "sqlite3"}
reading = {"os.listdir", "os.scandir"}

def inside(path):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    return os.path.realpath(os.fsdecode(path)).startswith(library)

def guard(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or not inside(path):
            raise PermissionError("it opens a file")
    elif event == "import" and arguments[0].partition(".")[0] in modules:
        raise PermissionError(f"it imports {arguments[0]}")
    elif event in reading and inside(arguments[0]):
        pass
    elif event.startswith(outside):
        raise PermissionError(f"it calls {event}")

for name in modules & set(sys.modules):
    del sys.modules[name]
module = {"__name__": "answer"}
leave, write = os._exit, os.write

def say(text):
    write(report, text.encode("utf-8", "replace"))

try:
    del os.fork, os.forkpty, os.kill, os.killpg, os._exit
    for name in [n for n in dir(os) if n.startswith(("exec", "spawn", "posix_spawn"))]:
        delattr(os, name)
    program = compile(code, "answer", "exec")
    sys.addaudithook(guard)
    exec(program, module)
except BaseException as error:
    first = (str(error).splitlines() or [""])[0][:200]
    say(f"{type(error).__name__}: {first}".rstrip(": "))
    leave(1)
say(password)
leave(0)
"""


def run_python(code: str, seconds: float, megabytes: int) -> str | None:
    """Run a program. Returns None if it ran to its end, else why not, in words.

    A program that ends the interpreter itself (exit) has not run to its end: it is recognised by a password that it
    does not know and so cannot report.
    """
    password = secrets.token_hex()
    read_end, write_end = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="curate-sandbox-") as empty:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(seconds), str(megabytes), str(write_end)],
                cwd=empty,
                env={"PATH": "", "LC_ALL": "C.UTF-8"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(write_end,),
            )
            try:
                process.communicate(f"{password}\n{code}".encode("utf-8", "replace"), timeout=seconds)
            except subprocess.TimeoutExpired:
                return f"it did not end within {seconds:g} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    finally:
        os.close(write_end)
        reply = os.read(read_end, 4096).decode("utf-8", "replace")
        os.close(read_end)
    if reply == password:
        return None
    if process.returncode < 0:
        return f"it was ended by {signal.Signals(-process.returncode).name}"
    return reply or "it left the interpreter"
