"""A running program's output caught by strace: attached to its tree, detached again, and what it wrote in words.

A traced process cannot be dumped. So whoever freezes one calls end() first, and strace leaves by itself at a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from typing import Any

from . import proc, record
from .errors import MigrationError

PHASES = ("pre_dump", "post_restore")
LEASE = 600.0  # seconds after which strace leaves a process that nobody has frozen: the play may have been killed
MAX_RAW = 64 << 20  # bytes that strace may write, it ends there
STRINGS = 65536  # bytes of one write that are shown
ATTACH = 10.0  # seconds until it has to be attached, and to be gone
SECONDS = 6.0  # of output after the restore, as the seed documents have it
STREAMS = ("1", "2")
CALL = re.compile(r"^(?:(\d+)\s+)?(\d+\.\d+) (write|writev)\((\d+)[,<]")
RESUMED = re.compile(r"^(?:(\d+)\s+)?\d+\.\d+ <\.\.\. writev? resumed>.*\)\s+= (-?\d+)")
RETURNED = re.compile(r"\)\s+= (-?\d+)(?: |$)")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
ESCAPES = {"n": 10, "t": 9, "r": 13, "v": 11, "f": 12, "\\": 92, '"': 34}


def _note_path(folder: str, phase: str) -> str:
    return os.path.join(folder, f"strace-{phase}.json")


def raw_path(folder: str, phase: str) -> str:
    return os.path.join(folder, f"strace-{phase}.raw")


def noted(folder: str, phase: str) -> dict[str, Any]:
    """What was written down when strace was started; {} where it was not."""
    try:
        with open(_note_path(folder, phase), encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(folder: str, phase: str, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=1, sort_keys=True)
    record.write_file(_note_path(folder, phase), text.encode(), sync=False)


def tracer(pid: int) -> int:
    """PID of what traces a process, 0 where nothing does."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as handle:
            return next((int(line.split()[1]) for line in handle if line.startswith("TracerPid:")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _words(strace: str, raw: str, pids: list[int], seconds: float) -> list[str]:
    words = ["prlimit", f"--fsize={MAX_RAW}", "timeout", "--kill-after=5", f"{seconds:g}", strace]
    words += ["-f", "-q", "-ttt", "-s", str(STRINGS), "-e", "trace=write,writev", "-e", "signal=none", "-o", raw]
    told = subprocess.run([strace, "--help"], capture_output=True, text=True, check=False, timeout=ATTACH).stdout
    if "trace-fds" in told:  # else the other descriptors are left out when it is read
        words += ["--trace-fds=" + ",".join(STREAMS)]
    return words + [word for pid in pids for word in ("-p", str(pid))]


def begin(run_id: str, phase: str, pid: int, seconds: float) -> bool:
    """Attach strace to the tree of `pid` for at most `seconds`; False where it is attached already.

    Raises MigrationError where strace is not there, or cannot attach.
    """
    folder = record.run_dir(run_id)
    if noted(folder, phase):
        return False
    strace = shutil.which("strace", path="/usr/local/bin:/usr/bin:/bin:/usr/sbin")
    if strace is None:
        raise MigrationError("strace is not installed on this node.", "Install it, or use output_capture=file.")
    procs = proc.tree(pid)
    if not procs:
        raise MigrationError(f"There is no process {pid} to attach strace to.", "Start it again.")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    raw = raw_path(folder, phase)
    words = _words(strace, raw, [item.pid for item in procs], seconds)
    complaints = os.path.join(folder, f"strace-{phase}.err")
    with open(complaints, "wb") as err:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=err, stderr=err, cwd="/", umask=0o077, start_new_session=True,
        )  # fmt: skip
    started = (proc.stat(child.pid) or ("", 0, 0))[2]
    data = {"phase": phase, "pids": [item.pid for item in procs], "command": words, "began": time.time()}
    _keep(folder, phase, {**data, "limit": seconds, "pid": child.pid, "start": started, "boot_id": record.boot_id()})
    deadline = time.monotonic() + ATTACH
    while child.poll() is None and not tracer(pid) and time.monotonic() < deadline:
        time.sleep(0.01)  # the kernel tells nobody who is traced
    if not tracer(pid):
        end(folder, phase)
        with open(complaints, encoding="utf-8", errors="replace") as handle:
            why = handle.read().strip()[-500:]
        os.unlink(_note_path(folder, phase))
        raise MigrationError(f"strace cannot attach to the process {pid}: {why or 'it says nothing'}",
                             "Use output_capture=file.")  # fmt: skip
    child.returncode = 0  # it outlives this program on purpose
    return True


def _members(data: dict[str, Any]) -> list[proc.Proc]:
    """`timeout` and the strace below it, as far as they live."""
    if data.get("boot_id") != record.boot_id():
        return []
    keeper = proc.Proc(int(data["pid"]), int(data["start"]))
    found = proc.tree(keeper.pid) if keeper.alive() else []
    for pid in {tracer(int(pid)) for pid in data["pids"]} - {0, *(item.pid for item in found)}:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as handle:
            words = handle.read().split(b"\0")
            if raw_path(os.path.dirname(data["path"]), data["phase"]).encode() in words:  # its keeper was killed
                found.append(proc.Proc(pid, (proc.stat(pid) or ("", 0, 0))[2]))
    return found


def end(folder: str, phase: str, patience: float = 0.0) -> bool:
    """Let strace detach, after it has had `patience` seconds to end by itself; True when it was there.

    On return nothing of ours traces the process.
    """
    data = {**noted(folder, phase), "path": _note_path(folder, phase)}
    if "pid" not in data or "ended" in data:
        return False
    left = proc.wait_gone(_members(data), patience)
    for item in left:
        item.kill(signal.SIGTERM)  # strace detaches at it, and timeout passes it on
    stuck = proc.wait_gone(left, ATTACH / 2)
    proc.kill_tree(stuck, ATTACH / 2)  # the kernel lets go of what it traced
    del data["path"]
    with contextlib.suppress(OSError):  # a full disk is no reason to keep a process from being frozen
        _keep(folder, phase, {**data, "ended": time.time(), "by": "itself" if not left else "request"})
    return bool(left)


def collect(folder: str, phase: str, most: int) -> dict[str, Any]:
    """{raw, info}: the end of what strace wrote of stdout and stderr, at most `most` bytes; {} where it was not used.

    What it wrote of other descriptors stays here: it may be anything.
    """
    info = noted(folder, phase)
    if not info:
        return {}
    try:
        with open(raw_path(folder, phase), "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            handle.seek(max(0, size - most))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        size, text = 0, ""
    lines = [line for line in text.splitlines() if _is_output(line)]
    info = {**info, "raw_bytes": size, "cut_off": size > most, "full": size >= MAX_RAW}
    return {"raw": "".join(f"{line}\n" for line in lines), "info": info}


def _is_output(line: str) -> bool:
    call = CALL.match(line)
    return call.group(4) in STREAMS if call else bool(RESUMED.match(line))


def parse(raw: str) -> str:
    """What the program wrote, out of strace's lines; a call that failed wrote nothing."""
    written: list[bytes] = []
    open_calls: dict[str, int] = {}
    for line in raw.splitlines():
        call, resumed = CALL.match(line), RESUMED.match(line)
        if call and call.group(4) in STREAMS:
            data = b"".join(unescape(text) for text in STRING.findall(line[call.end() :]))
            returned = RETURNED.search(line[line.rfind('"') + 1 :])
            if returned:
                data = data[: max(0, int(returned.group(1)))]
            else:
                open_calls[call.group(1) or ""] = len(written)
            written.append(data)
        elif resumed and (resumed.group(1) or "") in open_calls:
            place = open_calls.pop(resumed.group(1) or "")
            written[place] = written[place][: max(0, int(resumed.group(2)))]
    return b"".join(written).decode("utf-8", "replace")


def unescape(text: str) -> bytes:
    r"""A string as strace prints it (\n, \33, \x1b) in bytes."""
    out = bytearray()
    place = 0
    while place < len(text):
        if text[place] != "\\" or place + 1 == len(text):
            out += text[place].encode()
            place += 1
            continue
        number = re.compile(r"x([0-9a-f]{2})|([0-7]{1,3})").match(text, place + 1)
        if number:
            out.append(int(number.group(1), 16) if number.group(1) else int(number.group(2), 8) & 255)
            place = number.end()
        else:
            out.append(ESCAPES.get(text[place + 1], ord(text[place + 1])))
            place += 2
    return bytes(out)
