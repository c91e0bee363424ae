"""Files into and out of a container: tar streams, made and taken inside its root by descriptors alone.

Every look-up goes through openat2(2) with the container's root as root: a symbolic link of the container leads to a place in the
container. What is unpacked follows no symbolic link below the directory it goes to. The work is done in a thread of its own, one for
each transfer, and flows through a pipe, so memory stays flat and the event loop free.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import select
import stat
import tarfile
import threading
from collections.abc import AsyncIterator, Callable
from typing import IO

from nestbed.errors import InvalidArgument, NestbedError, NotFound, WrongState, shown, translated
from nestbed.linux.path import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from nestbed.process.accounts import ID_MAX
from nestbed.process.streams import CHUNK_BYTES, Reader, Writer

_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_TIME_END = 1 << 40
_MODE = 0o1777
"""Of a mode this is kept: nothing unpacked gains somebody else's rights."""


def open_root(pid: int, pidfd: int) -> int:
    """The root directory of a process, which ``pidfd`` shows to be the one meant.

    Raises:
        WrongState: it has ended.
    """
    try:
        fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _ended() from error
    if has_ended(pidfd):
        os.close(fd)
        raise _ended()
    return fd


def has_ended(pidfd: int) -> bool:
    """Whether the process behind a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def open_directory(path: str) -> int:
    """A directory of the node as a root."""
    with translated(f"opening {path}", path=path):
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _ended() -> WrongState:
    return WrongState("the container has ended", reason="NOT_RUNNING", remedy="start it")


async def archive(root_fd: int, path: str) -> AsyncIterator[bytes]:
    """A tar stream of ``path`` inside; ``root_fd`` is owned. Sparse in nothing, true to links, owners, modes and times.

    Raises:
        NotFound: there is no such path.
    """
    name = _last(path)
    try:
        if name == ".":
            parent, entry = _open_inside(root_fd, path, os.O_RDONLY | os.O_DIRECTORY), ""
        else:
            parent, entry = _open_inside(root_fd, os.path.dirname(path.rstrip("/")) or "/", os.O_RDONLY | os.O_DIRECTORY), name
            try:
                os.stat(entry, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                os.close(parent)
                raise _not_found(path) from error
        skipped = _kernel_devices(root_fd)
    finally:
        os.close(root_fd)
    read, write = os.pipe2(os.O_CLOEXEC)
    done = _in_thread(lambda: _Packer(write, skipped).pack(parent, entry))
    return _flow(Reader({1: read}), done)


async def _flow(reader: Reader, done: asyncio.Future[None]) -> AsyncIterator[bytes]:
    try:
        async for chunk in reader.chunks():
            yield chunk.data
        await done
    finally:
        reader.close()


async def extract(root_fd: int, path: str, chunks: AsyncIterator[bytes]) -> None:
    """Unpack a tar stream into the directory ``path`` inside; ``root_fd`` is owned. What is there is replaced, directories are kept.

    Raises:
        NotFound: there is no such directory. InvalidArgument: not a tar stream, or one with a member that leads out of the directory
            or is a device. What was unpacked before stays.
    """
    try:
        target = _open_inside(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(root_fd)
    read, write = os.pipe2(os.O_CLOEXEC)
    done = _in_thread(lambda: _unpack(read, target))
    writer = Writer(write, tty=False)
    try:
        async for chunk in chunks:
            await writer.write(chunk)
    except WrongState:
        pass  # the unpacking ended: at the end of the archive, or with an error that comes now
    finally:
        writer.close()
    await done


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
            done.exception()  # a caller who left does not make it "never retrieved"

    def run() -> None:
        failure: BaseException | None = RuntimeError("the transfer ended with an error that stands in the log")
        try:
            work()
            failure = None
        except NestbedError as error:
            failure = error
        except OSError as error:
            failure = InvalidArgument(
                f"transferring files: {error.strerror or error}", reason="TRANSFER_FAILED", errno=errno.errorcode.get(error.errno or 0, "")
            )
            failure.__cause__ = error
        finally:
            try:
                loop.call_soon_threadsafe(tell, failure)
            except RuntimeError:  # the daemon ended meanwhile
                return

    threading.Thread(target=run, name="transfer", daemon=True).start()
    return done


# ---- packing


class _Packer:
    """Writes a tar stream to ``fd``, owned; what lies on the device numbers ``skipped`` is left out unless it is what was asked for."""

    def __init__(self, fd: int, skipped: frozenset[int]) -> None:
        self._file = os.fdopen(fd, "wb", CHUNK_BYTES)
        self._skipped = skipped

    def pack(self, directory: int, name: str) -> None:
        """Pack the entry of the directory (owned), or with "" the directory itself."""
        try:
            with self._file, tarfile.open(fileobj=self._file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                if name:
                    self._add(tar, directory, name, name, os.stat(name, dir_fd=directory, follow_symlinks=False))
                else:
                    tar.addfile(_info(".", os.fstat(directory)))
                    self._add_entries(tar, directory, ".")
        except BrokenPipeError:
            return  # nobody reads on
        finally:
            os.close(directory)

    def _add(self, tar: tarfile.TarFile, directory: int, name: str, arcname: str, shape: os.stat_result) -> None:
        info = _info(arcname, shape)
        if stat.S_ISREG(shape.st_mode):
            self._add_file(tar, directory, name, info)
        elif stat.S_ISDIR(shape.st_mode):
            tar.addfile(info)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                self._add_entries(tar, fd, arcname)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(shape.st_mode):
            info.linkname = os.readlink(name, dir_fd=directory)
            tar.addfile(info)
        elif stat.S_ISFIFO(shape.st_mode):
            tar.addfile(info)

    def _add_entries(self, tar: tarfile.TarFile, directory: int, arcname: str) -> None:
        for name in sorted(os.listdir(directory)):
            try:
                shape = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if shape.st_dev not in self._skipped:
                    self._add(tar, directory, name, f"{arcname}/{name}", shape)
            except FileNotFoundError:  # removed meanwhile
                continue

    @staticmethod
    def _add_file(tar: tarfile.TarFile, directory: int, name: str, info: tarfile.TarInfo) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory)
        with os.fdopen(fd, "rb") as file:
            shape = os.fstat(fd)
            if stat.S_ISREG(shape.st_mode):
                info.size = shape.st_size
                tar.addfile(info, _Padded(file))


class _Padded(io.RawIOBase):
    """A file that may shrink while it is read: what is missing reads as zeros, for its size stands in the stream already."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes, always."""
        return self._file.read(size).ljust(size, b"\0")


