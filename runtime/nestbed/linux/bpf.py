"""bpf(2) through libbpf: objects loaded, maps read and written, things pinned.

Object files are compiled when nestbed is installed (``hack/genc``). Maps that say ``LIBBPF_PIN_BY_NAME`` are taken from the directory
given to :meth:`Object.load` if they are pinned there, and pinned there if they are not: what they hold outlives this process. One that is
pinned there but of another shape, of another version of the object, is dropped with what it holds.
A kernel holds a program as long as it is attached, pinned, or open. Attaching to tc is :mod:`nestbed.linux.tc`'s.

Everything raises OSError with the kernel's errno; a program that the verifier refuses, with the end of its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from nestbed.linux.libc import LIBC, encoded, failed
from nestbed.linux.mount import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount

BPF_ANY = 0
BPF_FS_MAGIC = 0xCAFE4A11

_PER_CPU = frozenset({5, 6, 10, 21})
"""BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH and _PERCPU_CGROUP_STORAGE."""
_SHAPE = ("type", "key_size", "value_size", "max_entries", "map_flags")
_LIBBPF_INFO = 1
_LOG_LINES_MAX = 12
_LOG_BYTES_MAX = 4 * 1024 * 1024
"""The verifier's log comes in one piece, and its end is what matters."""
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_said: list[str] = []


class _OpenOpts(ctypes.Structure):
    """The beginning of ``struct bpf_object_open_opts``; libbpf takes what is behind ``sz`` as zero."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("_attach_prog_fd", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
    )


class _MapInfo(ctypes.Structure):
    """The beginning of ``struct bpf_map_info``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


def _listen(level: int, text: bytes, arguments: int) -> int:
    if level > _LIBBPF_INFO:
        return 0
    buffer = ctypes.create_string_buffer(_LOG_BYTES_MAX)
    LIBC.vsnprintf(buffer, ctypes.c_size_t(len(buffer)), text, ctypes.c_void_p(arguments))
    _said.extend(buffer.value.decode("utf-8", "replace").splitlines())
    return 0


_listener = _PRINT(_listen)


@cache
def _libbpf() -> Any:
    """The library (OSError: it is not installed). Its calls hold the interpreter lock: loading takes milliseconds, the rest nothing."""
    library = ctypes.PyDLL("libbpf.so.1", use_errno=True)
    for name, result in (
        ("bpf_object__open_file", ctypes.c_void_p),
        ("bpf_object__find_program_by_name", ctypes.c_void_p),
        ("bpf_object__find_map_by_name", ctypes.c_void_p),
        ("bpf_object__next_map", ctypes.c_void_p),
        ("bpf_map__pin_path", ctypes.c_char_p),
        ("bpf_object__close", None),
    ):
        getattr(library, name).restype = result
    library.libbpf_set_print(_listener)
    return library


