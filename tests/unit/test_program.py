"""Programs of new processes, carried out for real: in a Python of its own, whose memory no later clone inherits."""

import json
import subprocess
import sys

import pytest

PRELUDE = """
import errno, json, os, signal, sys
from nestbed.process.program import Label, Memory, Program, Register
from nestbed.linux.libc import AT_FDCWD

memory = Memory()
errors_out, errors_in = os.pipe()
output, written = os.pipe()

def carry_out(write):
    program = Program(memory, errors_in)
    write(program)
    program.call("exit_group", 0)
    pid, pidfd = program.spawn(0, exit_signal=signal.SIGCHLD)
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    os.set_blocking(errors_out, False)
    os.set_blocking(output, False)
    try:
        report = program.explain(os.read(errors_out, 100))
    except BlockingIOError:
        report = None
    try:
        said = os.read(output, 65536).decode()
    except BlockingIOError:
        said = ""
    return os.waitstatus_to_exitcode(status), report, said
"""


def carry_out(body: str) -> object:
    """What ``carry_out`` of the program says that ``body`` defines as ``write(program)``: exit code, report, output."""
    script = f"{PRELUDE}\n{body}\nprint(json.dumps(carry_out(write)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=20)
    return json.loads(done.stdout)


def test_steps_are_carried_out_in_order():
    body = """
def write(program):
    for text in ("one ", "two"):
        program.call("write", written, text, len(text))
"""
    assert carry_out(body) == [0, None, "one two"]


def test_a_failure_ends_it_and_says_which_step_failed():
    body = """
def write(program):
    program.about = "cwd"
    program.call("chdir", "/nowhere", subject="/nowhere")
    program.call("write", written, "never", 5)
"""
    assert carry_out(body) == [127, ["cwd", 2, "chdir: No such file or directory: /nowhere"], ""]


def test_a_failure_within_a_shared_piece_is_told_as_well():
    body = """
def chdir(steps):
    steps.about = "pivot"
    steps.call("chdir", "/nowhere")

def write(program):
    program.add(memory.piece("a piece", chdir))
"""
    assert carry_out(body) == [127, ["pivot", 2, "chdir: No such file or directory"], ""]


def test_a_tolerated_error_goes_on_elsewhere():
    body = """
def write(program):
    missing, end = Label(), Label()
    program.call("chdir", "/nowhere", allow=(errno.EACCES, errno.ENOENT), orelse=missing)
    program.call("write", written, "there", 5)
    program.jump(end)
    program.mark(missing)
    program.call("write", written, "missing", 7)
    program.mark(end)
"""
    assert carry_out(body) == [0, None, "missing"]


def test_an_error_beyond_the_first_word_is_tolerated_too():
    body = """
def write(program):
    program.call("mount", "none", "/", "no-such-file-system", 0, 0, allow=(errno.ENODEV, errno.EOPNOTSUPP))
    program.call("write", written, "on", 2)
"""
    assert carry_out(body) == [0, None, "on"]


def test_results_are_kept_in_registers_and_compared():
    body = """
def write(program):
    fd, same = Register(3), Label()
    program.call("openat", AT_FDCWD, "/etc/hostname", os.O_RDONLY, to=fd)
    buffer = program.data(bytes(8))
    program.call("read", fd, buffer, 8, to=Register(4))
    program.store(buffer, 0x64636261)
    program.load(buffer, 0xFFFF, to=Register(5))
    program.when(Register(5), 0x6261, same)
    program.fail(errno.EBADMSG, "not what was stored")
    program.mark(same)
    program.call("write", written, buffer, 4)
"""
    assert carry_out(body) == [0, None, "abcd"]


def test_a_program_that_is_too_long_is_refused():
    body = """
def write(program):
    program.data(bytes(16 << 20))
"""
    with pytest.raises(subprocess.CalledProcessError) as failed:
        carry_out(body)
    assert "Argument list too long" in failed.value.stderr


def test_a_clone_has_nothing_of_its_parents_memory_but_what_it_needs():
    body = """
secret = bytearray(b"a secret of the parent" * 1000)

def write(program):
    buffer = program.data(bytes(65536))
    program.call("openat", AT_FDCWD, "/proc/self/maps", os.O_RDONLY, to=Register(3))
    program.call("read", Register(3), buffer, 65536, to=Register(4))
    program.call("write", written, buffer, Register(4))
"""
    code, report, maps = carry_out(body)
    assert (code, report) == (0, None)
    named = {line.split()[5].rsplit("/", 1)[-1] for line in maps.splitlines() if len(line.split()) > 5}
    assert named <= {"runner.so", "[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"}
    assert "[heap]" not in maps
    assert len(maps.splitlines()) < 16
