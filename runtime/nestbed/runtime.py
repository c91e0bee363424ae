"""THE CONTRACT between the node and what runs containers. These docstrings are the specification.

``nestbed.testing.contract`` carries the same as a test suite; every runtime, and the fake, passes it. ``docs/runtime.md`` tells it
as a story. Nothing in this module does anything.

States::

    create --> CREATED --start--> RUNNING <--pause/resume--> PAUSED
                  |                  |  ^
                  |                  |  +--(restart policy)-- RESTARTING
                  |                  v                            |
                  +------------> STOPPED <------------------------+
                        start of a STOPPED container begins a new run in the same bundle

Rules for every method:

* Concurrency: the node never calls two changing methods (``start stop kill plug unplug set_link update pause resume destroy``) of one
  container at once; ``wait exec console stats status`` may run at any time beside them. Different containers are independent.
* Cancellation leaves the container in a state that ``recover`` understands; nothing half-made stays unrecorded.
* Errors are ``nestbed.errors``; anything else is a bug. A failed ``create`` or ``plug`` leaves nothing behind.
* Write before you make: every kernel object is named in the bundle before it exists.
* The runtime survives nestbedd: whatever runs goes on when the daemon is killed, and ``recover`` takes it up again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nestbed.imagemodel import DiskFormat, Image
from nestbed.lanmodel import Nic
from nestbed.model import Ability, Bundle, ExecSpec, ExitStatus, Kind, Resources, RestartPolicy, Spec, Stats, Status


@dataclass(frozen=True, slots=True)
class Leftover:
    """A difference between record and kernel found by ``audit``: ``problem`` is ``extra`` or ``missing``."""

    problem: str
    kind: str
    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output. ``stream`` is 1 (stdout, or the terminal) or 2 (stderr)."""

    stream: int
    data: bytes


class Console(Protocol):
    """The standard streams of a program, for one reader. Closing it leaves the program alone.

    Bounded: a reader that does not read holds up the program (as a pipe does), never the daemon's memory.
    """

    def output(self) -> AsyncIterator[Output]:
        """Output as it comes, in order per stream, until the program ended and everything it wrote was given out."""
        ...

    async def write(self, data: bytes) -> None:
        """Pass ``data`` to standard input.

        Raises:
            WrongState: the program was started without standard input, or has closed it.
        """
        ...

    async def close_stdin(self) -> None:
        """Give the program an end of file. Idempotent; with a terminal it writes the EOF character."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; ignored without a terminal."""
        ...

    async def aclose(self) -> None:
        """Let go. Idempotent."""
        ...


class Execution(Console, Protocol):
    """A program started by ``exec``. ``aclose`` before its end kills it with SIGKILL."""

    async def wait(self) -> ExitStatus:
        """The exit status, once it ended. May be called many times."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to it; nothing happens if it has ended."""
        ...


