"""nestbedd: composition. Nothing but the order of things stands here."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import prctl

from nestbed import __version__, log
from nestbed.errors import NestbedError, PermissionDenied
from nestbed.lan.control import ControlBridge
from nestbed.lan.plane import Plane
from nestbed.log import fields
from nestbed.model import Kind
from nestbed.node.node import Node
from nestbed.node.rundir import RunDirectory
from nestbed.process.container import ProcessRuntime
from nestbed.process.masks import code_paths
from nestbed.qemu.inside import Code
from nestbed.qemu.runtime import QemuRuntime
from nestbed.runtime import PortHook, Runtime
from nestbedd import settings as configuration
from nestbedd.settings import Settings

logger = logging.getLogger("nestbedd")

EXIT_FAILURE = 1
EXIT_USAGE = 2


def main() -> None:
    """Run the daemon until SIGTERM or SIGINT. Exits with 0 after these, 2 for wrong settings, 1 for what else keeps it from running."""
    try:
        settings = configuration.read(sys.argv[1:])
    except NestbedError as error:
        _fail(error, EXIT_USAGE)
    try:
        _prepare_process()
        log.configure(settings.log_level)
        if settings.release_control_nic:
            _release_control_nic(settings)
        else:
            asyncio.run(_run(settings))
    except NestbedError as error:
        _fail(error, EXIT_FAILURE)


def _fail(error: NestbedError, code: int) -> None:
    print(f"nestbedd: {error.message}" + (f"\nremedy: {error.remedy}" if error.remedy else ""), file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _prepare_process() -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(
            f"nestbedd must run as root, not as user {os.geteuid()}", reason="NOT_ROOT", remedy="start it with sudo or by systemd"
        )
    faulthandler.enable()
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # gRPC reads it when it is imported, later; its fork handlers can abort a forked child
    os.umask(0o077)
    os.chdir("/")
    prctl.set_dumpable(False)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _release_control_nic(settings: Settings) -> None:
    with (
        RunDirectory.claim(settings.run_dir, settings.state_dir) as claim,
        contextlib.closing(ControlBridge(claim.node_id, settings.run_dir)) as bridge,
    ):
        bridge.release()
        bridge.remove_if_unused()


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        claim = stack.enter_context(RunDirectory.claim(settings.run_dir, settings.state_dir))
        plane = Plane(
            node_id=claim.node_id,
            run_dir=settings.run_dir,
            underlays=settings.underlay,
            relay=settings.relay,
            control_nic=settings.control_nic,
        )
        node = Node(
            name=settings.name,
            run_dir=settings.run_dir,
            state_dir=settings.state_dir,
            runtimes=_runtimes(settings, claim.node_id, plane),
            plane=plane,
            node_id=claim.node_id,
            file_systems=settings.file_systems,
            control_subnet=settings.control_subnet,
            may_be_element=settings.machine_element,
        )
        stack.push_async_callback(node.aclose)
        await node.open()
        addresses = await stack.enter_async_context(_serving(node, settings))
        gc.collect()
        gc.freeze()  # what is there now stays: no collection needs to look at it again
        logger.info(
            "ready", extra=fields(version=__version__, name=settings.name, node=claim.node_id, addresses=addresses, pid=os.getpid())
        )
        await stop.wait()
        logger.info("stopping; containers run on")
    logger.info("stopped")


def _runtimes(settings: Settings, node_id: str, port_hook: PortHook) -> Mapping[Kind, Runtime]:
    """Every runtime of this node, by kind: the one place that lists them."""
    hidden = [settings.tls_key] if settings.tls_key else []
    processes = ProcessRuntime(
        run_dir=settings.run_dir,
        state_dir=settings.state_dir,
        node_id=node_id,
        hidden=hidden,
        memory_default_bytes=_memory_default_bytes(),
        port_hook=port_hook,
    )
    code = Code(tuple(os.path.realpath(path) for path in code_paths()), (sys.executable, "-m", "nestbedd"))
    machines = QemuRuntime(run_dir=settings.run_dir, state_dir=settings.state_dir, sandboxes=processes, code=code)
    return {Kind.PROCESS: processes, Kind.QEMU: machines}


def _memory_default_bytes() -> int:
    """What a container may use that asks for no limit: most of the machine, but never so much that nestbedd starves."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total * 7 // 8 >> 20 << 20


def _serving(node: Node, settings: Settings) -> AbstractAsyncContextManager[tuple[str, ...]]:
    """The API. gRPC comes in only here: the keeper was reached or started before it, by a small process."""
    from nestbed.service import server  # noqa: PLC0415

    cert, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    tls = server.Tls(cert, key, client_ca) if cert and key and client_ca else None
    return server.serving(node, settings.run_dir, listen=[server.Listen(host, port) for host, port in settings.listen], tls=tls)


if __name__ == "__main__":
    main()
