"""From a clone of the keeper to the user's program: the child's path, one step after the other.

Everything here runs in the clone, which is the first process of a new pid namespace (or, for ``exec``, a process inside an old
one). It makes system calls on what the keeper prepared; it imports nothing, resolves no user, opens no library of the container.
The order of the steps is the kernel's:

* cgroups are joined before the cgroup namespace is made, so that its root is the container's own cgroup;
* sources of mounts are opened before anything is mounted over them;
* sysctls are written through a procfs that was just made and cannot be a fake, and before it is made read-only;
* all is set up before the child waits for the word to go: NICs are plugged meanwhile, and their sysctls written after;
* descriptors are closed before the working directory is entered, so that no path reaches an old one (CVE-2024-21626);
* the capability bounding set is cut while the process may still do so, the seccomp filter comes last.

An error travels to the keeper as ``step NUL errno NUL text`` over a close-on-exec pipe; its end of file says that the program runs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import resource
import signal
import socket
import stat
import struct
import termios
from collections.abc import Callable
from contextlib import suppress

import prctl

from nestbed.linux import mount
from nestbed.linux.libc import AT_RECURSIVE, LIBC, checked
from nestbed.linux.namespace import CLONE_NEWCGROUP, CLONE_NEWNET, setns, unshare
from nestbed.linux.path import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2
from nestbed.process.protocol import Launch

TEMPLATE, NEW_ROOT, SCRATCH, BUNDLES, DEVICES, MASK_DIR, MASK_FILE = "/t", "/r", "/s", "/b", "/d", "/m/dir", "/m/file"
"""Where things are in the keeper's own mount namespace; ``nestbed.process.template`` makes it."""

