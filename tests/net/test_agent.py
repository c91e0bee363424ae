"""Programs in real containers report, are told things, and meet at barriers; whatever is killed, and whatever they try."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest

from nestbed.client import Client
from nestbed.testing.machine import Machine
from nestbed.testing.segment import Segment, checked
from nestbed.v1 import agent_pb2, node_pb2

T = TypeVar("T")
HERE = "/run/nestbed/agent"
PATIENCE_SECONDS = 20.0
WAIT = "tail -f /dev/null"


def call(machine: Machine, act: Callable[[Client], Awaitable[T]]) -> T:
    async def calling() -> T:
        async with Client.connect(machine.address) as client, asyncio.timeout(PATIENCE_SECONDS):
            return await act(client)

    return asyncio.run(calling())


def run(machine: Machine, name: str, script: str, *options: str) -> None:
    checked(machine.nbctl("run", "process", "-d", "--name", name, *options, "--", "sh", "-c", f"cd {HERE}; {script}"))


def inside(machine: Machine, name: str, script: str) -> str:
    return checked(machine.nbctl("exec", name, "--", "sh", "-c", f"cd {HERE}; {script}"))


def until(machine: Machine, name: str, is_last: Callable[[agent_pb2.Report], bool]) -> list[dict[str, str]]:
    """What a container reported, up to the report meant."""

    async def hear(client: Client) -> list[dict[str, str]]:
        found = []
        async with aclosing(client.reports(name, follow=True)) as reports:
            async for report in reports:
                found.append(dict(report.fields))
                if is_last(report):
                    return found
        raise AssertionError(f"{name} is gone: {found}")

    return call(machine, hear)


def until_state(machine: Machine, name: str, state: str) -> list[dict[str, str]]:
    return until(machine, name, lambda report: report.fields.get("state") == state)


def event(machine: Machine, kind: str, name: str) -> node_pb2.Event:
    """The first event of this type of a container, past ones included."""

    async def watch(client: Client) -> node_pb2.Event:
        async with aclosing(client.events(types=[kind], history=True)) as events:
            async for response in events:
                if response.event.name == name:
                    return response.event
        raise AssertionError("the events ended")

    return call(machine, watch)


def agent(machine: Machine, name: str) -> agent_pb2.Agent:
    return call(machine, lambda client: client.list_agents([name]))[0]


def test_an_echo_is_a_report_and_an_event(machine: Machine, daemon) -> None:
    run(machine, "web", f"echo state=ready port=80 hello you >report; {WAIT}", "-l", "nestbed.element=w")
    assert until_state(machine, "web", "ready") == [{"state": "ready", "port": "80", "text": "hello you"}]
    told = event(machine, "agent.report", "web").attributes
    assert dict(told) == {"state": "ready", "port": "80", "text": "hello you", "number": "1", "element": "w"}
    assert "web   running  1" in checked(machine.nbctl("agent", "ls"))
    assert checked(machine.nbctl("agent", "reports", "web")).endswith(" 1 port=80 state=ready text=hello you\n")


@pytest.mark.parametrize("fs", ["host", "host-ro", "overlay"])
def test_every_kind_of_file_system_has_the_directory(machine: Machine, daemon, fs: str) -> None:
    run(machine, "web", f"echo state=ready >report && echo a=1 >drop/file && {WAIT}", "--fs", fs, "--user", "nobody")
    reports = until(machine, "web", lambda report: report.file == "file")
    assert reports == [{"state": "ready"}, {"a": "1"}]


def test_files_that_are_dropped_are_reports_of_their_own(machine: Machine, daemon) -> None:
    run(machine, "web", f"printf 'state=ready\\nload=3\\n' >drop/.tmp; mv drop/.tmp drop/status; {WAIT}")
    until_state(machine, "web", "ready")
    (report,) = json.loads(f"[{checked(machine.nbctl('-o', 'json', 'agent', 'reports', 'web')).strip()}]")
    assert (report["file"], report["fields"]) == ("status", {"state": "ready", "load": "3"})
    assert inside(machine, "web", "ls -A drop") == ""


def test_orders_are_read_by_tail(machine: Machine, daemon) -> None:
    run(machine, "web", f'echo state=ready >report; tail -n +1 -f orders | while read -r order; do echo got="$order" >report; done; {WAIT}')
    until_state(machine, "web", "ready")
    checked(machine.nbctl("agent", "tell", "web", "go", "on"))
    until(machine, "web", lambda report: report.fields.get("text") == "on" and report.fields["got"] == "go")
    refused = machine.nbctl("agent", "tell", "web", "two\nlines")
    assert refused.returncode == 1
    assert "no line of printable text" in refused.stderr
    checked(machine.nbctl("stop", "-t", "0", "web"))
    refused = machine.nbctl("agent", "tell", "web", "go")
    assert refused.returncode == 1
    assert "does not run" in refused.stderr


def test_many_writers_of_whole_and_half_lines_are_all_heard(machine: Machine, daemon) -> None:
    script = "for w in 1 2 3 4 5; do (for n in $(seq 40); do echo w=$w n=$n >report; done) & done; wait"
    run(machine, "web", f"{script}; printf 'sta' >report; printf 'te=done\\n' >report; {WAIT}")
    reports = until_state(machine, "web", "done")
    assert sorted((one["w"], int(one["n"])) for one in reports[:-1]) == [(w, n) for w in "12345" for n in range(1, 41)]
    assert agent(machine, "web").lost == {}


def test_garbage_and_endless_lines_are_counted_and_harm_nothing(machine: Machine, daemon) -> None:
    run(machine, "web", f"head -c 300000 /dev/zero >report; printf '\\n\\377\\376\\na=1\\n' >report; echo state=done >report; {WAIT}")
    assert until_state(machine, "web", "done") == [{"a": "1"}, {"state": "done"}]
    assert agent(machine, "web").lost == {"long": 1, "binary": 1}
    assert dict(event(machine, "agent.lost", "web").attributes)["long"] == "1"


def test_a_flood_is_bounded_and_counted_and_others_are_heard(machine: Machine, daemon) -> None:
    run(machine, "flood", f"yes flood=1 | head -n 60000 >report & echo state=begun >report; wait; {WAIT}")
    run(machine, "web", f"echo state=ready >report; {WAIT}")
    until_state(machine, "web", "ready")
    assert event(machine, "agent.lost", "flood")

    async def settled(client: Client) -> agent_pb2.Agent:
        while True:
            (found,) = await client.list_agents(["flood"])
            if found.last.number + found.lost["flood"] >= 60001:
                return found
            await asyncio.sleep(0.1)

    found = call(machine, settled)
    assert found.last.number + found.lost["flood"] == 60001
    assert found.last.number < 10000
    size = sum(path.stat().st_size for path in (machine.state_dir / "containers" / found.id).iterdir())
    assert size < 2_000_000


@pytest.mark.parametrize("victims", [("daemon",), ("keeper",), ("daemon", "keeper")])
def test_what_is_reported_while_somebody_is_dead_is_heard_once(machine: Machine, daemon, victims: tuple[str, ...], tmp_path: Path) -> None:
    """A program that has the FIFO open, one that opens it each time, and files. While all are dead the first one is refused its writing."""
    go = tmp_path / "go"
    loop = "echo n=$n >&3 || echo refused=$n >report; echo m=$n >report; echo f=$n >drop/f$n"
    script = f"trap '' PIPE; exec 3>report; echo n=0 >&3; until [ -e {go} ]; do sleep 0.02; done; for n in $(seq 50); do {loop}; done"
    run(machine, "web", f"{script}; echo state=done >report; {WAIT}", "--fs", "host")
    until(machine, "web", lambda report: "n" in report.fields)
    if "daemon" in victims:
        daemon.kill()
    if "keeper" in victims:
        machine.kill_keeper()
    go.touch()
    if "daemon" in victims:
        daemon.start()
    reports = until_state(machine, "web", "done")
    assert [int(one["m"]) for one in reports if "m" in one] == list(range(1, 51))
    said, refused = ({int(one[key]) for one in reports if key in one} for key in ("n", "refused"))
    assert (said | refused, said & refused) == (set(range(51)), set())
    assert not refused or len(victims) == 2
    everything = call(machine, lambda client: _all(client, "web"))
    assert sorted(int(one["f"]) for one in everything if "f" in one) == list(range(1, 51))
    assert len(everything) == 152
    assert agent(machine, "web").lost == {}


async def _all(client: Client, name: str) -> list[dict[str, str]]:
    return [dict(report.fields) async for report in client.reports(name)]


def test_last_words_of_a_container_that_ends_while_the_daemon_is_dead_are_heard(machine: Machine, daemon, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run(
        machine,
        "web",
        f"exec 3<>report; echo n=0 >&3; until [ -e {go} ]; do sleep 0.02; done; echo state=over >&3; echo gone=1 >drop/x",
        "--fs",
        "host",
    )
    until(machine, "web", lambda report: "n" in report.fields)
    daemon.kill()
    go.touch()
    status = next((machine.state_dir / "containers").glob("*/status.json"))
    _until(lambda: '"stopped"' in status.read_text())
    daemon.start()
    until_state(machine, "web", "over")
    assert "files that it dropped then are gone" in event(machine, "agent.lost", "web").attributes["cause"]


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_restarted_container_reports_on_with_new_fields(machine: Machine, daemon, tmp_path: Path) -> None:
    script = f"echo run=$(cat {tmp_path}/n 2>/dev/null) >report; echo x >>{tmp_path}/n; [ $(wc -l <{tmp_path}/n) -ge 2 ] || exit 1; {WAIT}"
    run(machine, "web", script, "--fs", "host", "--restart", "always")
    until(machine, "web", lambda report: report.number == 2)
    assert dict(agent(machine, "web").fields) == {"run": "x"}


def test_those_who_came_to_a_barrier_pass_together(machine: Machine, daemon) -> None:
    for name in ("a", "b"):
        run(machine, name, f"./barrier go 3 30 && echo state=passed >report; {WAIT}")
    for name in ("a", "b"):
        event(machine, "agent.arrived", name)
    table = checked(machine.nbctl("agent", "barriers"))
    assert re.search(r"^go +- +2 +3 +a b ", table, re.MULTILINE)
    assert inside(machine, "a", "./barrier go 3 30; echo $?") == "0\n"
    until_state(machine, "a", "passed")
    until_state(machine, "b", "passed")
    assert json.loads(checked(machine.nbctl("-o", "json", "agent", "barriers"))) == []


def test_a_barrier_gives_up_when_its_time_is_over_even_across_a_restart(machine: Machine, daemon) -> None:
    run(machine, "a", f"./barrier go 2 2; echo state=$? >report; {WAIT}")
    event(machine, "agent.arrived", "a")
    daemon.kill()
    daemon.start()
    until_state(machine, "a", "1")
    assert event(machine, "agent.timed-out", "a").attributes["barrier"] == "go"
    assert inside(machine, "a", "./barrier go x 2>&1; echo $?") == "barrier go: refused\n1\n"


def test_nothing_a_container_puts_into_its_directory_leaves_it(machine: Machine, daemon, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret=1\n")
    attack = (
        f"ln -s {tmp_path}/secret drop/link; mkfifo drop/fifo; mknod drop/zero c 1 5; mkdir drop/dir; touch 'drop/a\nb';"
        f"rm orders; ln -s {tmp_path}/secret orders; rm -r barriers; ln -s {tmp_path} barriers;"
        "mv report gone 2>&1; rm -f report 2>&1; echo state=ready >report"
    )
    run(machine, "web", f"{attack}; {WAIT}", "--fs", "host")
    reports = until_state(machine, "web", "ready")
    assert all("secret" not in one for one in reports)
    assert machine.nbctl("agent", "tell", "web", "secret=2").returncode == 1
    inside(machine, "web", "echo barrier=go count=1 >report")
    event(machine, "agent.passed", "web")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["secret"]
    assert (tmp_path / "secret").read_text() == "secret=1\n"
    _until(lambda: inside(machine, "web", "ls -A drop") == "dir\n")
    assert agent(machine, "web").lost["file"] >= 2  # it may lack the right to make a device
    checked(machine.nbctl("audit"))


def test_only_administrators_tell_privileged_containers_something(machine: Machine, daemon) -> None:
    run(machine, "web", WAIT, "--fs", "host")
    refused = machine.run(
        Path(machine.nbctl("version").args[0]), "-H", f"unix:{machine.run_dir}/nestbed.sock", "agent", "tell", "web", "go"
    )
    assert refused.returncode != 0
    assert "only admin may tell something to the privileged container web" in refused.stderr


# ---- experiments

MEET = """\
experiment: meet
lans: {l: {}}
elements:
  first:
    nics: [l]
    command: cd /run/nestbed/agent; ./barrier go 3 30 && echo state=ready passed={n} >report; exec sleep 1000
    ready: {report: state=ready}
  other[1-2]:
    nics: [l]
    command: cd /run/nestbed/agent; ./barrier go 3 30 && echo state=ready passed={n} >report; exec sleep 1000
    ready: {report: "state=ready passed={n}"}
