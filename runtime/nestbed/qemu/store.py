"""What every virtual machine of a node starts from, made once in ``STATE_DIR/vm``: a kernel for guests, our two programs, an initial
file system.

::

    kernels/VERSION/vmlinuz, lib/       of Debian's kernel package, unpacked, never installed: from CACHE, else downloaded
    programs/HASH/agent, warden         copies of those in ``c/``, so that bundles can have links to them
    initrd/HASH                         named by what is in it

A directory appears whole, by being renamed; a download that was cut short is thrown away at the next try.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from nestbed.errors import HostLacks, translated
from nestbed.qemu import initramfs
from nestbed.qemu.recipes import CACHE

KERNEL_PACKAGE = "linux-image-cloud-amd64"
_PROGRAMS = ("agent", "warden")
_RUN_SECONDS = 300.0
_TEXT_CHARS = 300


@dataclass(frozen=True, slots=True)
class Boot:
    """The files a machine starts from."""

    warden: Path
    agent: Path
    kernel: Path | None = None
    initrd: Path | None = None
    modules: Path | None = None
    """``lib/modules/VERSION`` of a kernel whose root has none for it."""


class Store:
    """The directory ``STATE_DIR/vm``. :meth:`boot` makes what is missing; may be called at any time, by many at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = asyncio.Lock()
        self._boot: Boot | None = None

    async def boot(self) -> Boot:
        """The files to boot the node's own root from. The first time a kernel is downloaded (27 MB).

        Raises:
            HostLacks: there is no kernel and none can be had (KERNEL_UNAVAILABLE), or our programs are not compiled
                (PROGRAMS_NOT_COMPILED).
        """
        async with self._lock:
            if self._boot is None:
                self._make_folders()
                kernel = await self._kernel()
                programs = await self._programs()
                modules = _modules_of(kernel)
                initrd = self._initrd(initramfs.find_modules(modules), programs)
                self._boot = Boot(programs / "warden", programs / "agent", kernel / "vmlinuz", initrd, modules)
            return self._boot

    async def boot_disk(self, image: Path | None) -> Boot:
        """The files to boot a disk with the kernel of ``image``; without one by what is on it.

        Raises:
            HostLacks: our programs were not compiled (PROGRAMS_NOT_COMPILED).
        """
        async with self._lock:
            self._make_folders()
            programs = await self._programs()
        boot = Boot(programs / "warden", programs / "agent")
        if image is None:
            return boot
        modules = _modules_of(image)
        found = initramfs.find_modules(modules, sorted(path.stem for path in modules.iterdir()))
        return replace(boot, kernel=image / "vmlinuz", initrd=self._initrd(found, programs))

    def _make_folders(self) -> None:
        for name in ("kernels", "programs", "initrd"):
            with translated(f"making {self._directory}", path=self._directory):
                (self._directory / name).mkdir(mode=0o755, parents=True, exist_ok=True)

    def describe(self) -> str:
        """What there is, for people."""
        kernels = self._kernels()
        if kernels:
            return f"Debian kernel {kernels[-1].name}"
        return f"{KERNEL_PACKAGE} will be {'unpacked' if _cached_archive() else 'downloaded'} for the first virtual machine"

    # ---- the kernel

    def _kernels(self) -> list[Path]:
        try:
            return sorted(path for path in (self._directory / "kernels").iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    async def _kernel(self) -> Path:
        kernels = self._kernels()
        if kernels:
            return kernels[-1]
        if platform.machine() != "x86_64":
            raise _no_kernel(f"there is none for {platform.machine()}")
        cached = _cached_archive()
        package = cached.name.partition("_")[0] if cached else await self._newest_package()
        path = self._directory / "kernels" / package.removeprefix("linux-image-")
        return await self._made(path, lambda new: self._unpack(cached, package, new))

    @staticmethod
    async def _newest_package() -> str:
        """The package that the metapackage stands for, as apt offers it: what pins the version."""
        code, text = await _run(("apt-cache", "depends", KERNEL_PACKAGE))
        names = [line.split()[-1] for line in text.splitlines() if line.strip().startswith("Depends: linux-image-")]
        if code or not names:
            raise _no_kernel(f"apt knows no {KERNEL_PACKAGE}")
        return names[0]

    @staticmethod
    async def _unpack(archive: Path | None, package: str, new: Path) -> None:
        archives = new / "archives"
        archives.mkdir()
        if archive is None:
            code, text = await _run(("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package), directory=archives)
            archive = next(archives.glob("*.deb"), None)
            if code or archive is None:
                raise _no_kernel(_last_line(text))
        code, text = await _run(("dpkg-deb", "-x", str(archive), str(new / "tree")))
        if code:
            raise _no_kernel(_last_line(text))
        with translated("unpacking the kernel package", path=new):
            next((new / "tree/boot").glob("vmlinuz-*")).rename(new / "vmlinuz")
            (new / "vmlinuz").chmod(0o644)
            (new / "tree/lib").rename(new / "lib")
            version = next((new / "lib/modules").iterdir()).name
            shutil.rmtree(new / "tree")
            shutil.rmtree(archives)
        code, text = await _run(("depmod", "-b", str(new), version))
        if code:
            raise _no_kernel(_last_line(text))
        with translated("opening the kernel's modules to guests", path=new):
            for path in (new / "lib/modules" / version).glob("modules.*"):
                path.chmod(0o644)  # depmod makes some for root alone

    # ---- our programs

    async def _programs(self) -> Path:
        contents = {name: _program(name) for name in _PROGRAMS}
        digest = hashlib.sha256(b"".join(contents.values())).hexdigest()[:16]
        return await self._made(self._directory / "programs" / digest, lambda new: self._write(contents, new))

    @staticmethod
    async def _write(contents: Mapping[str, bytes], new: Path) -> None:
        for name, content in contents.items():
            with translated(f"writing the {name} of virtual machines", path=new):
                (new / name).write_bytes(content)
                (new / name).chmod(0o755)

    def _initrd(self, modules: Sequence[tuple[str, bytes]], programs: Path) -> Path:
        content = initramfs.archive(initramfs.contents((programs / "agent").read_bytes(), modules))
        path = self._directory / "initrd" / hashlib.sha256(content).hexdigest()[:16]
        if not path.exists():
            with translated("writing the initial file system", path=path):
                new = path.with_suffix(".new")
                new.write_bytes(content)
                new.chmod(0o644)
                new.rename(path)
        return path

    @staticmethod
    async def _made(path: Path, make: Callable[[Path], Awaitable[None]]) -> Path:
        """The directory ``path``; if it is not there yet ``make`` fills it."""
        if _exists(path):
            return path
        new = _begin(path)
        try:
            await make(new)
            _finish(new, path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return path


def _program(name: str) -> bytes:
    try:
        return (resources.files("nestbed.qemu") / "c" / name).read_bytes()
    except FileNotFoundError as error:
        raise HostLacks(
            f"the {name} of virtual machines is not compiled",
            reason="PROGRAMS_NOT_COMPILED",
            remedy="run hack/setup in the checkout, or install the wheel",
            program=name,
        ) from error


def _modules_of(kernel: Path) -> Path:
    return next((kernel / "lib/modules").iterdir())


def _cached_archive() -> Path | None:
    """The newest kernel package that ``hack/setup`` left for daemons that reach no mirror. None but root may have put it there."""
    try:
        status = CACHE.stat()
    except OSError:
        return None
    if status.st_uid != 0 or status.st_mode & 0o022:
        return None
    return max(CACHE.glob("linux-image-*-cloud-amd64_*.deb"), default=None)


def _exists(path: Path) -> bool:
    with translated(f"looking for {path}", path=path):
        return path.exists()


def _begin(path: Path) -> Path:
    """An empty directory beside ``path``; what an earlier try left is removed."""
    with translated(f"making {path}", path=path):
        for stale in path.parent.glob(".new-*"):
            shutil.rmtree(stale)
        return Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))


def _finish(new: Path, path: Path) -> None:
    with translated(f"making {path}", path=path):
        new.chmod(0o755)
        new.rename(path)


def _no_kernel(why: str) -> HostLacks:
    return HostLacks(
        f"there is no kernel for virtual machines: {why}",
        reason="KERNEL_UNAVAILABLE",
        remedy="run apt-get update on the node, and see that it reaches a Debian mirror; it is needed once",
        package=KERNEL_PACKAGE,
        cause=why,
    )


async def _run(words: Sequence[str], *, directory: Path | None = None) -> tuple[int, str]:
    """Run a program of the node to its end: its exit code and what it said."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/root"}
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=directory,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return 127, f"{words[0]}: {os.strerror(error.errno or 0)}"
    try:
        async with asyncio.timeout(_RUN_SECONDS):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or line.startswith("E:")]
    return (errors or lines or ["no reason given"])[0][:_TEXT_CHARS]
