"""The demo: IRC servers, bots and routers as processes, on the machine or inside virtual machines that are nodes, and a target that is a
process, a virtual machine, or the machine itself. Whatever the target is, and wherever elements are, the outcome is the same.

Run through ``hack/demo``. It starts a daemon of its own in a fresh network namespace, drives it with nbctl as a person would, and leaves
nothing behind. The load is 60 fetches a second of 20 kB for some seconds, and never leaves the experiment.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import plot
import yaml

from nestbed.testing.stage import BIN, DemoFailure, daemon, step

HERE = Path(__file__).resolve().parent
TARGETS = ("process", "qemu", "machine")
BOTS = [f"bot{number}" for number in range(1, 7)]
WATCHED, NIC_LAN = "r-south", "irc.south"
"""Where the load is measured: on the router before the target, at its NIC on the target's LAN."""
RATE = 10
"""Fetches a second of each bot."""
PATIENCE_SECONDS = 60.0


class Spans(NamedTuple):
    """How many seconds are watched before, during and after the load."""

    before: int
    load: int
    after: int


LONG, SHORT = Spans(5, 20, 6), Spans(3, 6, 4)


class Demo:
    """The steps; ``nbctl`` is the only way it touches the node."""

    def __init__(self, address: str, base: Path, target: str, spans: Spans) -> None:
        self._address = address
        self._base = base
        self._target = target
        self._spans = spans

    def nbctl(self, *words: str, show: bool = True, seconds: float = 300) -> str:
        """Run nbctl; its output. Shown as a person would type it."""
        if show:
            print(f"  $ nbctl {shlex.join(words)}", flush=True)
        done = subprocess.run(self._words(*words), check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise DemoFailure(f"nbctl {shlex.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
        return done.stdout

    def _words(self, *words: str) -> list[str]:
        return [str(BIN / "nbctl"), "-H", self._address, *words]

    def agents(self, *names: str) -> dict[str, dict[str, Any]]:
        """What the agent knows of elements, by name."""
        return {agent["name"]: agent for agent in json.loads(self.nbctl("-o", "json", "agent", "ls", "-x", "irc", *names, show=False))}

    def order(self, text: str) -> None:
        """Have the operator say something in the channel."""
        self.nbctl("agent", "tell", "-x", "irc", "operator", text)

    def up(self, ptopo: Path) -> None:
        """Bring it up, and look from inside every element."""
        step(f"Bring up {HERE.name}/vtopo.yaml on {ptopo.name}; the target is of kind {self._target}")
        print(indented(self.nbctl("up", "-f", str(self._vtopo()), "--on", str(ptopo))))
        print(indented(self.nbctl("status", "irc", show=False)))
        step("Look from inside every element: does it see what the file says, and nothing else?")
        print(indented(self.nbctl("verify", "irc")))

    def _vtopo(self) -> Path:
        """The vtopo file with the target's kind in it, and what it needs beside it."""
        vtopo = yaml.safe_load((HERE / "vtopo.yaml").read_text())
        vtopo["elements"]["target"]["kind"] = self._target
        path = self._base / "vtopo.yaml"
        path.write_text(yaml.safe_dump(vtopo, sort_keys=False))
        (self._base / "bot.py").write_bytes((HERE / "bot.py").read_bytes())
        return path

    def greet(self) -> None:
        """The operator says hi, and every bot answers, across the servers' link."""
        step("The operator says `hi` in the channel; all six bots answer, three of them from the other server")
        self.order("hi")

        def answered() -> bool:
            lines = self.nbctl("-o", "json", "agent", "reports", "-x", "irc", "operator", show=False).splitlines()
            said = {(one["fields"].get("from"), one["fields"].get("text")) for one in map(json.loads, lines)}
            return said >= {(bot, f"hi from {bot}") for bot in BOTS}

        until(answered, "some bots did not answer `hi`")
        print("    " + ", ".join(f"{bot}: hi" for bot in BOTS))

    def load(self, picture: Path) -> tuple[float, float, float]:
        """Start and stop the load; frames a second before, at most, and after it."""
        step(f"`fetch {RATE} 60` starts each bot's load, `stop` ends it; frames a second at {WATCHED}, as the agent counts them")
        words = self._words("-o", "json", "agent", "traffic", "irc", WATCHED, "--interval", "1s")
        rates: list[tuple[float, float]] = []
        with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as watching:
            try:
                assert watching.stdout is not None
                last: tuple[float, int] | None = None
                for line in watching.stdout:
                    at, frames = counted(json.loads(line)[0])
                    if last is not None:
                        rates.append((float(len(rates) + 1), (frames - last[1]) / max(at - last[0], 0.001)))
                        print(f"    {len(rates):3} s {rates[-1][1]:8.0f} {plot.bar(rates[-1][1])}", flush=True)
                        self._at(len(rates))
                    last = at, frames
                    if len(rates) == sum(self._spans):
                        break
            finally:
                watching.terminate()
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text(plot.svg(rates, title=f"Frames a second at {WATCHED}, target: {self._target}"))
        return shape([rate for _, rate in rates], self._spans)

    def _at(self, seconds: int) -> None:
        if seconds == self._spans.before:
            self.order(f"fetch {RATE} 60")
        elif seconds == self._spans.before + self._spans.load:
            self.order("stop")

    def fetched(self) -> int:
        """How many pages all bots fetched; none may have failed."""
        found: dict[str, dict[str, Any]] = {}

        def told() -> bool:
            found.update(self.agents("bot*"))
            return all(found[bot]["fields"].get("load") == "off" for bot in BOTS)

        until(told, "some bots did not report the end of their load")
        if any(int(found[bot]["fields"]["failed"]) for bot in BOTS):
            raise DemoFailure(f"fetches failed: { {bot: found[bot]['fields'] for bot in BOTS} }")
        return sum(int(found[bot]["fields"]["fetched"]) for bot in BOTS)

    def leave(self) -> None:
        """All bots quit when they are told to."""
        step("`quit` ends the bots")
        self.order("quit")

        def gone() -> bool:
            elements = json.loads(self.nbctl("-o", "json", "status", "irc", show=False))["elements"]
            states = {element["name"]: element["state"] for element in elements}
            return all(states[bot] == "ELEMENT_STATE_ENDED" for bot in [*BOTS, "operator"])

        until(gone, "some bots did not quit")
        print("    " + ", ".join(BOTS))

    def clean_up(self) -> None:
        """Remove everything, and prove it."""
        step("Remove everything, audit")
        for name in self.nbctl("-o", "name", "status", show=False).split():
            self.nbctl("down", name)
        print(f"    {self.nbctl('audit').strip()}")


def counted(stats: Mapping[str, Any]) -> tuple[float, int]:
    """When an element was measured, and the frames at its watched NIC until then."""
    nic = next(nic for nic in stats["nics"] if nic["lan"] == NIC_LAN)
    hours, minutes, seconds = stats["time"].partition("T")[2].rstrip("Z").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds), nic["rx_frames"] + nic["tx_frames"]


def shape(rates: list[float], spans: Spans) -> tuple[float, float, float]:
    """The rates before, during and after the load: it must have risen and fallen.

    Raises:
        DemoFailure: it has not.
    """
    if len(rates) < sum(spans):
        raise DemoFailure("the node stopped to count")
    before, during, after = max(rates[1 : spans.before]), max(rates), min(rates[1 - spans.after :])
    if not (during > 10 * (before + 10) and after < during / 10):
        raise DemoFailure(f"the load did not rise and fall: {before:.0f}, {during:.0f}, {after:.0f} frames a second")
    return before, during, after


def until(is_so: Callable[[], bool], complaint: str) -> None:
    """Wait until it is so.

    Raises:
        DemoFailure: it is not in time.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise DemoFailure(complaint)
        time.sleep(0.3)


def indented(text: str) -> str:
    """Lines as they are shown below a step."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def play(base: Path, target: str, ptopo: Path, picture: Path, spans: Spans) -> None:
    """The demo from beginning to end."""
    step("A node daemon of its own, in a fresh network namespace")
    with daemon(base, "--machine-element", "yes") as address, ExitStack() as stack:
        demo = Demo(address, base, target, spans)
        stack.callback(demo.clean_up)
        demo.up(ptopo)
        demo.greet()
        before, during, after = demo.load(picture)
        pages = demo.fetched()
        demo.leave()
    print(f"\nmeasured: {before:.0f} frames a second before the load, {during:.0f} at its height, {after:.0f} after it; {pages} pages")
    print(f"plot:     {picture}")
    print(f"target:   {target}")
    print("outcome:  6 of 6 bots joined, 6 answered, no deviation seen from inside, the load rose and fell, no fetch failed, 6 quit")


def main() -> int:
    """0 if every step did what it should."""
    parser = argparse.ArgumentParser(prog="hack/demo", add_help=False)
    parser.add_argument("--target", choices=TARGETS, default="process")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--ptopo", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    ptopo = args.ptopo or HERE / ("one-machine.yaml" if args.short else "two-vms.yaml")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    picture = args.plot or HERE.parents[2] / "build" / "demo" / f"{args.target}.svg"
    try:
        with tempfile.TemporaryDirectory(prefix="nestbed-demo-") as directory:
            base = Path(directory)
            base.chmod(0o755)
            play(base, args.target, ptopo, picture, SHORT if args.short else LONG)
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