"""


def test_elements_are_ready_when_they_say_so_and_meet_at_barriers(machine: Machine, daemon, tmp_path: Path) -> None:
    path = tmp_path / "meet.yaml"
    path.write_text(MEET)
    checked(machine.nbctl("up", "-f", str(path)))
    table = checked(machine.nbctl("agent", "ls", "-x", "meet", "other*"))
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["other1", "other2"]
    checked(machine.nbctl("agent", "tell", "-x", "meet", "*", "well", "done"))
    assert inside(machine, "meet.other2", "cat orders") == "well done\n"
    assert " passed=2 " in checked(machine.nbctl("agent", "reports", "-x", "meet", "other2"))
    assert event(machine, "agent.passed", "meet.other2").attributes["element"] == "other2"
    assert "has no element third" in machine.nbctl("agent", "ls", "-x", "meet", "third").stderr
    traffic = json.loads(checked(machine.nbctl("-o", "json", "agent", "traffic", "meet", "first", "--no-stream")))
    assert [(one["name"], one["nics"][0]["lan"]) for one in traffic] == [("first", "meet.l")]
    checked(machine.nbctl("down", "meet"))
    checked(machine.nbctl("audit"))


@pytest.fixture
def pair(tmp_path: Path, owned_cgroups: set[str]) -> Iterator[Segment]:
    segment = Segment(tmp_path / "pair", 2)
    try:
        segment.start()
        yield segment
    finally:
        segment.close()
        owned_cgroups.update(f"nestbed-{machine.node_id}" for machine in segment.machines)


APART = """\
experiment: apart
elements:
  first: {command: cd /run/nestbed/agent; ./barrier go 4 30 && echo state=passed >report; exec sleep 1000}
  other[1-2]: {command: cd /run/nestbed/agent; ./barrier go 4 30 && echo state=passed >report; exec sleep 1000}