def _info(name: str, shape: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(shape.st_mode), shape.st_uid, shape.st_gid, shape.st_mtime
    kinds = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
    info.type = kinds.get(stat.S_IFMT(shape.st_mode), tarfile.REGTYPE)
    return info


def _kernel_devices(root_fd: int) -> frozenset[int]:
    """The device numbers of the container's /proc, /sys and /dev, where they are mounts."""
    own = os.fstat(root_fd).st_dev
    found = set()
    for name in ("proc", "sys", "dev"):
        try:
            found.add(os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_dev)
        except OSError:
            continue
    return frozenset(found - {own})


# ---- unpacking


def _unpack(fd: int, target: int) -> None:
    try:
        with os.fdopen(fd, "rb", CHUNK_BYTES) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                _unpack_member(tar, member, target)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidArgument(f"not a tar stream: {error}", reason="BAD_ARCHIVE", remedy="send what `tar -c` makes") from error
    finally:
        os.close(target)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: int) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if ".." in parts or not (member.isfile() or member.isdir() or member.issym() or member.islnk() or member.isfifo()):
        raise InvalidArgument(f"the member {shown(member.name)} cannot be unpacked", reason="BAD_ARCHIVE", member=shown(member.name))
    if not (0 <= member.uid <= ID_MAX and 0 <= member.gid <= ID_MAX and 0 <= member.mtime < _TIME_END):
        raise InvalidArgument(f"owner or time of the member {shown(member.name)} is none", reason="BAD_ARCHIVE", member=shown(member.name))
    if not parts:
        return
    parent = _below(target, parts[:-1])
    try:
        _make(tar, member, target, parent, parts[-1])
    finally:
        os.close(parent)


def _make(tar: tarfile.TarFile, member: tarfile.TarInfo, target: int, parent: int, name: str) -> None:
    if member.isdir():
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
        fd = openat2(parent, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
    else:
        _unlink(parent, name)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
            return
        if member.islnk():
            _link(member, target, parent, name)
            return
        if member.isfifo():
            os.mkfifo(name, dir_fd=parent)
            fd = openat2(parent, name, os.O_RDONLY | os.O_NONBLOCK, resolve=_BELOW)
        else:
            fd = _write_file(tar, member, parent, name)
    try:
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode & _MODE)
        os.utime(fd, (member.mtime, member.mtime))
    finally:
        os.close(fd)


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> int:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    try:
        source = tar.extractfile(member)
        assert source is not None
        while data := source.read(CHUNK_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _link(member: tarfile.TarInfo, target: int, parent: int, name: str) -> None:
    parts = [part for part in member.linkname.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise InvalidArgument(f"the member {shown(member.name)} cannot be unpacked", reason="BAD_ARCHIVE", member=shown(member.name))
    source = _below(target, parts[:-1])
    try:
        os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(source)


def _below(target: int, parts: list[str]) -> int:
    """The directory below the target, made where it is missing."""
    fd = os.dup(target)
    for part in parts:
        try:
            below = openat2(fd, part, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=fd)
            below = openat2(fd, part, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
        finally:
            os.close(fd)
        fd = below
    return fd


def _unlink(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _last(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    return "." if name in ("", ".", "..") else name


def _open_inside(root_fd: int, path: str, flags: int) -> int:
    if "\0" in path or not path.startswith("/"):
        raise InvalidArgument(f"{shown(path)} is no absolute path", reason="BAD_PATH", remedy="begin it with /", path=shown(path))
    try:
        return openat2(root_fd, path, flags, resolve=_INSIDE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.EACCES):
            raise _not_found(path) from error
        raise


def _not_found(path: str) -> NotFound:
    return NotFound(f"there is no {shown(path)} in the container", reason="PATH_NOT_FOUND", remedy="check the path", path=shown(path))
