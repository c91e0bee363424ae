"""The files inside of a fake container."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import AsyncIterator

from nestbed.errors import InvalidArgument, NotFound

_CHUNK_BYTES = 64 * 1024


class FakeFiles:
    """Directories and regular files by absolute path."""

    def __init__(self) -> None:
        self.directories = {"/", "/tmp", "/etc"}  # noqa: S108
        self.contents: dict[str, bytes] = {"/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n"}

    def archive(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a file, or of a directory with all it holds."""
        path = posixpath.normpath(path)
        if path not in self.contents and path not in self.directories:
            raise NotFound(f"there is no {path} inside", reason="NOT_FOUND", remedy="check the path", path=path)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in sorted((*self.contents, *self.directories)):
                if name == path or name.startswith(path.rstrip("/") + "/"):
                    self._add(tar, name, posixpath.relpath(name, posixpath.dirname(path)))
        return _chunks(buffer.getvalue())

    async def extract(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into a directory."""
        path = posixpath.normpath(path)
        if path not in self.directories:
            raise NotFound(f"there is no directory {path} inside", reason="NOT_FOUND", remedy="check the path", path=path)
        data = b"".join([chunk async for chunk in chunks])
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                for member in tar:
                    self._take(tar, member, posixpath.join(path, member.name))
        except tarfile.TarError as error:
            raise InvalidArgument("this is not a tar stream", reason="NOT_A_TAR", remedy="send what tar makes") from error

    def _add(self, tar: tarfile.TarFile, path: str, name: str) -> None:
        info = tarfile.TarInfo(name)
        if path in self.directories:
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        else:
            info.size = len(self.contents[path])
            tar.addfile(info, io.BytesIO(self.contents[path]))

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            self.directories.add(posixpath.normpath(path))
        elif (file := tar.extractfile(member)) is not None:
            self.contents[posixpath.normpath(path)] = file.read()


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]
