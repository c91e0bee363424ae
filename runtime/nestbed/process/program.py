"""What a new process does, as data: system calls in order, which ``runner.c`` carries out.

A clone of the keeper runs no Python. What it does is written down here beforehand as :class:`Steps`, in memory that a clone inherits
(:class:`Memory`), with all the paths and structures the calls need. Nothing else of the keeper's memory is inherited.

A step that fails ends the process; it reports which one over the program's error pipe, and :meth:`Program.explain` says it in words.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from nestbed.linux.calls import NUMBERS
from nestbed.linux.memory import keep_from_children
from nestbed.linux.namespace import CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, CLONE_PIDFD, CloneArgs

_STEP = struct.Struct("=HHhhIIQQqqqqqq")
_HEADER = struct.Struct("=qii")
_REPORT = struct.Struct("=Ii")
_SKIP_AT = 6
_CALL, _STORE, _LOAD, _WHEN, _FAIL = range(5)

_CONSTANTS_BYTES = 1 << 20
_PROGRAM_BYTES = 8 << 20
_STEPS_BYTES = 1 << 20
_KEPT_BYTES = 1 << 16
"""What a program may leave occupied for the next one."""
_OWN_LABELS = 1 << 24
"""Labels from here on belong to one program, those below to pieces shared by all."""

_REFRESH_AFTER = 64
"""Clones after which memory that was mapped meanwhile is kept from further ones."""

Text = bytes | str


class Register(int):
    """Where the result of a call is kept for later ones: its number."""

    __slots__ = ()


class Label(list[int]):
    """A place that steps go on at; holds the offsets of the steps that do, until :meth:`Steps.mark` says where it is."""


class Meaning(NamedTuple):
    """What a step is for: the step of the protocol, the system call, and what it was about."""

    step: str
    call: str
    subject: str


class Memory:
    """The part of the keeper's memory that a clone inherits: constants, kept for good, and the program being written."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _CONSTANTS_BYTES + _PROGRAM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._constants: dict[bytes, int] = {}
        self._used = 0
        self._end = _CONSTANTS_BYTES + _STEPS_BYTES
        self._pieces: dict[object, bytes] = {}
        self.meanings: list[Meaning] = [Meaning("clone", "exit", "")]
        self._numbers: dict[Meaning, int] = {self.meanings[0]: 0}
        self._spawned = 0

    def piece(self, key: object, write: Callable[[Steps], None]) -> bytes:
        """The steps that ``write`` writes, which depend on ``key`` alone."""
        found = self._pieces.get(key)
        if found is None:
            steps = Steps(self)
            write(steps)
            found = self._pieces[key] = bytes(steps.code)
        return found

    def constant(self, data: bytes) -> int:
        """The address of a copy of ``data`` that stays."""
        address = self._constants.get(data)
        if address is None:
            if self._used + len(data) > _CONSTANTS_BYTES:
                raise _no_room()
            address = self._constants[data] = self._base + self._used
            self._map[self._used : self._used + len(data)] = data
            self._used += -(-len(data) // 16) * 16
        return address

    def number(self, meaning: Meaning) -> int:
        """The label of a meaning that stays."""
        number = self._numbers.get(meaning)
        if number is None:
            number = self._numbers[meaning] = len(self.meanings)
            self.meanings.append(meaning)
        return number

    def begin(self) -> None:
        """Begin a new program; forget the pieces when their constants have become too many."""
        begin = _CONSTANTS_BYTES + _STEPS_BYTES
        if self._end > begin + _KEPT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED, begin, len(self._map) - begin)
        self._end = begin
        if self._used > _CONSTANTS_BYTES // 2:
            self._constants, self._pieces, self._used = {}, {}, 0
            self.meanings = self.meanings[:1]  # who was born before has the old ones
            self._numbers = {self.meanings[0]: 0}

    def temporary(self, data: bytes) -> int:
        """The address of a copy of ``data`` that stays until the next program is begun.

        Raises:
            OSError: E2BIG, there is no room for so much.
        """
        begin = self._end
        if begin + len(data) > len(self._map):
            raise _no_room()
        self._map[begin : begin + len(data)] = data
        self._end = begin + -(-len(data) // 16) * 16
        return self._base + begin

    def place(self, code: bytes) -> int:
        """Put the finished steps where the runner finds them."""
        if len(code) > _STEPS_BYTES:
            raise _no_room()
        self._map[_CONSTANTS_BYTES : _CONSTANTS_BYTES + len(code)] = code
        return self._base + _CONSTANTS_BYTES

    def spawn(self, header: int, flags: int, exit_signal: int, cgroup_fd: int) -> tuple[int, int]:
        """Clone; the new process carries out the program. Its pid and pidfd."""
        if self._spawned % _REFRESH_AFTER == 0:
            keep_from_children((self._base, _runner_address, _thread_memory))
        self._spawned += 1
        pidfd = ctypes.c_int(-1)
        args = CloneArgs(flags=flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND, pidfd=ctypes.addressof(pidfd), exit_signal=exit_signal)
        if cgroup_fd >= 0:
            args.flags |= CLONE_INTO_CGROUP
            args.cgroup = cgroup_fd
        pid = _spawn(header, ctypes.byref(args), ctypes.sizeof(args))
        if pid < 0:
            raise OSError(-pid, f"clone3: {os.strerror(-pid)}")
        return pid, pidfd.value


class Steps:
    """Steps in order. Arguments are numbers, registers, or text that the call gets the address of."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.code = bytearray()
        self.about = "clone"
        """The step of the protocol that comes next (``protocol.STEPS``)."""

    def call(
        self,
        name: str,
        *arguments: int | Text,
        to: int = -1,
        allow: tuple[int, ...] = (),
        orelse: Label | None = None,
        subject: Text = "",
    ) -> None:
        """Make a system call; its result goes ``to`` a register.

        The errors of ``allow`` are no failure: then the register gets ``-errno``, and it goes on at ``orelse`` if that is given.
        ``subject`` is for the report of a failure.
        """
        low = high = 0
        for number in allow:
            if number < 64:
                low |= 1 << number
            else:
                high |= 1 << (number - 64)
        if orelse is not None:
            orelse.append(len(self.code))
        self._step(_CALL, arguments, to=to, number=NUMBERS[name], tolerated=(low, high), label=self._label(name, subject))

    def store(self, address: int, value: int) -> None:
        """Write a 32-bit number into memory."""
        self._step(_STORE, (address, value))

    def load(self, address: int, mask: int, to: int) -> None:
        """Read a 64-bit number from memory and mask it."""
        self._step(_LOAD, (address, mask), to=to)

    def when(self, one: int, other: int, goal: Label) -> None:
        """Go on at ``goal`` if both are equal."""
        goal.append(len(self.code))
        self._step(_WHEN, (one, other))

    def jump(self, goal: Label) -> None:
        """Go on at ``goal``."""
        self.when(0, 0, goal)

    def mark(self, goal: Label) -> None:
        """Here is ``goal``."""
        here = len(self.code)
        for offset in goal:
            struct.pack_into("=h", self.code, offset + _SKIP_AT, (here - offset) // _STEP.size - 1)

    def fail(self, number: int, subject: Text) -> None:
        """Fail with this error."""
        self._step(_FAIL, (number,), label=self._label("", subject))

    def add(self, piece: bytes) -> None:
        """Steps that stand ready."""
        self.code += piece

    def text(self, data: Text) -> int:
        """The address of a text with a NUL at its end."""
        return self.data((data if isinstance(data, bytes) else os.fsencode(data)) + b"\0")

    def data(self, data: bytes) -> int:
        """The address of a structure."""
        return self.memory.constant(data)

    def _label(self, call: str, subject: Text) -> int:
        return self.memory.number(self._meaning(call, subject))

    def _meaning(self, call: str, subject: Text) -> Meaning:
        return Meaning(self.about, call, subject if isinstance(subject, str) else subject.decode(errors="replace"))

    def _step(
        self,
        kind: int,
        arguments: tuple[int | Text, ...],
        *,
        to: int = -1,
        number: int = 0,
        tolerated: tuple[int, int] = (0, 0),
        label: int = 0,
    ) -> None:
        registers = 0
        values = [0, 0, 0, 0, 0, 0]
        for place, argument in enumerate(arguments):
            if isinstance(argument, (bytes, str)):
                values[place] = self.text(argument)
            else:
                values[place] = argument
                if type(argument) is Register:
                    registers |= 1 << place
        self.code += _STEP.pack(kind, registers, to, 0, number, label, *tolerated, *values)


class Program(Steps):
    """All the steps of one new process. One at a time is written, and it is spawned before the next is begun."""

    def __init__(self, memory: Memory, error_fd: int) -> None:
        """``error_fd`` is the new process's descriptor for reports."""
        memory.begin()
        super().__init__(memory)
        self._header = memory.temporary(_HEADER.pack(0, 0, error_fd))
        self._meanings: list[Meaning] = []

    def data(self, data: bytes) -> int:
        """The address of a structure."""
        return self.memory.temporary(data)

    def reports_to(self, fd: int) -> None:
        """From here on the descriptor for reports has this number."""
        self.store(self._header + 12, fd)

    def spawn(self, flags: int, *, exit_signal: int, cgroup_fd: int = -1) -> tuple[int, int]:
        """Clone a process that carries this out; with ``cgroup_fd`` it begins in that v2 cgroup. Its pid and pidfd.

        Raises:
            OSError: of clone3(2).
        """
        self._fill_header()
        return self.memory.spawn(self._header, flags, exit_signal, cgroup_fd)

    def explain(self, report: bytes) -> tuple[str, int, str]:
        """What a report says: the step that failed, the errno, and a text."""
        label, number = _REPORT.unpack(report)
        step, call, subject = self._meanings[label - _OWN_LABELS] if label >= _OWN_LABELS else self._shared[label]
        words = (f"{call}: {os.strerror(number)}" if call else "", subject)
        return step, number, ": ".join(word for word in words if word).encode(errors="replace").decode()

    def _fill_header(self) -> None:
        self._shared = self.memory.meanings
        address = self.memory.place(bytes(self.code))
        ctypes.c_int64.from_address(self._header).value = address
        ctypes.c_int32.from_address(self._header + 8).value = len(self.code) // _STEP.size

    def _label(self, call: str, subject: Text) -> int:
        self._meanings.append(self._meaning(call, subject))
        return _OWN_LABELS + len(self._meanings) - 1


def _no_room() -> OSError:
    return OSError(errno.E2BIG, os.strerror(errno.E2BIG))


def _load_runner() -> ctypes.PyDLL:
    path = os.path.join(os.path.dirname(__file__), "runner.so")
    try:
        return ctypes.PyDLL(path)
    except OSError as error:
        raise SystemExit(f"{path} cannot be loaded ({error}): run hack/setup, which compiles it") from error


_runner = _load_runner()
_spawn = _runner.nestbed_spawn
_spawn.restype = ctypes.c_int64
_spawn.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
_runner.nestbed_thread_memory.restype = ctypes.c_int64
_runner_address: int = ctypes.cast(_spawn, ctypes.c_void_p).value or 0
_thread_memory: int = _runner.nestbed_thread_memory()
