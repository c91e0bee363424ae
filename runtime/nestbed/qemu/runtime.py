"""The runtime for virtual machines: see ``nestbed.runtime``. One per node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from nestbed.errors import HostLacks
from nestbed.model import Ability, Bundle, Kind, Spec, Status
from nestbed.qemu import accel, command, drive, plan, sandbox, seed
from nestbed.qemu.accel import Accelerator
from nestbed.qemu.command import Loader
from nestbed.qemu.files import Files
from nestbed.qemu.images import DISK, ImageRoom
from nestbed.qemu.inside import Code
from nestbed.qemu.machine import Parts, QemuContainer
from nestbed.qemu.news import News
from nestbed.qemu.sandbox import Sandbox, Sandboxes
from nestbed.qemu.store import Store
from nestbed.runtime import Container, Leftover, StatusListener

_PROGRAMS = ((command.QEMU, "qemu-system-x86"), (command.VIRTIOFSD, "qemu-system-common"))


class QemuRuntime:
    """See the contract. Its machines live in sandboxes, which must be open before and closed after it."""

    def __init__(self, *, run_dir: Path, state_dir: Path, sandboxes: Sandboxes, code: Code | None = None) -> None:
        """``code`` is this daemon's own, for machines that are nodes."""
        self._run_dir = run_dir
        self._code = code or Code()
        self._sandboxes = sandboxes
        self._store = Store(state_dir / "vm")
        self._images = ImageRoom(state_dir / "vm" / "images")
        self._news = News()
        self._containers: dict[str, QemuContainer] = {}
        self._finding: asyncio.Task[Accelerator] | None = None

    @property
    def kind(self) -> Kind:
        """See the contract."""
        return Kind.QEMU

    @property
    def image_store(self) -> ImageRoom:
        """See ``nestbed.runtime.HasImages``."""
        return self._images

    async def open(self, listener: StatusListener) -> None:
        """See the contract."""
        self._listener = listener
        self._images.open()
        self._news.open()
        self._sandboxes.listen(Kind.QEMU, self._on_sandbox)

    async def aclose(self) -> None:
        """See the contract."""
        for container in self._containers.values():
            await container.aclose()
        self._containers.clear()
        self._news.close()
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)

    async def probe(self) -> Sequence[Ability]:
        """See the contract."""
        missing = _missing()
        if missing:
            consequence = f"no virtual machines: apt-get install {' '.join(package for _, package in missing)}"
            return [Ability("qemu", available=False, detail=f"{missing[0][0]} is missing", consequence=consequence)]
        accelerator = accel.known(self._run_dir) or Accelerator("tcg", "not tried yet: the first virtual machine does")
        slow = "" if accelerator.name == "kvm" else "virtual machines are emulated: several times slower, and no boundary against attacks"
        return [
            Ability("qemu", available=True, detail=self._store.describe()),
            Ability("kvm", available=accelerator.name == "kvm", detail=accelerator.why, consequence=slow),
        ]

    def _trial(self) -> asyncio.Task[Accelerator]:
        """What finds the accelerator, begun when first asked for; one that failed is begun again."""
        if self._finding is None or (self._finding.done() and self._finding.exception() is not None):
            self._finding = asyncio.create_task(accel.find(self._run_dir))
        return self._finding

    async def validate(self, spec: Spec) -> None:
        """See the contract."""
        plan.check(spec)
        if spec.qemu is not None:
            drive.check(spec.qemu)
            if spec.qemu.has_disk:
                drive.check_image(spec.qemu, self._images.image(spec.qemu.image))
        missing = _missing()
        if missing:
            path, package = missing[0]
            raise HostLacks(
                f"this machine runs no virtual machines: there is no {path}",
                reason="QEMU_MISSING",
                remedy=f"apt-get install {package}",
                path=path,
            )

    async def create(self, spec: Spec, bundle: Bundle) -> QemuContainer:
        """See the contract."""
        await self.validate(spec)
        container: QemuContainer | None = None
        try:
            await self._make_files(spec, Files(bundle))
            container = await self._container(spec, bundle, {})
            container.write_plan()
            container.made(await self._sandboxes.create(sandbox.spec_of(spec, bundle, self._code.paths), bundle))
        except BaseException:
            if container is not None:
                await container.aclose()
            self._containers.pop(spec.id, None)
            await self._sandboxes.discard(bundle)
            raise
        return container

    async def _make_files(self, spec: Spec, files: Files) -> None:
        if spec.qemu is None or not spec.qemu.has_disk:
            files.make(await self._store.boot())
            return
        image = self._images.image(spec.qemu.image)
        source = self._images.path(image.name)
        loader = drive.loader(spec.qemu, image)
        boot = await self._store.boot_disk(source if loader is Loader.OURS else None)
        files.make(boot)
        await drive.make(files.directory, spec.qemu, image, source / DISK, plan.uid_of(spec.id))
        if loader is not Loader.OURS:
            await seed.make(files.directory, boot.agent, machine_id=spec.id, hostname=spec.hostname or spec.name)

    async def _container(self, spec: Spec, bundle: Bundle, numbers: dict[str, int]) -> QemuContainer:
        accelerator = (await asyncio.shield(self._trial())).name
        disk = None
        if spec.qemu is not None and spec.qemu.has_disk:
            disk = drive.disk(spec.qemu, drive.read(Files(bundle).directory))
        container = QemuContainer(spec, bundle, Parts(self._news, self._listener, self._forget, accelerator, self._code), numbers, disk)
        self._containers[spec.id] = container
        return container

    async def recover(self, spec: Spec, bundle: Bundle) -> QemuContainer:
        """See the contract."""
        numbers = Files(bundle).read_numbers()
        container = await self._container(spec, bundle, numbers)
        try:
            inner: Sandbox = await self._sandboxes.recover(sandbox.spec_of(spec, bundle, self._code.paths), bundle)
            container.made(inner)
            await container.take_up()
        except BaseException:
            self._containers.pop(spec.id, None)
            await container.aclose()
            raise
        return container

    async def discard(self, bundle: Bundle) -> None:
        """See the contract."""
        container = self._containers.get(bundle.id)
        if container is not None:
            await container.destroy()
        else:
            await self._sandboxes.discard(bundle)

    async def audit(self, containers: Sequence[Container]) -> Sequence[Leftover]:
        """See the contract. What a sandbox has in the kernel is compared by the runtime it belongs to."""
        known = {container.id for container in containers}
        machines = [
            Leftover("extra", name.partition(":")[0], name.partition(":")[2], f"of virtual machine {container.id}, which has no record")
            for container in self._containers.values()
            if container.id not in known
            for name in container.objects()
        ]
        return [*machines, *self._images.audit()]

    def _on_sandbox(self, container_id: str, status: Status) -> None:
        container = self._containers.get(container_id)
        if container is not None:
            container.on_inner(status)

    def _forget(self, container_id: str) -> None:
        self._containers.pop(container_id, None)


def _missing() -> list[tuple[str, str]]:
    return [(path, package) for path, package in _PROGRAMS if not os.access(path, os.X_OK)]