"""


@pytest.mark.parametrize("dies", ["nobody", "the daemon that runs the experiment"])
def test_elements_on_two_nodes_meet_even_if_a_daemon_dies_meanwhile(pair: Segment, tmp_path: Path, dies: str) -> None:
    alpha, beta = pair.machines
    vtopo, ptopo = tmp_path / "apart.yaml", tmp_path / "ptopo.yaml"
    vtopo.write_text(APART)
    nodes = f"{{alpha: {{}}, beta: {{address: 'unix://{beta.run_dir}/admin.sock'}}}}"
    ptopo.write_text(f"nodes: {nodes}\nplacement: {{fixed: {{first: alpha, 'other[1-2]': beta}}}}\n")
    checked(alpha.nbctl("up", "-f", str(vtopo), "--on", str(ptopo)))
    places = ((alpha, "apart.first"), (beta, "apart.other1"), (beta, "apart.other2"))
    for machine, name in places:
        event(machine, "agent.arrived", name)
    if dies != "nobody":
        alpha.daemon.kill()
        alpha.daemon.start("--underlay", "u0")
    table = checked(alpha.nbctl("agent", "barriers", "-x", "apart"))
    assert re.search(r"^go +apart +3 +4 +first other1 other2 ", table, re.MULTILINE)
    assert inside(beta, "apart.other1", "./barrier go 4 30; echo $?") == "0\n"
    for machine, name in places:
        until_state(machine, name, "passed")
    checked(alpha.nbctl("down", "apart"))
    checked(beta.nbctl("audit"))


def test_an_element_that_ends_before_it_says_so_is_not_ready(machine: Machine, daemon, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("experiment: bad\nelements:\n  a: {command: 'echo trying; exit 3', ready: {report: state=ready}}\n")
    result = machine.nbctl("up", "-f", str(path))
    assert result.returncode == 1
    assert "a ended with status 3" in result.stderr