_LOCKED = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
_PROC_READ_ONLY = ("bus", "fs", "irq", "pressure", "sysrq-trigger")
_PROC_HIDDEN = ("acpi", "asound", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats")
_SYS_HIDDEN = ("firmware", "devices/virtual/powercap", "kernel/debug", "kernel/tracing")
_RESOLV_CONF = b"# No name server: the members of this container's LANs are in /etc/hosts.\n"
_TIOCGPTPEER, _TIOCSPTLCK, _TIOCGPTN = 0x5441, 0x40045431, 0x80045430
_KEYCTL = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
_KEYCTL_JOIN_SESSION_KEYRING = 1
_NOT_WANTED = 125
"""The exit code of a clone that never executed: not 0, which would read as success."""


class StepError(Exception):
    """A system call of ``step`` failed: what the keeper is told."""

    def __init__(self, step: str, number: int, text: str) -> None:
        super().__init__(text)
        self.step = step
        self.number = number
        self.text = text


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_CAPABILITY_VERSION_3 = 0x20080522
_JOINING = 1 << prctl.CAP_CHOWN | 1 << prctl.CAP_SETUID | 1 << prctl.CAP_SETGID
"""What a process that joins a container still needs there before it takes its credentials."""


class Prepared:
    """What the keeper made ready before it cloned; descriptors belong to the keeper, which closes its copies afterwards."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.candidates = candidates(launch["argv"][0], launch["env"])
        """Paths at which to look for the program."""
        self.error_fd = -1
        self.stdio: tuple[int, int, int] | None = None
        """Standard streams; a stdin of -1 is the container's /dev/null."""
        self.terminal_fd = -1
        """With a terminal instead of stdio: the socket over which its master is sent to the keeper."""
        self.netns_fd = -1
        self.go_fd = -1
        """Where the child waits, all set up, for one byte before it executes; its end of file means that it is not wanted."""
        self.task_fds: list[int] = []
        """``tasks`` files of v1 cgroups."""
        self.init_fd = -1
        self.seccomp = b""
        self.overlay_points: tuple[str, ...] = ()
        """Mount points of real file systems in the template, parents first, without ``/``."""
        self.masks: tuple[tuple[str, bool], ...] = ()
        """Hidden paths of the template, and whether each is a directory."""


def candidates(argv0: str, env: list[str]) -> tuple[bytes, ...]:
    """Where a program of this name is looked for, as execvp(3) does with the PATH of ``env``."""
    name = os.fsencode(argv0)
    if b"/" in name:
        return (name,)
    path = next((item[5:] for item in env if item.startswith("PATH=")), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return tuple(os.path.join(os.fsencode(directory) or b".", name) for directory in path.split(":"))


class Child:
    """The steps, in the clone. ``run`` and ``join`` never return."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._launch = prepared.launch
        self._step = "clone"
        self._root_fd = -1
        self._proc_fd = -1

    def run(self) -> None:
        """Set up a container as its first process and execute its program."""
        self._guarded(self._run)

    def enter(self, pidfd: int, namespaces: int, answer_fd: int) -> int:
        """Join the cgroups of the prepared program and the namespaces of the process ``pidfd``; ends the process if it cannot.

        What is born here next can be seen inside, and with SYS_PTRACE be looked into (CVE-2016-9962): before that goes every
        descriptor but the program's own, and every right that is not the container's. Gives ``answer_fd`` under its new number.
        """
        prepared = self._prepared
        try:
            self._step = "cgroup"
            for fd in prepared.task_fds:
                os.write(fd, b"0")
            for number, fd in enumerate(prepared.stdio or (prepared.terminal_fd,) * 3):
                os.dup2(fd, number)
            prepared.error_fd, prepared.terminal_fd, pidfd, answer_fd = keep_only(prepared.error_fd, prepared.terminal_fd, pidfd, answer_fd)
            if prepared.stdio is not None:
                prepared.stdio = (0, 1, 2)
            self._step = "namespaces"
            setns(pidfd, namespaces)
            os.close(pidfd)
            self._step = "capabilities"
            self._bound()
            _capset(self._launch["caps"] | _JOINING)
        except OSError as error:
            self._report(self._step, error.errno or errno.EIO, str(error.strerror))
            os._exit(127)
        return answer_fd

    def join(self) -> None:
        """Execute a further program; the namespaces have been joined."""
        self._guarded(self._join)

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            gc.disable()
            body()
        except StepError as error:
            self._report(error.step, error.number, error.text)
        except OSError as error:
            name = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
            self._report(self._step, error.errno or errno.EIO, f"{error.strerror}{f': {name}' if name else ''}")
        except BaseException as error:  # noqa: BLE001 - the clone must never return into the keeper's code
            self._report(self._step, errno.EPROTO, f"{type(error).__name__}: {error}")
        finally:
            os._exit(127)

    def _report(self, step: str, number: int, text: str) -> None:
        os.write(self._prepared.error_fd, b"\0".join((step.encode(), b"%d" % number, text.encode(errors="replace")[:2000])))

    def _run(self) -> None:
        self._reset_signals()
        self._enter_cgroups()
        self._step = "netns"
        setns(self._prepared.netns_fd, CLONE_NEWNET)
        os.setsid()
        os.umask(0o022)
        self._make_root()
        self._mount_kernel_views()
        self._mount_files()
        self._open_terminal()
        self._protect_proc()
        self._pivot()
        self._step = "hostname"
        socket.sethostname(self._launch["hostname"])
        self._arm()
        self._bound()
        self._wait_for_go()
        self._set_sysctls(of_interfaces=True)
        self._become()

    def _join(self) -> None:
        self._reset_signals()
        self._root_fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
        os.setsid()
        os.umask(0o022)
        if self._prepared.terminal_fd >= 0:
            self._step = "terminal"
            self._set_terminal(self._strict("dev/pts", directory=True))
        self._arm()
        self._become()

    # ---- before mounts

    @staticmethod
    def _reset_signals() -> None:
        """A program begins with nothing ignored and nothing blocked, whatever the keeper inherited or Python set."""
        for number in signal.valid_signals():
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _enter_cgroups(self) -> None:
        self._step = "cgroup"
        for fd in self._prepared.task_fds:
            os.write(fd, b"0")
        unshare(CLONE_NEWCGROUP)

    # ---- the root file system

    def _make_root(self) -> None:
        self._step = "run"
        options = [("mode", "0755")]
        if size := self._launch.get("scratch_bytes", 0):
            options.append(("size", str(size)))
        mount.move_mount(mount.fsmount("tmpfs", tuple(options), mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV), -100, SCRATCH)
        for name, permissions in (("run", 0o755), ("run/lock", 0o1777), ("shm", 0o1777)):
            os.mkdir(f"{SCRATCH}/{name}")
            os.chmod(f"{SCRATCH}/{name}", permissions)
        self._step = "mount"
        template_fd = os.open(TEMPLATE, os.O_PATH | os.O_CLOEXEC)
        sources = [self._open_source(template_fd, item["source"]) for item in self._launch["mounts"]]
        self._step = "root"
        mode = self._launch["root"]["mode"]
        root = {"host": self._root_host, "host-ro": self._root_host_ro, "overlay": self._root_overlay, "rootfs": self._root_rootfs}[mode]()
        self._root_fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
        self._step = "run"
        self._bind(f"{SCRATCH}/run", "run", create=mode == "rootfs")
        self._dev()
        for item, source in zip(self._launch["mounts"], sources, strict=True):
            self._bind_mount(
                item["destination"], source, read_only=item["read_only"], masks=item["masks"], create=mode in ("overlay", "rootfs")
            )

    @staticmethod
    def _root_host() -> str:
        return TEMPLATE

    def _root_host_ro(self) -> str:
        """Overlays without an upper layer: what is read-only otherwise still lets sockets be connected to and FIFOs be written.

        An inode of an overlay is another one than that below, so nobody is at its other end.
        """
        self._step = "overlay"
        for point in ("", *self._prepared.overlay_points):
            self._overlay(point, f"lowerdir={_overlay_escaped(TEMPLATE + point)}:{MASK_DIR}", mount.MS_RDONLY)
        return self._masked_overlay()

    def _root_rootfs(self) -> str:
        template_fd = os.open(TEMPLATE, os.O_PATH | os.O_CLOEXEC)
        directory = openat2(template_fd, self._launch["root"]["path"], os.O_PATH | os.O_DIRECTORY)
        tree = mount.open_tree(directory, "", mount.OPEN_TREE_CLONE | AT_RECURSIVE)
        mount.mount_setattr(tree, "", recursive=True, attr_set=mount.MOUNT_ATTR_NODEV)
        mount.move_mount(tree, -100, NEW_ROOT)
        return NEW_ROOT

    def _root_overlay(self) -> str:
        self._step = "overlay"
        base = SCRATCH
        if upper := self._launch["root"].get("upper"):
            # Opened here: an overlay takes no layer from another mount namespace.
            template_fd = os.open(TEMPLATE, os.O_PATH | os.O_CLOEXEC)
            base = f"/proc/self/fd/{openat2(template_fd, upper, os.O_RDONLY | os.O_DIRECTORY)}"
        for number, point in enumerate(("", *self._prepared.overlay_points)):
            layers = [f"{base}/{kind}{number}" for kind in ("upper", "work")]
            for layer in layers:
                if not os.path.isdir(layer):
                    os.mkdir(layer)
            lower = TEMPLATE + point
            shape = os.stat(lower)
            os.chmod(layers[0], stat.S_IMODE(shape.st_mode))
            os.chown(layers[0], shape.st_uid, shape.st_gid)
            self._overlay(point, f"lowerdir={_overlay_escaped(lower)},upperdir={layers[0]},workdir={layers[1]}", 0)
        return self._masked_overlay()

    @staticmethod
    def _overlay(point: str, data: str, flags: int) -> None:
        """An overlay for one mount point of the template; what cannot be under one is shown read-only."""
        if not point or stat.S_ISDIR(os.lstat(TEMPLATE + point).st_mode):
            try:
                mount.mount("overlay", NEW_ROOT + point, "overlay", flags | mount.MS_NODEV, data)
            except OSError as error:
                if not point or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV, errno.ELOOP):
                    raise
            else:
                return
        tree = mount.open_tree(-100, TEMPLATE + point, mount.OPEN_TREE_CLONE)
        mount.mount_setattr(tree, "", attr_set=mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV)
        mount.move_mount(tree, -100, NEW_ROOT + point)

    def _masked_overlay(self) -> str:
        root_fd = os.open(NEW_ROOT, os.O_PATH | os.O_CLOEXEC)
        for path, is_directory in self._prepared.masks:
            self._mask(root_fd, path, is_directory=is_directory)
        os.close(root_fd)
        return NEW_ROOT

    def _mask(self, root_fd: int, path: str, *, is_directory: bool) -> None:
        try:
            target = openat2(root_fd, path, os.O_PATH)
        except FileNotFoundError:
            return
        mount.move_mount(mount.open_tree(-100, MASK_DIR if is_directory else MASK_FILE, mount.OPEN_TREE_CLONE), target)
        os.close(target)

    # ---- mounts inside the root

    @staticmethod
    def _open_source(template_fd: int, source: str) -> int:
        found = openat2(template_fd, source, os.O_PATH)
        try:
            tree = mount.open_tree(found, "", mount.OPEN_TREE_CLONE | AT_RECURSIVE)
        finally:
            os.close(found)
        return tree

    def _bind(self, source: str, target: str, *, create: bool, read_only: bool = False) -> None:
        """Show ``source`` of the keeper's namespace at ``target`` inside; ``target`` must be no symbolic link."""
        directory = stat.S_ISDIR(os.stat(source).st_mode)
        try:
            found = self._strict(target, directory=directory)
        except FileNotFoundError:
            if not create:
                return
            os.mkdir(target, dir_fd=self._real_root())
            found = self._strict(target, directory=directory)
        tree = mount.open_tree(-100, source, mount.OPEN_TREE_CLONE)
        if read_only:
            mount.mount_setattr(tree, "", attr_set=mount.MOUNT_ATTR_RDONLY)
        mount.move_mount(tree, found)
        os.close(tree)
        os.close(found)

    def _real_root(self) -> int:
        return openat2(self._root_fd, ".", os.O_RDONLY | os.O_DIRECTORY)

    def _strict(self, path: str, *, directory: bool) -> int:
        """The inside path, which must not pass a symbolic link: a rootfs may try to lead the mount astray."""
        flags = os.O_PATH | (os.O_DIRECTORY if directory else 0)
        return openat2(self._root_fd, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)

    def _bind_mount(self, destination: str, source: int, *, read_only: bool, masks: list[str], create: bool) -> None:
        self._step = "mount"
        directory = stat.S_ISDIR(os.fstat(source).st_mode)
        try:
            target = openat2(self._root_fd, destination, os.O_PATH)
        except FileNotFoundError:
            if not create:
                raise
            target = self._create(destination, directory=directory)
        attributes = mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID | (mount.MOUNT_ATTR_RDONLY if read_only else 0)
        mount.mount_setattr(source, "", recursive=True, attr_set=attributes)
        mount.move_mount(source, target)
        os.close(source)
        os.close(target)
        for path in masks:
            try:
                found = openat2(self._root_fd, path, os.O_PATH)
            except FileNotFoundError:
                continue
            is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
            os.close(found)
            self._mask(self._root_fd, path, is_directory=is_directory)

    def _create(self, path: str, *, directory: bool) -> int:
        """Make a directory or an empty file inside and give its O_PATH descriptor; parents are made, links never left by."""
        parts = [part for part in path.split("/") if part and part != "."]
        if not parts or ".." in parts:
            raise StepError(self._step, errno.EINVAL, f"not a path below the root: {path}")
        parent = self._real_root()
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            prefix = "/".join(parts[: number + 1])
            if not last or directory:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=parent)
                child = openat2(self._root_fd, prefix, (os.O_PATH if last else os.O_RDONLY) | os.O_DIRECTORY)
            else:
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))
                child = openat2(self._root_fd, prefix, os.O_PATH)
            os.close(parent)
            parent = child
        return parent

    def _mount_kernel_views(self) -> None:
        self._step = "proc"
        create = self._launch["root"]["mode"] == "rootfs"
        self._proc_fd = mount.fsmount("proc", (), _LOCKED)
        self._attach(self._proc_fd, "proc", create=create)
        self._step = "sys"
        sys_fd = mount.fsmount("sysfs", (), _LOCKED | mount.MOUNT_ATTR_RDONLY)
        self._attach(sys_fd, "sys", create=create)
        for name in _SYS_HIDDEN:
            self._hide(sys_fd, name)
        os.close(sys_fd)
        self._set_sysctls(of_interfaces=False)

    def _set_sysctls(self, *, of_interfaces: bool) -> None:
        """Those of the network wait until the NICs are there; the others need a /proc/sys that is still writable."""
        self._step = "sysctl"
        for path, value in self._launch["sysctls"]:
            if path.startswith("net/") == of_interfaces:
                fd = os.open(f"sys/{path}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)
                os.write(fd, value.encode())
                os.close(fd)

    def _wait_for_go(self) -> None:
        if not os.read(self._prepared.go_fd, 1):
            os._exit(_NOT_WANTED)

    def _attach(self, tree: int, name: str, *, create: bool) -> None:
        try:
            target = self._strict(name, directory=True)
        except FileNotFoundError:
            if not create:
                raise
            os.mkdir(name, 0o755, dir_fd=self._real_root())
            target = self._strict(name, directory=True)
        mount.move_mount(tree, target)
        os.close(target)

    def _dev(self) -> None:
        self._step = "dev"
        rootfs = self._launch["root"]["mode"] == "rootfs"
        self._attach(mount.open_tree(-100, DEVICES, mount.OPEN_TREE_CLONE), "dev", create=rootfs)
        options = (("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"))
        devpts = mount.fsmount("devpts", options, mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC)
        self._attach(devpts, "dev/pts", create=False)
        self._bind(f"{SCRATCH}/shm", "dev/shm", create=False)

    def _mount_files(self) -> None:
        self._step = "files"
        hosts = f"{BUNDLES}/{self._launch['id']}/hosts"
        made = (("hostname", f"{self._launch['hostname']}\n".encode()), ("resolv.conf", _RESOLV_CONF))
        for name, text in made:
            fd = os.open(f"{SCRATCH}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.write(fd, text)
            os.close(fd)
        for name, source in (("hosts", hosts), *((name, f"{SCRATCH}/{name}") for name, _ in made)):
            target = self._file_target(f"etc/{name}")
            if target < 0:
                continue
            tree = mount.open_tree(-100, source, mount.OPEN_TREE_CLONE)
            mount.mount_setattr(tree, "", attr_set=mount.MOUNT_ATTR_RDONLY | _LOCKED)
            mount.move_mount(tree, target)
            os.close(tree)
            os.close(target)

    def _file_target(self, path: str) -> int:
        """Where a file of the bundle goes: the file itself, or where its symbolic link leads; -1 if there is no place for it."""
        try:
            return openat2(self._root_fd, path, os.O_PATH)
        except FileNotFoundError:
            pass
        try:
            link = openat2(self._root_fd, path, os.O_PATH | os.O_NOFOLLOW)
            goal = os.path.normpath(os.path.join("/etc", os.readlink("", dir_fd=link)))
        except FileNotFoundError:
            goal = f"/{path}"
        mode = self._launch["root"]["mode"]
        if mode not in ("overlay", "rootfs") and not goal.startswith("/run/"):
            return -1
        try:
            return self._create(goal, directory=False)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                return -1
            raise

    def _hide(self, tree: int, name: str) -> None:
        """Cover ``name`` of a procfs or sysfs with emptiness."""
        try:
            shape = os.stat(name, dir_fd=tree, follow_symlinks=False)
        except OSError:
            return
        cover = MASK_DIR if stat.S_ISDIR(shape.st_mode) else MASK_FILE
        mount.move_mount(mount.open_tree(-100, cover, mount.OPEN_TREE_CLONE), tree, name)

    def _protect_proc(self) -> None:
        self._step = "mask"
        net = mount.open_tree(self._proc_fd, "sys/net", mount.OPEN_TREE_CLONE)
        for name in ("sys", *_PROC_READ_ONLY):
            try:
                tree = mount.open_tree(self._proc_fd, name, mount.OPEN_TREE_CLONE)
            except FileNotFoundError:
                continue
            mount.mount_setattr(tree, "", attr_set=mount.MOUNT_ATTR_RDONLY)
            mount.move_mount(tree, self._proc_fd, name)
        mount.move_mount(net, self._proc_fd, "sys/net")
        for name in _PROC_HIDDEN:
            self._hide(self._proc_fd, name)

    # ---- terminal

    def _open_terminal(self) -> None:
        if self._prepared.terminal_fd < 0:
            return
        self._step = "terminal"
        devpts = self._strict("dev/pts", directory=True)
        number = self._set_terminal(devpts)
        console = openat2(self._root_fd, "dev/console", os.O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
        mount.move_mount(mount.open_tree(devpts, str(number), mount.OPEN_TREE_CLONE), console)

    def _set_terminal(self, devpts: int) -> int:
        """Make a terminal in the devpts instance and the standard streams of it; its master goes to the keeper."""
        master = openat2(devpts, "ptmx", os.O_RDWR | os.O_NOCTTY, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
        if os.fstat(master).st_rdev != os.makedev(5, 2):
            raise StepError(self._step, errno.ENODEV, "/dev/pts/ptmx is no terminal multiplexer")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))
        rows, columns = self._launch.get("rows", 24), self._launch.get("columns", 80)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        slave: int = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchown(slave, self._launch["uid"], -1)
        with socket.socket(fileno=self._prepared.terminal_fd) as channel:
            socket.send_fds(channel, [b"t"], [master])
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        self._prepared.stdio = (slave, slave, slave)
        return int(number)

    # ---- the last steps

    def _pivot(self) -> None:
        self._step = "pivot"
        os.fchdir(self._root_fd)
        mount.pivot_root(".", ".")
        mount.umount2(".", mount.MNT_DETACH)
        os.chdir("/")

    def _arm(self) -> None:
        """Streams, limits and confinement that can be had before the word to go; every other descriptor is closed."""
        launch, prepared = self._launch, self._prepared
        assert prepared.stdio is not None
        for number, fd in enumerate(prepared.stdio):
            os.dup2(fd if fd >= 0 else os.open("/dev/null", os.O_RDONLY), number)
        prepared.error_fd, prepared.init_fd, prepared.go_fd, self._proc_fd = keep_only(
            prepared.error_fd, prepared.init_fd, prepared.go_fd, self._proc_fd
        )
        self._step = "rlimit"
        for kind, soft, hard in launch["rlimits"]:
            resource.setrlimit(kind, (soft, hard))
        LIBC.syscall(_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)

    def _bound(self) -> None:
        """No more rights from here on, whatever is executed."""
        self._step = "capabilities"
        prctl.set_no_new_privs(True)
        for capability in range(prctl.CAP_LAST_CAP + 1):
            if not self._launch["caps"] >> capability & 1:
                prctl.capbset_drop(capability)

    def _become(self) -> None:
        """Credentials, working directory, program."""
        launch, prepared = self._launch, self._prepared
        for fd in (prepared.go_fd, self._proc_fd):
            if fd >= 0:
                os.close(fd)
        self._step = "credentials"
        os.setgroups(launch["groups"])
        os.setresgid(launch["gid"], launch["gid"], launch["gid"])
        os.setresuid(launch["uid"], launch["uid"], launch["uid"])
        self._step = "capabilities"
        _capset(launch["caps"] if launch["uid"] == 0 else 0)
        self._step = "cwd"
        os.chdir(launch["cwd"])
        if not os.getcwdb().startswith(b"/"):
            raise StepError("cwd", errno.ENOENT, f"{launch['cwd']} is outside the container's root")
        self._execute()

    def _execute(self) -> None:
        launch = self._launch
        argv = [os.fsencode(word) for word in launch["argv"]]
        env = {os.fsencode(key): os.fsencode(value) for key, _, value in (item.partition("=") for item in launch["env"])}
        use_init = bool(launch.get("init"))
        if self._prepared.seccomp:
            self._step = "seccomp"
            _seccomp(self._prepared.seccomp)
        self._step = "execve"
        worst = errno.ENOENT
        for path in self._prepared.candidates:
            try:
                if not use_init:
                    os.execve(path, argv, env)
                elif os.access(path, os.X_OK):
                    os.execve(self._prepared.init_fd, [b"init", b"--", *argv], env)
                elif os.path.exists(path):
                    worst = errno.EACCES
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                    raise
                worst = error.errno if error.errno == errno.EACCES else worst
        raise StepError("execve", worst, launch["argv"][0])


def keep_only(*fds: int) -> list[int]:
    """Close every descriptor but the standard ones and these, which move to 3 and up, close-on-exec; -1 stays -1."""
    spares = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) if fd >= 0 else -1 for fd in fds]
    kept: list[int] = []
    number = 3
    for spare in spares:
        if spare >= 0:
            os.dup2(spare, number, inheritable=False)
            kept.append(number)
            number += 1
        else:
            kept.append(-1)
    os.closerange(number, 1 << 20)
    return kept


def _overlay_escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _capset(mask: int) -> None:
    """capset(2): effective and permitted are ``mask``, inheritable is empty."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    checked("capset", LIBC.capset(ctypes.byref(header), ctypes.byref(data)))


def _seccomp(program: bytes) -> None:
    """Load a compiled filter of ``struct sock_filter`` (8 bytes each) for this process."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    checked("seccomp", LIBC.prctl(22, ctypes.c_ulong(2), ctypes.byref(fprog), ctypes.c_ulong(0), ctypes.c_ulong(0)))
