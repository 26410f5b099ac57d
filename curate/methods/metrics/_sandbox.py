"""Runs a model's Python where accidents do no harm: no files, no processes, no network, limits on time and memory.

The program runs in an interpreter of its own, in an empty folder, behind an audit hook, which the interpreter calls
before anything that reaches outside, and under limits of the operating system. That guard is written in Python, in the
process that it guards: it is no boundary against code that is written to break out. bubblewrap is one of the operating
system's: around the same guard, the program sees the machine's files as they are, but can write none, has no network,
an empty /tmp and /run, and processes of its own alone; a hole in the kernel is still one, and the machine's files can
still be read. Run malicious code on a machine of its own.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from curate.errors import CurateFailure

_BEGUN = "+"  # what the guard says first, before the program can say anything
_HIDDEN = ("/tmp", "/run")  # where other processes have their files and sockets

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

say("+")
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


def bubblewrap_problem() -> str:
    """Why bubblewrap cannot be used here, as the end of a sentence; '' if it can be."""
    return _problem(shutil.which("bwrap") or "")


@functools.cache
def _problem(program: str) -> str:
    if not program:
        return "bubblewrap is not installed: `apt install bubblewrap`, or your system's package of that name"
    tried = subprocess.run(wrapped([sys.executable, "-I", "-S", "-c", ""], program), capture_output=True, text=True)
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [f"it ended with {tried.returncode}"])[0].rstrip(".")
        return f"bubblewrap does not start here ({said}); the system must allow user namespaces"
    return ""


def wrapped(words: list[str], program: str = "bwrap") -> list[str]:
    """A command in a sandbox of bubblewrap's: files that cannot be written, no network, an empty /tmp and /run, and
    processes of its own, which end with the one that starts it."""
    alone = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    seen = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for folder in _HIDDEN:
        seen += ["--tmpfs", folder] if Path(folder).is_dir() else []
    needed = sorted({os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)} | {sys.prefix})
    for prefix in needed:  # an interpreter that lies in what is hidden
        seen += ["--ro-bind", prefix, prefix] if prefix.startswith(tuple(f"{hidden}/" for hidden in _HIDDEN)) else []
    return [program, *alone, *seen, "--chdir", "/tmp", "--", *words]


def run_python(code: str, seconds: float, megabytes: int, bubblewrap: bool = False) -> str | None:
    """Run a program. Returns None if it ran to its end, else why not, in words. bubblewrap: in its sandbox, too.

    A program that ends the interpreter itself (exit) has not run to its end: it is recognised by a password that it
    does not know and so cannot report. Raises CurateFailure if the program is not even begun.
    """
    password = secrets.token_hex()
    read_end, write_end = os.pipe()
    words = [sys.executable, "-I", "-S", "-c", _GUARD, str(seconds), str(megabytes), str(write_end)]
    try:
        with tempfile.TemporaryDirectory(prefix="curate-sandbox-") as empty:
            process = subprocess.Popen(
                wrapped(words, shutil.which("bwrap") or "bwrap") if bubblewrap else words,
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
        begun, reply = _heard(read_end)
    if not begun:
        raise CurateFailure(
            f"a program was not begun: its interpreter ended with {process.returncode} before; run this again, with "
            "more pass_at_1.megabytes if it stays so."
        )
    if reply == password:
        return None
    ended_by = process.returncode - 128 if bubblewrap else -process.returncode
    if ended_by in set(signal.Signals):
        return f"it was ended by {signal.Signals(ended_by).name}"
    return reply or "it left the interpreter"


def _heard(read_end: int) -> tuple[bool, str]:
    """Whether the guard began, and what it said then. Closes the pipe."""
    said = b""
    os.set_blocking(read_end, False)  # a process that outlived the program may hold its other end
    with suppress(BlockingIOError):
        while data := os.read(read_end, 4096):
            said += data
    os.close(read_end)
    text = said.decode("utf-8", "replace")
    return text.startswith(_BEGUN), text.removeprefix(_BEGUN)