class Container(Protocol):
    """One container under a runtime."""

    @property
    def id(self) -> str:
        """The id of its spec."""
        ...

    @property
    def status(self) -> Status:
        """Where it is now. Never blocks; follows the kernel by itself."""
        ...

    async def start(self) -> None:
        """CREATED or STOPPED -> RUNNING: returns when the program has been executed (after ``execve``).

        Raises:
            WrongState: it runs already (reason ALREADY_RUNNING).
            NotFound: the program does not exist inside (reason PROGRAM_NOT_FOUND).
            InvalidArgument: it is no program that this kernel executes (reason NOT_EXECUTABLE).
            HostLacks, ResourceExhausted: a step of setting it up failed; ``metadata["step"]`` names it.
        After an error the state is what it was before, with ``exit.reason == "start-failed"``.
        """
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end (SIGTERM), after ``grace_seconds`` make it end (SIGKILL); returns when it is STOPPED.

        Ends restarts too. Idempotent: a container that does not run is left as it is. Goes on if the daemon dies.
        """
        ...

    async def kill(self, signal: int) -> None:
        """Send a signal to the container's first process. SIGKILL ends all its processes.

        Raises:
            WrongState: it does not run.
        """
        ...

    async def wait(self) -> ExitStatus:
        """The exit status of the run that goes on, or of the last one; waits through restarts for the final one.

        Raises:
            WrongState: it was never started.
        """
        ...

    async def exec(self, spec: ExecSpec) -> Execution:
        """Start a further program in all of the container's namespaces, cgroups and confinement.

        Raises:
            WrongState: it does not run, or is paused.
            NotFound, InvalidArgument: as ``start``.
        """
        ...

    async def console(self) -> Console:
        """Attach to the first program: before ``start`` nothing of its output is missed, later from now on.

        Several consoles may be open; each gets everything.
        """
        ...

    async def plug(self, nic: Nic) -> None:
        """Give it a NIC on a LAN, set up and running when this returns. In CREATED before anything runs; in STOPPED it is
        remembered for the next start.

        Raises:
            AlreadyExists: it has a NIC of that name.
            HostLacks, ResourceExhausted: the kernel refused; nothing is left.
        """
        ...

    async def unplug(self, name: str) -> None:
        """Take the NIC away.

        Raises:
            NotFound: it has no such NIC.
        """
        ...

    async def set_link(self, name: str, *, up: bool) -> None:
        """Plug the cable of a NIC in or out. Without it the NIC has no carrier inside and no frame passes; addresses and routes stay.

        In every state; a later start finds it so, as it does what :meth:`plug` and ``spec.nics`` say (``Nic.is_down``). Idempotent.

        Raises:
            NotFound: it has no such NIC.
        """
        ...

    async def stats(self) -> Stats:
        """What it uses now. In STOPPED what is still known, with None for the rest."""
        ...

    async def destroy(self) -> None:
        """From every state: kill it, remove everything it has in the kernel and everything of the runtime in the bundle.

        Idempotent; unmounts first and never crosses a mount while deleting. When it returns, nothing but ``record.json`` is left.
        """
        ...

    def objects(self) -> Sequence[str]:
        """The kernel objects it owns by its record, as ``kind:name`` (``link:nbp..``, ``cgroup:memory/...``, ``process:PID``)."""
        ...


@runtime_checkable
class Pausable(Protocol):
    """A container that can be frozen."""

    async def pause(self) -> None:
        """RUNNING -> PAUSED. Raises WrongState otherwise."""
        ...

    async def resume(self) -> None:
        """PAUSED -> RUNNING. Raises WrongState otherwise."""
        ...


@runtime_checkable
class Updatable(Protocol):
    """A container whose limits can change while it lives."""

    async def update(self, resources: Resources, restart: RestartPolicy) -> None:
        """Apply the complete new limits and policy at once; all or nothing."""
        ...


@runtime_checkable
class FileAccess(Protocol):
    """A container whose files can be read and written from outside: ``cp``. Paths are resolved inside, never outside."""

    async def archive(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of ``path``. The first member has the path's last component as its name.

        Raises:
            NotFound: no such path inside.
        """
        ...

    async def extract(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into the directory ``path``.

        Raises:
            NotFound: no such directory inside. InvalidArgument: not a tar stream.
        """
        ...


@runtime_checkable
class HostsAware(Protocol):
    """A container whose ``/etc/hosts`` the node keeps."""

    async def update_hosts(self, text: str) -> None:
        """``text`` is the whole file from now on, for what runs and for later starts. In every state, also beside a changing method.

        The node calls it before the first ``start``, and again before a start and while it runs if the members of its LANs changed.
        """
        ...


NODE_CREDENTIALS = "node"
"""The directory of a bundle with ``ca.pem``, ``node.pem`` and ``node.key``, by which the nestbedd inside a machine is known to the node;
there before ``create``."""


@runtime_checkable
class Nesting(Protocol):
    """A container in which nestbedd may run: a node of its own, if its spec says so."""

    @property
    def node_address(self) -> str:
        """``HOST:PORT`` at which the node inside answers, or will; empty while that is not known, or if there is none."""
        ...


class ImageStore(Protocol):
    """The images of a node. One appears whole or not at all, whatever is killed meanwhile, and never changes."""

    def images(self) -> Sequence[Image]:
        """All, by name."""
        ...

    def image(self, name: str) -> Image:
        """One.

        Raises:
            NotFound: none (reason IMAGE_NOT_FOUND). CorruptState: its record cannot be understood.
        """
        ...

    async def import_image(self, name: str, disk_format: DiskFormat, chunks: AsyncIterator[bytes]) -> Image:
        """Make an image of the bytes of a file.

        Raises:
            AlreadyExists: the name is taken. InvalidArgument: no sound disk of that format, or one that names other files.
            ResourceExhausted: it is too large, or the disk is full. HostLacks. Nothing is left.
        """
        ...

    def build_image(self, recipe: str, name: str, *, fresh: bool) -> AsyncGenerator[str | Image, None]:
        """Make an image by a recipe: what is being done, then the image. A reader that stops ends it, and nothing is left.

        Raises:
            NotFound: no such recipe (reason RECIPE_NOT_FOUND). AlreadyExists: the name is taken. Busy: another one is being built.
            HostLacks, ResourceExhausted, Deadline: it failed. Nothing is left.
        """
        ...

    async def delete_image(self, name: str) -> None:
        """Remove one. What was made from it goes on.

        Raises:
            NotFound: none. InvalidArgument: it is the node's own root (reason HOST_IMAGE).
        """
        ...


@runtime_checkable
class HasImages(Protocol):
    """A runtime whose containers start from images."""

    @property
    def image_store(self) -> ImageStore:
        """Its images."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """A container whose programs can write to the FIFO ``nestbed.agentdir.REPORT`` of its bundle, from before its first program begins.

    What they wrote and nobody has read yet stays until ``recover`` or ``destroy`` of a container that has ended.
    """

    def open_agent(self) -> int:
        """The directory that its programs see as ``nestbed.agentdir.DIRECTORY``, opened with O_PATH: the caller's. Its content is theirs.

        Raises:
            WrongState: it does not run. NotFound: there is something else at that place.
        """
        ...


class PortHook(Protocol):
    """Told by the runtimes of the ports they make: the LAN plane is one. All are called in the event loop and take far less than 1 ms."""

    def port_added(self, nic: Nic, index: int) -> Sequence[bytes]:
        """The port of ``nic`` exists, on its bridge, with this interface index, and is not up yet: no frame has passed.

        What is returned are requests for ``nestbed.linux.rtnl.Rtnl.batch``: the runtime carries them out, in order, before it sets the
        port up, and fails if one fails.

        Raises:
            HostLacks, ResourceExhausted: it cannot be had as it must be; the runtime removes the port and fails.
        """
        ...

    def port_found(self, nic: Nic, index: int) -> None:
        """As :meth:`port_added`, of a port that an earlier daemon made and that is up: it is left as it is if it is right. Never raises."""
        ...

    def port_gone(self, port: str) -> None:
        """The port (``Nic.port``) is gone or about to go. Idempotent; never raises."""
        ...


PlaneListener = Callable[[str, str, Mapping[str, str]], None]
"""Called in the event loop when something happened to the LAN plane: the event's type (``lan.loop``, ``lan.underlay-lost``,
``lan.underlay-back``, ``relay.lost``, ``relay.started``), the id of the LAN it happened to ("" for all or none), and further fields."""

StatusListener = Callable[[str, Status], None]
"""Called in the event loop with the container's id whenever its status changed."""


