"""Three LANs joined by two routers, an IRC server with three clients, a web server and a client: all processes, all real software.

Run it with the Python of ``.venv`` (``hack/setup``). It starts a daemon of its own in a fresh network namespace, drives it with nbctl as a
person would, and leaves nothing behind.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nestbed.testing.stage import BIN, DemoFailure, daemon, step

HERE = Path(__file__).resolve().parent
LANS = {"left": "10.1.0.0/24", "middle": "10.2.0.0/24", "right": "10.3.0.0/24"}
ROUTERS = {
    "r1": ["--lan", "left,ip=10.1.0.1/24", "--lan", "middle,ip=10.2.0.1/24", "--route", "10.3.0.0/24,via=10.2.0.2"],
    "r2": ["--lan", "middle,ip=10.2.0.2/24", "--lan", "right,ip=10.3.0.1/24", "--route", "10.1.0.0/24,via=10.2.0.1"],
}
HOSTS = {"alice": ("left", "10.1.0.11"), "bob": ("middle", "10.2.0.11"), "carol": ("right", "10.3.0.11")}
IRC, WEB = "10.3.0.20", "10.3.0.30"
GATEWAYS = {
    "left": ["--gateway", "10.1.0.1"],
    "middle": ["--route", "10.1.0.0/24,via=10.2.0.1", "--route", "10.3.0.0/24,via=10.2.0.2"],
    "right": ["--gateway", "10.3.0.1"],
}
NGIRCD = """[Global]
Name = irc.demo
Info = demo
Listen = 0.0.0.0
MotdPhrase = "hello"
[Options]
DNS = no
Ident = no
PAM = no
"""


class Demo:
    """The steps; ``nbctl`` is the only way it touches the node."""

    def __init__(self, address: str, base: Path) -> None:
        self._address = address
        self._base = base

    def nbctl(self, *words: str, show: bool = True, check: bool = True, seconds: float = 60) -> str:
        """Run nbctl; its output. Shown as a person would type it."""
        if show:
            print(f"  $ nbctl {shlex.join(words)}", flush=True)
        done = subprocess.run(
            [str(BIN / "nbctl"), "-H", self._address, *words],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        if check and done.returncode:
            raise DemoFailure(f"nbctl {shlex.join(words)}: exit status {done.returncode}\n{done.stdout}".rstrip())
        return done.stdout

    def build(self) -> None:
        """LANs, routers, servers, hosts."""
        step("Three LANs")
        for name, subnet in LANS.items():
            self.nbctl("lan", "create", name, "--subnet", subnet)
        step("Two routers: processes that forward")
        for name, words in ROUTERS.items():
            self.nbctl("run", "process", "-d", "--name", name, *words, "--sysctl", "net.ipv4.ip_forward=1", "--", "sleep", "infinity")
        step("An IRC server (ngircd) and a web server on the right")
        config = self._base / "ngircd.conf"
        config.write_text(NGIRCD)
        self.run_host("irc", "right", IRC, "ngircd", "-n", "-f", str(config))
        self.run_host("web", "right", WEB, "python3", "-m", "http.server", "80", "--directory", str(HERE))
        step("Three hosts, one on each LAN")
        for name, (lan, address) in HOSTS.items():
            self.run_host(name, lan, address, "sleep", "infinity")
        print(self.nbctl("ps"))

    def run_host(self, name: str, lan: str, address: str, *command: str) -> None:
        """A container with one NIC and the routes of its LAN."""
        words = ["--lan", f"{lan},ip={address}/24", *GATEWAYS[lan]]
        self.nbctl("run", "process", "-d", "--name", name, *words, "--", *command)

    def chat(self) -> None:
        """Three IRC clients hear each other through the routers."""
        step("Three IRC clients, which must hear each other")
        for name in HOSTS:
            others = [other for other in HOSTS if other != name]
            self.run_host_client(f"irc-{name}", name, IRC, name, "#demo", *others)
        for name in HOSTS:
            status = self.nbctl("wait", f"irc-{name}", show=False).split()[-1]
            for line in self.nbctl("logs", f"irc-{name}", show=False).splitlines():
                print(f"    {line}")
            if status != "0":
                raise DemoFailure(f"{name} did not hear the others")

    def run_host_client(self, container: str, host: str, *words: str) -> None:
        """An IRC client beside the host ``host``, on the same LAN."""
        lan = HOSTS[host][0]
        command = ["python3", "-I", str(HERE / "irc_client.py"), *words]
        self.nbctl("run", "process", "-d", "--name", container, "--lan", lan, *GATEWAYS[lan], "--", *command)

    def fetch(self) -> None:
        """A web page through both routers."""
        step("alice fetches a page from the web server through both routers")
        script = ["curl", "-sf", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", f"http://{WEB}/irc_client.py"]
        page = self.nbctl("exec", "alice", *script)
        if page != (HERE / "irc_client.py").read_text():
            raise DemoFailure("the page that came is not the page that was served")
        print(f"    {len(page)} bytes, as served")

    def table(self) -> None:
        """Who reached whom, how fast, over how many hops."""
        step("Who reaches whom: round-trip time and hops")
        targets = {**{name: address for name, (_, address) in HOSTS.items()}, "irc": IRC, "web": WEB}
        print(f"    {'from':8}" + "".join(f"{name:>18}" for name in targets))
        for source in HOSTS:
            cells = []
            for name, address in targets.items():
                if name == source:
                    cells.append("-")
                    continue
                out = self.nbctl("exec", source, "ping", "-n", "-c", "3", "-i", "0.05", "-W", "2", address, show=False)
                ttl, average = re.search(r"ttl=(\d+)", out), re.search(r"= [\d.]+/([\d.]+)/", out)
                if ttl is None or average is None:
                    raise DemoFailure(f"{source} does not reach {name} ({address})\n{out}")
                cells.append(f"{float(average[1]):.3f} ms, {64 - int(ttl[1]) + 1} hop{'s' if ttl[1] != '64' else ''}")
            print(f"    {source:8}" + "".join(f"{cell:>18}" for cell in cells))

    def throughput(self) -> None:
        """TCP across both routers."""
        step("Throughput from left to right, across both routers")
        self.nbctl("exec", "web", "iperf3", "-s", "-D")
        report = json.loads(self.nbctl("exec", "alice", "iperf3", "-c", WEB, "-t", "2", "-J"))
        print(f"    {report['end']['sum_received']['bits_per_second'] / 1e9:.2f} Gbit/s")

    def clean_up(self) -> None:
        """Stop and delete everything, and prove it."""
        step("Stop, delete, audit")
        if self.nbctl("ps", "-a", "-q", show=False).strip():
            self.nbctl("stop", "-t", "2", "*")
            self.nbctl("rm", "-f", "*")
        if names := self.nbctl("lan", "ls", "-o", "name", show=False).split():
            self.nbctl("lan", "rm", *names)
        print(f"    {self.nbctl('audit').strip()}")


def main() -> int:
    """The demo from beginning to end; 0 if every step did what it should."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="nestbed-demo-") as directory:
            base = Path(directory)
            base.chmod(0o755)
            step("A node daemon of its own, in a fresh network namespace")
            with daemon(base) as address:
                demo = Demo(address, base)
                try:
                    demo.build()
                    demo.chat()
                    demo.fetch()
                    demo.table()
                    demo.throughput()
                finally:
                    demo.clean_up()
    except DemoFailure as failure:
        print(f"\nThe demo failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything was removed", file=sys.stderr)
        return 130
    print(f"\nThe demo succeeded in {time.monotonic() - begin:.0f} s and left nothing behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
