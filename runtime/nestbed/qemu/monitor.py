"""QEMU's monitor: QMP over the socket in the bundle, by qemu.qmp. One client at a time is all that QEMU serves, so this is the only one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from nestbed.errors import Deadline, HostLacks, Unavailable
from nestbed.qemu.guest import connect

_SECONDS = 10.0
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Monitor:
    """The monitor of one machine; connects for each conversation, which takes 2 ms, and so holds nothing while there is none."""

    def __init__(self, container_id: str, directory: Path) -> None:
        """``directory`` holds ``qmp.sock``."""
        self._id = container_id
        self._directory = directory
        self._turn = asyncio.Lock()

    async def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """Execute one QMP command.

        Raises:
            HostLacks: QEMU refused (reason MONITOR_REFUSED). Unavailable: it is gone. Deadline: it does not answer.
        """
        async with self._session() as client:
            return await self._command(client, command, arguments or {})

    async def remove_device(self, device: str) -> None:
        """Take a device away, and wait until the guest has let go of it.

        Raises:
            as :meth:`execute`; Deadline: the guest does not let go.
        """
        async with self._session() as client:
            listener = EventListener("DEVICE_DELETED")
            with client.listen(listener):
                await self._command(client, "device_del", {"id": device})
                async for event in listener:
                    data = event.get("data")
                    if isinstance(data, dict) and data.get("device") == device:
                        return

    async def devices(self) -> set[str]:
        """The ids of the NICs that QEMU has.

        Raises:
            as :meth:`execute`.
        """
        found = await self.execute("qom-list", {"path": "/machine/peripheral"})
        assert isinstance(found, list)
        return {str(item["name"]) for item in found if str(item["type"]).startswith("child<virtio-net")}

    async def _command(self, client: QMPClient, command: str, arguments: dict[str, object]) -> object:
        try:
            return await client.execute(command, arguments)
        except ExecuteError as error:
            raise HostLacks(
                f"QEMU of container {self._id} refused {command}: {error}",
                reason="MONITOR_REFUSED",
                remedy="see the machine's console log",
                container=self._id,
                command=command,
                cause=error,
            ) from error

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[QMPClient]:
        client = QMPClient(self._id)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        async with self._turn:
            try:
                async with asyncio.timeout(_SECONDS):
                    connect(made, self._directory, "qmp.sock")
                    await client.connect(made)
                    yield client
            except TimeoutError as error:
                raise Deadline(
                    f"QEMU of container {self._id} does not answer",
                    reason="MONITOR_SILENT",
                    remedy="try again; stop it with --time 0 if it hangs",
                    container=self._id,
                ) from error
            except (QMPError, OSError, EOFError) as error:
                raise Unavailable(
                    f"QEMU of container {self._id} cannot be reached: {error}",
                    reason="MONITOR_UNREACHABLE",
                    remedy="see whether it runs",
                    container=self._id,
                    cause=error,
                ) from error
            finally:
                with contextlib.suppress(QMPError, OSError, EOFError):
                    await client.disconnect()
                made.close()