class Runtime(Protocol):
    """What runs containers of one kind."""

    @property
    def kind(self) -> Kind:
        """The kind it implements."""
        ...

    async def open(self, listener: StatusListener) -> None:
        """Make it ready (start or find its helper processes). Called once, before anything else."""
        ...

    async def aclose(self) -> None:
        """Let go of everything without ending any container."""
        ...

    async def probe(self) -> Sequence[Ability]:
        """What this machine can and cannot do for this kind, and why. Cheap enough to ask at any time."""
        ...

    async def validate(self, spec: Spec) -> None:
        """Refuse what can be known to be wrong before anything is made (missing program, unknown user, impossible limit)."""
        ...

    async def create(self, spec: Spec, bundle: Bundle) -> Container:
        """Make the container of ``spec`` in ``bundle``; NICs of ``spec.interfaces`` are plugged. State CREATED.

        Raises:
            any of ``validate``; HostLacks, ResourceExhausted. Nothing is left after an error.
        """
        ...

    async def recover(self, spec: Spec, bundle: Bundle) -> Container:
        """Take up a container made by an earlier daemon: running ones are untouched, half-made ones are completed or
        cleaned to STOPPED, missing kernel objects (after a reboot) lead to STOPPED with an unknown exit status, or to a start if
        the restart policy is ALWAYS.

        Raises:
            CorruptState: the bundle cannot be understood; ``discard`` it.
        """
        ...

    async def discard(self, bundle: Bundle) -> None:
        """Remove whatever a broken or half-made bundle names, by its record. Idempotent."""
        ...

    async def audit(self, containers: Sequence[Container]) -> Sequence[Leftover]:
        """Compare what these containers record with what the kernel has of this node's; read-only."""
        ...
