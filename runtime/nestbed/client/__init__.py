"""Async client library: what nbctl and Python programs talk to a node with.

::

    async with Client.connect("unix:///run/nestbed/admin.sock") as client:
        container = await client.create_container(ContainerSpec(kind=CONTAINER_KIND_PROCESS, process=ProcessSpec(args=["true"])))
        await client.start_container(container.id)
        print((await client.wait_container(container.id)).shell_code)
"""

from nestbed.client.client import Client
from nestbed.client.session import Session

__all__ = ["Client", "Session"]
