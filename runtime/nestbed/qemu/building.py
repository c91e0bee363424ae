"""Building an image by a recipe: Debian packages from the mirror this node is configured for, into a disk, without loop devices.

The same packages give the same disk, apart from time stamps. ``python -m nestbed.qemu.building RECIPE`` builds into the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from nestbed.errors import HostLacks, NestbedError, ResourceExhausted, shown, translated
from nestbed.qemu import confined, initramfs, recipes
from nestbed.qemu.recipes import Recipe

LABEL = "nestbed-root"
"""Of the file system on the disk."""
MODULES = (*initramfs.MODULES, "ext4")
"""What a kernel needs to have the disk as its root."""
BUILD_SECONDS = 1200.0
_NEEDED_BYTES = 3 << 30
_EPOCH = 1_700_000_000
"""Time stamps are not later than this (SOURCE_DATE_EPOCH)."""
_SOURCES = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
_HIDDEN_SETTINGS = ("IndexTargets", "Changelogs", "CompressionTypes")
_TAIL_LINES = 40


async def build(recipe: Recipe, new: Path) -> AsyncGenerator[str, None]:
    """Make ``disk``, ``vmlinuz`` and ``lib/modules`` in ``new``; tells what it does. To be closed: that ends what it started.

    Raises:
        HostLacks: a package cannot be had, or a program is missing (reason BUILD_FAILED, PROGRAM_MISSING, NO_SOURCES).
        ResourceExhausted: the disk is full. Deadline: it took too long.
    """
    _check_room(new)
    tree = new / "tree"
    async with contextlib.aclosing(make_tree(recipe, tree)) as steps:
        async for step in steps:
            yield step
    yield "making the disk"
    take_kernel(tree, new)
    await make_disk(recipe, tree, new / "disk")
    with translated("cleaning up after the build", path=new):
        await asyncio.to_thread(shutil.rmtree, tree)
        for name in ("sources.list", "apt.conf"):
            (new / name).unlink()


async def make_tree(recipe: Recipe, tree: Path) -> AsyncGenerator[str, None]:
    """Make the files of an image in ``tree``, which its packages and the recipe alone determine but for time stamps."""
    new = tree.parent
    (new / "sources.list").write_text(await _sources(recipe, new))
    (new / "apt.conf").write_text(await _apt_settings(new))
    words = (
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(recipe.packages)}"),
        *('--aptopt=Apt::Install-Recommends "false"', f"--aptopt={new / 'apt.conf'}", f"--customize-hook={recipe.customize}"),
        *(recipe.suite, str(tree), str(new / "sources.list")),
    )
    async with contextlib.aclosing(_steps(words, new)) as steps:
        async for step in steps:
            yield step
    await _run(("find", str(tree), "-xdev", "-newermt", f"@{_EPOCH}", "-exec", "touch", "-h", "-d", f"@{_EPOCH}", "{}", "+"), new)


def copy(source: Path, new: Path) -> None:
    """Copy what was built before; holes of the disk stay holes."""
    with translated(f"copying {source}", path=source):
        copy_sparse(source / "disk", new / "disk")
        shutil.copy(source / "vmlinuz", new / "vmlinuz")
        shutil.copytree(source / "lib", new / "lib")


def take_kernel(tree: Path, new: Path) -> None:
    """Copy the kernel of an image out of its files, with the modules that it needs before it has a root.

    Raises:
        HostLacks: there is none.
    """
    kernel = max((tree / "boot").glob("vmlinuz-*"), default=None)
    if kernel is None:
        raise HostLacks("the recipe installs no kernel", reason="BUILD_FAILED", remedy="add a package such as linux-image-cloud-amd64")
    version = kernel.name.removeprefix("vmlinuz-")
    with translated("copying the kernel", path=kernel):
        shutil.copy(kernel, new / "vmlinuz")
        (new / "vmlinuz").chmod(0o644)
        place = new / "lib/modules" / version
        place.mkdir(parents=True)
        for name, content in initramfs.find_modules(tree / "lib/modules" / version, MODULES):
            (place / name).write_bytes(content)


async def make_disk(recipe: Recipe, tree: Path, disk: Path) -> None:
    """Make the file system of a tree: no mount, no loop device; its identity is the recipe's."""
    with translated(f"making {disk}", path=disk), disk.open("wb") as file:
        os.ftruncate(file.fileno(), recipe.disk_mib << 20)
    identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{recipe.name}.nestbed"))
    words = ("mkfs.ext4", "-q", "-F", "-L", LABEL, "-U", identity, "-E", f"hash_seed={identity},root_owner=0:0", "-d", str(tree), str(disk))
    await _run(words, disk.parent, E2FSPROGS_FAKE_TIME=str(_EPOCH))