class Object:
    """A loaded object file: its programs and maps, open until :meth:`close`."""

    def __init__(self, handle: int) -> None:
        """Use :meth:`load`."""
        self._handle = handle

    @classmethod
    def load(cls, path: str | Path, *, pin_dir: str | Path | None = None) -> Object:
        """Load every program and map of the file, around the maps of its shape that are pinned in ``pin_dir``.

        Raises:
            OSError: there is no libbpf or no file; the kernel refuses (EINVAL: a program; EPERM: this process may not).
        """
        library = _libbpf()
        options = _OpenOpts(sz=ctypes.sizeof(_OpenOpts), pin_root_path=None if pin_dir is None else encoded(str(pin_dir)))
        _said.clear()
        handle = library.bpf_object__open_file(encoded(str(path)), ctypes.byref(options))
        if not handle:
            raise _refused(ctypes.get_errno(), f"opening {path}")
        loaded = cls(handle)
        try:
            loaded._drop_pins_of_another_shape()
            loaded._load(path)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _load(self, path: str | Path) -> None:
        result = _libbpf().bpf_object__load(ctypes.c_void_p(self._handle))
        if result < 0:
            raise _refused(-result, f"loading {path}")

    def _drop_pins_of_another_shape(self) -> None:
        library, found = _libbpf(), None
        while found := library.bpf_object__next_map(ctypes.c_void_p(self._handle), ctypes.c_void_p(found)):
            one = ctypes.c_void_p(found)
            pin_path = library.bpf_map__pin_path(one)
            if pin_path is None or not os.path.lexists(pin_path):
                continue
            shape = tuple(int(getattr(library, f"bpf_map__{part}")(one)) for part in _SHAPE)
            with Map.pinned(os.fsdecode(pin_path)) as pinned:
                is_same = pinned.shape == shape
            if not is_same:
                os.unlink(pin_path)

    def program(self, name: str) -> int:
        """The descriptor of a program (the C function's name), open as long as this object. KeyError: there is none."""
        found = _libbpf().bpf_object__find_program_by_name(ctypes.c_void_p(self._handle), name.encode())
        if not found:
            raise KeyError(name)
        return int(_libbpf().bpf_program__fd(ctypes.c_void_p(found)))

    def map(self, name: str) -> Map:
        """A map with a descriptor of its own. KeyError: there is none."""
        found = _libbpf().bpf_object__find_map_by_name(ctypes.c_void_p(self._handle), name.encode())
        if not found:
            raise KeyError(name)
        return Map(os.dup(_libbpf().bpf_map__fd(ctypes.c_void_p(found))))

    def close(self) -> None:
        """Close the descriptors. What is attached or pinned stays. Idempotent."""
        if self._handle:
            _libbpf().bpf_object__close(ctypes.c_void_p(self._handle))
            self._handle = 0

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Map:
    """A map by its descriptor, which it owns. Keys and values are bytes of exactly ``key_size`` and ``value_size``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info, size = _MapInfo(), ctypes.c_uint32(ctypes.sizeof(_MapInfo))
        try:
            _checked(_libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
        except OSError:
            os.close(fd)
            raise
        self.key_size, self.value_size, self.max_entries = int(info.key_size), int(info.value_size), int(info.max_entries)
        self.shape = (int(info.type), self.key_size, self.value_size, self.max_entries, int(info.map_flags))
        self._cpus = cpus() if info.type in _PER_CPU else 0
        self._stride = (self.value_size + 7) & ~7 if self._cpus else self.value_size

    @classmethod
    def pinned(cls, path: str | Path) -> Map:
        """The map pinned at ``path`` (ENOENT: there is none)."""
        return cls(get(path))

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Map:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lookup(self, key: bytes) -> bytes | None:
        """The value of ``key``; None if it has none. Not for per-CPU maps."""
        assert not self._cpus
        return self._lookup(key)

    def lookup_cpus(self, key: bytes) -> list[bytes] | None:
        """The values of ``key`` on every possible CPU; None if it has none. For per-CPU maps alone."""
        assert self._cpus
        data = self._lookup(key)
        if data is None:
            return None
        return [data[cpu * self._stride : cpu * self._stride + self.value_size] for cpu in range(self._cpus)]

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Set the value of ``key``; of a per-CPU map on every CPU (ENOENT, EEXIST by ``flags``; E2BIG: the map is full)."""
        assert len(key) == self.key_size
        assert len(value) == self.value_size
        data = value.ljust(self._stride, b"\0") * (self._cpus or 1)
        _checked(_libbpf().bpf_map_update_elem(self.fd, key, data, ctypes.c_uint64(flags)))

    def delete(self, key: bytes) -> None:
        """Remove ``key``. Idempotent."""
        assert len(key) == self.key_size
        with contextlib.suppress(FileNotFoundError):
            _checked(_libbpf().bpf_map_delete_elem(self.fd, key))

    def keys(self) -> Iterator[bytes]:
        """Every key. Of a hash in use, some may come twice or not at all while others are removed; it ends all the same."""
        previous: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        for _ in range(2 * self.max_entries):
            try:
                _checked(_libbpf().bpf_map_get_next_key(self.fd, previous, following))
            except FileNotFoundError:
                return
            previous = following.raw
            yield previous

    def _lookup(self, key: bytes) -> bytes | None:
        assert len(key) == self.key_size
        value = ctypes.create_string_buffer(self._stride * (self._cpus or 1))
        try:
            _checked(_libbpf().bpf_map_lookup_elem(self.fd, key, value))
        except FileNotFoundError:
            return None
        return value.raw


@cache
def cpus() -> int:
    """How many CPUs this machine may ever have: the values of a key in a per-CPU map."""
    return int(_checked(_libbpf().libbpf_num_possible_cpus()))


def pin(fd: int, path: str | Path) -> None:
    """Pin a program or map at ``path`` on a BPF file system (EEXIST: something is there)."""
    _checked(_libbpf().bpf_obj_pin(fd, encoded(str(path))))


def get(path: str | Path) -> int:
    """A close-on-exec descriptor of what is pinned at ``path`` (ENOENT: nothing is)."""
    return int(_checked(_libbpf().bpf_obj_get(encoded(str(path)))))


def mount_bpffs(path: str | Path) -> None:
    """Mount a BPF file system of its own, for root alone, on the directory ``path``."""
    mount("bpffs", str(path), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700")


def is_bpffs(path: str | Path) -> bool:
    """Whether ``path`` is on a BPF file system."""
    buffer = ctypes.create_string_buffer(256)
    if LIBC.statfs(encoded(str(path)), buffer) == -1:
        raise failed("statfs", str(path))
    return int.from_bytes(buffer.raw[:4], "little") == BPF_FS_MAGIC


def _checked(result: int) -> int:
    """The result of a call of libbpf 1.x: a negative errno, which it has put into ``errno`` as well."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _refused(number: int, doing: str) -> OSError:
    log = [line.removeprefix("libbpf: ") for line in _said if line.strip() and "unpinned map" not in line][-_LOG_LINES_MAX:]
    _said.clear()
    return OSError(number or errno.EINVAL, f"{doing}: {os.strerror(number or errno.EINVAL)}" + "".join(f"\n  {line}" for line in log))
