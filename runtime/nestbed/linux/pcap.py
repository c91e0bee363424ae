"""Packet sockets through libpcap (pcap(3PCAP)): frames of one device, filtered by the kernel, from a ring it shares with this process.

One thin function per call of the library; everything raises :class:`PcapError`. Not for threads. libpcap is loaded by the first call.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import socket
import struct
from functools import cache
from typing import NamedTuple

_PRECISION_NANO = 1
_ERROR_BYTES = 256
_NETMASK_UNKNOWN = 0xFFFFFFFF
_BPF_LD_W_ABS = 0x20
_BPF_JEQ_K = 0x15
_BPF_RET_K = 0x06
_SO_ATTACH_FILTER = 26
_SKF_AD_MARK = 0xFFFFF000 + 20
"""<linux/filter.h>: SKF_AD_OFF + SKF_AD_MARK, the mark of the kernel's packet as an offset."""


class PcapError(Exception):
    """What libpcap says went wrong; ``code`` is one of pcap(3PCAP)'s PCAP_ERROR values, or -1."""

    def __init__(self, text: str, code: int = -1) -> None:
        super().__init__(text)
        self.code = code


NO_SUCH_DEVICE = -5
"""PCAP_ERROR_NO_SUCH_DEVICE"""


class _Header(ctypes.Structure):
    """``struct pcap_pkthdr``; the fraction of the time is in nanoseconds if that was asked for."""

    _fields_ = (("seconds", ctypes.c_long), ("fraction", ctypes.c_long), ("captured", ctypes.c_uint32), ("length", ctypes.c_uint32))


class _Stat(ctypes.Structure):
    """``struct pcap_stat``."""

    _fields_ = (("received", ctypes.c_uint), ("dropped", ctypes.c_uint), ("interface_dropped", ctypes.c_uint))


class _Instruction(ctypes.Structure):
    """``struct bpf_insn``."""

    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    """``struct bpf_program``."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


class Frame(NamedTuple):
    """A captured frame: when the kernel saw it (nanoseconds since the epoch), how long it was, and its bytes as far as they are kept."""

    at_ns: int
    length: int
    data: bytes


class Counts(NamedTuple):
    """Frames that passed the filter, and of these those for which there was no room."""

    received: int
    dropped: int


@cache
def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("pcap") or "libpcap.so.0.8"
    try:
        library = ctypes.CDLL(name)
        library.pcap_set_tstamp_precision  # noqa: B018 - is it the library, and new enough?
    except (OSError, AttributeError) as error:
        raise PcapError(f"libpcap cannot be loaded: {error}") from error
    for function in ("pcap_create", "pcap_geterr", "pcap_lib_version", "pcap_statustostr"):
        getattr(library, function).restype = ctypes.c_void_p if function == "pcap_create" else ctypes.c_char_p
    return library


def version() -> str:
    """What the library says it is."""
    text: bytes = _library().pcap_lib_version()
    return text.decode(errors="replace").partition(" (")[0]


class Capture:
    """Frames of one device, from the moment it is made. Close it."""

    def __init__(self, device: str, *, snap_bytes: int, buffer_bytes: int, timeout_ms: int) -> None:
        """``timeout_ms`` is how long the kernel may keep a frame back to give several at once.

        Raises:
            PcapError: code NO_SUCH_DEVICE, or another.
        """
        self._lib = _library()
        errors = ctypes.create_string_buffer(_ERROR_BYTES)
        handle = self._lib.pcap_create(device.encode(), errors)
        if not handle:
            raise PcapError(errors.value.decode(errors="replace"))
        self._handle = ctypes.c_void_p(handle)
        self._header = ctypes.POINTER(_Header)()
        self._data = ctypes.c_void_p()
        self._arguments = (self._handle, ctypes.byref(self._header), ctypes.byref(self._data))
        try:
            for function, value in (
                ("snaplen", snap_bytes),
                ("promisc", 1),
                ("timeout", timeout_ms),
                ("buffer_size", buffer_bytes),
                ("tstamp_precision", _PRECISION_NANO),
            ):
                self._check(getattr(self._lib, f"pcap_set_{function}")(self._handle, value))
            self._check(self._lib.pcap_activate(self._handle))
            self._check(self._lib.pcap_setnonblock(self._handle, 1, errors))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop capturing. Once."""
        self._lib.pcap_close(self._handle)

    def fileno(self) -> int:
        """Readable when frames are there."""
        return int(self._lib.pcap_get_selectable_fd(self._handle))

    def set_filter(self, expression: str, *, without_mark: int = 0) -> None:
        """Let only frames pass that the expression (pcap-filter(7)) matches, and whose mark in the kernel is not ``without_mark``.

        Raises:
            PcapError: it is no expression, or the kernel refuses it.
        """
        program = _Program()
        self._check(self._lib.pcap_compile(self._handle, ctypes.byref(program), expression.encode(), 1, ctypes.c_uint32(_NETMASK_UNKNOWN)))
        try:
            self._check(self._lib.pcap_setfilter(self._handle, ctypes.byref(program)))
            if without_mark:
                # Past libpcap, which applies its filter to what is in the ring already, too, where a frame has no mark.
                self._attach(_excluding(program, without_mark))
        finally:
            self._lib.pcap_freecode(ctypes.byref(program))

    def next(self) -> Frame | None:
        """The next frame; None if there is none now.

        Raises:
            PcapError: the device is gone, or another.
        """
        result = self._lib.pcap_next_ex(*self._arguments)
        if result == 1:
            header = self._header.contents
            at_ns = header.seconds * 1_000_000_000 + header.fraction
            return Frame(at_ns, header.length, ctypes.string_at(self._data, header.captured))
        if result < 0:
            raise self._error(result)
        return None

    def counts(self) -> Counts:
        """Since the beginning."""
        found = _Stat()
        self._check(self._lib.pcap_stats(self._handle, ctypes.byref(found)))
        return Counts(found.received, found.dropped)

    def _attach(self, instructions: ctypes.Array[_Instruction]) -> None:
        argument = struct.pack("@HP", len(instructions), ctypes.addressof(instructions))  # struct sock_fprog
        try:
            with socket.socket(fileno=os.dup(self.fileno())) as duplicate:
                duplicate.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
        except OSError as error:
            raise PcapError(f"the kernel refuses the filter: {os.strerror(error.errno or 0)}") from error

    def _check(self, result: int) -> None:
        if result < 0:
            raise self._error(result)

    def _error(self, code: int) -> PcapError:
        said: bytes = self._lib.pcap_geterr(self._handle) or self._lib.pcap_statustostr(code)
        return PcapError(said.decode(errors="replace"), code)


def _excluding(program: _Program, mark: int) -> ctypes.Array[_Instruction]:
    """``program`` after "return 0 if the mark is this one": jumps are relative, so what follows stays as it is."""
    first = [(_BPF_LD_W_ABS, 0, 0, _SKF_AD_MARK), (_BPF_JEQ_K, 0, 1, mark), (_BPF_RET_K, 0, 0, 0)]
    rest = (program.instructions[index] for index in range(program.length))
    instructions: ctypes.Array[_Instruction] = (_Instruction * (len(first) + program.length))(*first, *rest)
    return instructions