async def _sources(recipe: Recipe, new: Path) -> str:
    """Where apt of this node takes the suite's packages from.

    Raises:
        HostLacks: from nowhere (reason NO_SOURCES).
    """
    _, text = await confined.said(("apt-get", "indextargets", "--format", _SOURCES, "Created-By: Packages"), seconds=60.0, directory=new)
    fitting = [line for line in dict.fromkeys(text.splitlines()) if _is_of_suite(line, recipe.suite)]
    if not fitting:
        raise HostLacks(
            f"apt of this node has no source of Debian {recipe.suite}",
            reason="NO_SOURCES",
            remedy="add one to /etc/apt/sources.list.d, and run apt-get update on the node",
            suite=recipe.suite,
        )
    return "".join(f"{line}\n" for line in fitting)


def _is_of_suite(line: str, suite: str) -> bool:
    words = line.split()
    return len(words) == 4 and words[0] == "deb" and words[3] == "main" and (words[2] == suite or words[2].startswith(f"{suite}-"))


async def _apt_settings(new: Path) -> str:
    """How apt of this node fetches: proxies, checks."""
    _, text = await confined.said(("apt-config", "dump", "--no-empty", "--format", '%f "%v";%n', "Acquire"), seconds=60.0, directory=new)
    lines = text.splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("Acquire::") and not any(name in line for name in _HIDDEN_SETTINGS))


async def _steps(words: tuple[str, ...], new: Path) -> AsyncGenerator[str, None]:
    """Run mmdebstrap; the steps it tells of."""
    tail: list[str] = []
    async with confined.running(words, seconds=BUILD_SECONDS, directory=new, env={"SOURCE_DATE_EPOCH": str(_EPOCH)}) as program:
        async for line in program.lines():
            tail = [*tail[-_TAIL_LINES:], line]
            if line.startswith("I: ") and line.endswith("..."):
                yield line.removeprefix("I: ").removesuffix("...")
        code = await program.wait()
    if code:
        raise _failed(words[0], code, tail, new)


async def _run(words: tuple[str, ...], new: Path, **environment: str) -> None:
    tail: list[str] = []
    async with confined.running(words, seconds=BUILD_SECONDS, directory=new, env=environment) as program:
        async for line in program.lines():
            tail = [*tail[-_TAIL_LINES:], line]
        code = await program.wait()
    if code:
        raise _failed(words[0], code, tail, new)


def _failed(program: str, code: int, tail: list[str], new: Path) -> NestbedError:
    if code == confined.NOT_FOUND:
        return confined.missing(program, "")
    with contextlib.suppress(ResourceExhausted):
        _check_room(new, 64 << 20)
        if not any("No space left" in line for line in tail):
            why = shown(next((line for line in tail if line.startswith(("E: ", "dpkg: error"))), (tail or [f"code {code}"])[-1]))
            return HostLacks(
                f"the image cannot be built: {program}: {why}",
                reason="BUILD_FAILED",
                remedy="run apt-get update on the node, and see that it reaches its mirror",
                program=program,
                cause=why,
            )
    return _no_room(new)


def _check_room(new: Path, wanted_bytes: int = _NEEDED_BYTES) -> None:
    with translated(f"looking at the file system of {new}", path=new):
        free = os.statvfs(new)
    if free.f_bavail * free.f_frsize < wanted_bytes:
        raise _no_room(new)


def _no_room(new: Path) -> NestbedError:
    return ResourceExhausted(
        f"the file system of {new.parent} has not the {_NEEDED_BYTES >> 30} GiB that building an image takes",
        reason="NO_SPACE",
        remedy="free space there: remove images, containers, or what is none of nestbed's",
        path=new.parent,
    )


def copy_sparse(source: Path, target: Path, at: int = 0) -> None:
    """Copy a file to a new one, ``at`` bytes from its beginning; holes stay holes."""
    with source.open("rb") as reading, target.open("xb") as writing:
        size = os.fstat(reading.fileno()).st_size
        os.ftruncate(writing.fileno(), at + size)
        for start, end in _data(reading.fileno(), size):
            os.lseek(writing.fileno(), at + start, os.SEEK_SET)
            os.lseek(reading.fileno(), start, os.SEEK_SET)
            left = end - start
            while left:
                left -= os.sendfile(writing.fileno(), reading.fileno(), None, left)


def _data(fd: int, size: int) -> Iterable[tuple[int, int]]:
    """Where a file is no hole (lseek(2))."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole to the end
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def _prebuild(recipe: Recipe) -> None:
    """Build into the cache, which nobody else does meanwhile. What other versions of the recipe made stays: other checkouts use it."""
    path = recipes.cached(recipe)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    for stale in path.parent.glob(".new-*"):
        shutil.rmtree(stale)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
    try:
        new.chmod(0o755)
        asyncio.run(_built(recipe, new))
        new.rename(path)
    finally:
        if new.exists():
            shutil.rmtree(new)


async def _built(recipe: Recipe, new: Path) -> None:
    async with contextlib.aclosing(build(recipe, new)) as steps:
        async for _ in steps:
            pass


if __name__ == "__main__":
    try:
        wanted = recipes.find(sys.argv[1])
        if recipes.prebuilt(wanted) is None:
            sys.stderr.write(f"building the image {wanted.name}, which takes a minute or two\n")
            _prebuild(wanted)
    except NestbedError as failure:
        sys.exit(f"{failure.message}\nremedy: {failure.remedy}")
