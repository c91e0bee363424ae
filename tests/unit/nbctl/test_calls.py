"""nbctl against a node that is a dictionary: what is printed, what is asked for, exit codes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from nbctl.__main__ import run
from nbctl.select import AT_ONCE
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import node_pb2

if TYPE_CHECKING:
    from tests.unit.nbctl.conftest import Served

# ---------------------------------------------------------------- listing


def test_ps_shows_what_runs(node: Served) -> None:
    web = node.node.add("web", nics=[api.Nic(lan="lan0", addresses=["10.5.0.1/24", "fd00::1/64"]), api.Nic(lan="lan1")])
    web.spec.process.args.extend(["python3", "-c", "print('\x1b[31m')"])
    node.node.add("done", state=api.CONTAINER_STATE_STOPPED, exit=api.ExitStatus(code=3, shell_code=3))
    code, out, err = node.nbctl("ps")
    assert (code, err) == (0, "")
    head, line = out.splitlines()
    assert head.split() == ["NAME", "KIND", "STATE", "EXIT", "LANS", "ADDRESSES", "CONTROL", "COMMAND", "AGE"]
    assert (
        line.split() == ["web", "process", "running", "-", "lan0,lan1", "10.5.0.1,fd00::1", "python3", "-c", line.split()[8], "0s"]
        or "\x1b" not in line
    )
    assert "done" not in out
    assert [row.split()[:4] for row in node.nbctl("ps", "-a")[1].splitlines()[1:]] == [
        ["web", "process", "running", "-"],
        ["done", "process", "stopped", "3"],
    ]


def test_ps_in_other_forms(node: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    web = node.node.add("web")
    assert node.nbctl("ps", "-a", "-o", "name")[1] == "web\n"
    assert node.nbctl("ps", "-q")[1] == f"{web.id}\n"
    assert json.loads(node.nbctl("-o", "json", "ps")[1])[0]["name"] == "web"
    monkeypatch.setenv("NBCTL_OUTPUT", "yaml")
    assert yaml.safe_load(node.nbctl("ps")[1])[0]["id"] == web.id
    monkeypatch.setenv("NBCTL_OUTPUT", "xml")
    assert node.nbctl("ps")[0] == 2


def test_ps_takes_all_pages(node: Served) -> None:
    for number in range(1203):
        node.node.add(f"h{number}")
    assert len(node.nbctl("ps", "-q")[1].split()) == 1203


def test_inspect_is_the_message_or_a_list(node: Served) -> None:
    node.node.add("web")
    node.node.add("db")
    assert json.loads(node.nbctl("inspect", "web")[1])["name"] == "web"
    assert [item["name"] for item in json.loads(node.nbctl("inspect", "web", "db")[1])] == ["web", "db"]
    assert [item["name"] for item in json.loads(node.nbctl("inspect", "w*")[1])] == ["web"]
    code, out, err = node.nbctl("inspect", "web", "none")
    assert (code, [item["name"] for item in json.loads(out)]) == (1, ["web"])
    assert err == "nbctl: there is no container none\nremedy: see `nbctl ps -a`\n"


# ---------------------------------------------------------------- many at once


def test_rm_of_many_is_concurrent_and_bounded(node: Served) -> None:
    for number in range(AT_ONCE * 4):
        node.node.add(f"h{number}")
    node.node.add("other")
    node.node.together = threading.Barrier(AT_ONCE)
    code, out, err = node.nbctl("rm", "-f", "h*")
    assert (code, err) == (0, "")
    assert out.split() == [f"h{number}" for number in range(AT_ONCE * 4)]
    assert [item.name for item in node.node.containers.values()] == ["other"]
    assert node.node.most_busy == AT_ONCE


def test_all_errors_are_reported_and_the_rest_is_done(node: Served) -> None:
    node.node.add("web")
    node.node.add("db", state=api.CONTAINER_STATE_STOPPED)
    code, out, err = node.nbctl("rm", "none", "web", "db", "gone")
    assert (code, out) == (1, "db\n")
    assert err.splitlines() == [
        "nbctl: there is no container none",
        "remedy: see `nbctl ps -a`",
        "nbctl: web is running",
        "remedy: stop it first, or use rm -f",
        "nbctl: there is no container gone",
        "remedy: see `nbctl ps -a`",
    ]


def test_selection_by_label(node: Served) -> None:
    node.node.add("web").spec.labels["role"] = "server"
    node.node.add("db")
    assert node.nbctl("stop", "-t", "1", "-l", "role=server")[1] == "web\n"
    assert node.node.calls[-1].grace.seconds == 1
    assert node.nbctl("stop", "-l", "role=nothing")[:2] == (0, "")
    assert node.nbctl("stop", "x*")[0] == 1
    assert node.nbctl("rm", "-f", "x*")[0] == 0


def test_the_other_verbs(node: Served) -> None:
    node.node.add("web")
    assert json.loads(node.nbctl("pause", "web", "-o", "json")[1])[0]["state"] == "CONTAINER_STATE_PAUSED"
    assert node.nbctl("unpause", "web")[1] == "web\n"
    assert node.nbctl("kill", "-s", "HUP", "web")[1] == "web\n"
    assert node.node.calls[-1].signal == 1
    assert node.nbctl("wait", "web")[:2] == (0, "137\n")
    assert json.loads(node.nbctl("wait", "web", "-o", "json")[1])[0]["signal"] == 9
    assert node.nbctl("update", "--memory", "64m", "--restart", "on-failure:2", "web")[0] == 0
    update = node.node.calls[-1]
    assert (update.resources.memory_bytes, update.resources.HasField("cpus"), update.restart.max_retries) == (64 << 20, False, 2)
    assert node.nbctl("update", "web")[0] == 2
    assert node.nbctl("rename", "web", "web2")[1] == "web2\n"
    assert node.nbctl("start", "web2")[1] == "web2\n"


# ---------------------------------------------------------------- run, exec, attach


def test_run_passes_output_and_status(node: Served) -> None:
    assert node.binary("run", "process", "--", "say", "out\r\n", "err") == (0, b"out\r\n", b"err")
    assert node.binary("run", "process", "--", "exit", "7") == (7, b"", b"")
    assert node.binary("run", "process", "--", "bytes", "1048576")[1] == bytes(range(256)) * 4096


def test_run_asks_for_what_was_given(node: Served) -> None:
    line = "--name n --lan lan0,ip=10.5.0.1/24,name=eth3 --fs rootfs=/r -e A=b --label x=y --memory 64m --route default,via=10.5.0.2"
    assert node.nbctl("run", "process", "-d", *line.split(), "--", "sh", "-c", "x")[:2] == (0, "n\n")
    spec = node.node.calls[0].spec
    assert (spec.name, spec.kind, spec.labels["x"], spec.process.env["A"]) == ("n", api.CONTAINER_KIND_PROCESS, "y", "b")
    assert (spec.nics[0].lan, spec.nics[0].name, list(spec.nics[0].addresses)) == ("lan0", "eth3", ["10.5.0.1/24"])
    assert (spec.process.fs_mode, spec.process.rootfs, list(spec.process.args)) == (api.FS_MODE_ROOTFS, "/r", ["sh", "-c", "x"])
    assert (spec.routes[0].destination, spec.routes[0].via) == ("default", "10.5.0.2")
    assert node.node.calls[0].request_id


def test_environment(node: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "mine")
    monkeypatch.delenv("NONE", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=file\nB=b=c\nOWN\n")
    assert node.nbctl("create", "process", "--env-file", str(file), "-e", "A=line", "-e", "NONE", "--", "x")[0] == 0
    assert dict(node.node.calls[0].spec.process.env) == {"A": "line", "B": "b=c", "OWN": "mine"}
    code, _, err = node.nbctl("create", "process", "--env-file", str(tmp_path / "none"), "--", "x")
    assert (code, "No such file" in err or "no such file" in err) == (1, True)


@pytest.mark.parametrize(
    ("program", "code", "cause"),
    [
        ("missing", 127, "there is no program missing"),
        ("notexec", 126, "notexec cannot be executed"),
        ("fails", 125, "something else failed"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--rm",), ("-d",)])
def test_a_start_that_fails_leaves_nothing(node: Served, program: str, code: int, cause: str, options: tuple[str, ...]) -> None:
    ended, out, err = node.nbctl("run", "process", *options, "--", program)
    assert (ended, out) == (code, "")
    assert err.startswith(f"nbctl: {cause}\nremedy: ")
    assert err.count("\n") == 2
    assert node.node.containers == {}


def test_run_rm_removes(node: Served) -> None:
    assert node.nbctl("run", "process", "--rm", "--", "exit", "3")[0] == 3
    assert node.node.containers == {}
    assert node.node.calls[0].spec.auto_remove


def test_an_unknown_exit_status_is_a_failure(node: Served) -> None:
    code, _, err = node.nbctl("run", "process", "--name", "web", "--", "unknown")
    assert (code, err.splitlines()) == (125, ["nbctl: how web ended is not known: the keeper died", "remedy: see `nbctl logs web`"])
    assert node.nbctl("run", "process", "--", "vanish")[0] == 125


def test_run_refuses_before_it_makes_anything(node: Served) -> None:
    assert node.nbctl("run", "process", "--name", "taken", "--", "x")[0] == 125
    assert node.nbctl("run", "process", "--rm", "--restart", "always", "--", "x")[0] == 2
    assert node.nbctl("run", "process", "-it", "--", "x")[0] == 2
    assert node.nbctl("run", "process", "--", "\udcff")[0] == 2
    assert node.node.containers == {}


def test_exec(node: Served) -> None:
    node.node.add("web")
    assert node.binary("exec", "-w", "/tmp", "--user", "1:2", "-e", "A=b", "web", "say", "o", "e") == (0, b"o", b"e")
    start = node.node.calls[-1]
    assert (start.cwd, start.user, start.env["A"], start.stdin, start.tty) == ("/tmp", "1:2", "b", False, False)
    assert node.nbctl("exec", "web", "exit", "4")[0] == 4
    assert node.nbctl("exec", "web", "missing")[0] == 127
    assert node.nbctl("exec", "none", "x")[0] == 125


# ---------------------------------------------------------------- logs, stats, events, node


def test_logs_are_byte_for_byte(node: Served) -> None:
    node.node.add("web")
    node.node.log = [
        api.LogEntry(stream=api.LOG_STREAM_STDOUT, data=b"\xff\x1b[31m", partial=True),
        api.LogEntry(stream=api.LOG_STREAM_STDERR, data=b"err\n"),
        api.LogEntry(stream=api.LOG_STREAM_STDOUT, data=b"rest\n"),
    ]
    assert node.binary("logs", "web") == (0, b"\xff\x1b[31mrest\n", b"err\n")
    node.binary("logs", "--tail", "5", "--since", "2026-01-02T03:04:05Z", "-f", "web")
    request = node.node.calls[-1]
    assert (request.tail, request.since.seconds, request.follow) == (5, 1767323045, True)
    assert len(node.nbctl("-o", "json", "logs", "web")[1].splitlines()) == 3


def test_stats_once(node: Served) -> None:
    node.node.add("web")
    code, out, _ = node.nbctl("stats", "--no-stream")
    assert (code, out.splitlines()[1].split()[:2]) == (0, ["web", "50.0%"])
    assert json.loads(node.nbctl("stats", "--no-stream", "-o", "json")[1])[0]["cpu_seconds"] == 0.0
    assert node.nbctl("stats", "--interval", "1ms")[0] == 2
    assert node.nbctl("top")[0] == 2


def test_events(node: Served) -> None:
    code, out, err = node.nbctl("events", "--type", "container.*", "--history")
    assert (code, out) == (0, "2026-01-02T03:04:05Z container.exited web\\x1b code=0\n")
    assert err.startswith("nbctl: 2 events were dropped")
    assert (list(node.node.calls[-1].types), node.node.calls[-1].history) == (["container.*"], True)
    assert json.loads(node.nbctl("events", "-o", "json")[1])["attributes"] == {"code": "0"}


def test_info(node: Served) -> None:
    code, out, _ = node.nbctl("info")
    assert code == 0
    assert "It cannot:\n  netem          no sch_netem -> delay and loss are not offered\n" in out
    assert json.loads(node.nbctl("info", "-o", "json")[1])["abilities"][0]["name"] == "cgroup-memory"
    assert node.nbctl("node", "info") == (code, out, "")


def test_audit(node: Served) -> None:
    assert node.nbctl("audit") == (0, "clean: 12 objects compared\n", "")
    node.node.leftovers = [node_pb2.Leftover(problem="extra", kind="link", name="nbp0", detail="of nobody")]
    code, out, _ = node.nbctl("audit")
    assert (code, out.splitlines()[1].split()) == (1, ["extra", "link", "nbp0", "of", "nobody"])
    code, out, _ = node.nbctl("audit", "-o", "json")
    assert (code, json.loads(out)["leftovers"][0]["kind"]) == (1, "link")


def test_version(node: Served) -> None:
    assert node.nbctl("version")[1].split() == ["nbctl", "0.1.0", "nestbedd", "9.9"]
    assert json.loads(node.nbctl("version", "-o", "json")[1]) == {"client": "0.1.0", "node": "9.9"}


# ---------------------------------------------------------------- LANs


def test_lans(node: Served) -> None:
    assert node.nbctl("lan", "create", "lan0", "--subnet", "10.5.0.0/24", "--mtu", "9000", "--label", "a=b")[:2] == (0, "lan0\n")
    assert (node.node.calls[-1].mtu, node.node.calls[-1].labels["a"]) == (9000, "b")
    assert node.nbctl("lan", "ls")[1].splitlines()[1].split() == ["lan0", "10.5.0.0/24", "-", "9000", "-", "0", "0s"]
    assert node.nbctl("lan", "ls", "-o", "name")[1] == "lan0\n"
    assert json.loads(node.nbctl("lan", "inspect", "lan0")[1])["mtu"] == 9000
    assert node.nbctl("lan", "connect", "lan0", "web", "--ip", "10.5.0.9/24")[1] == "eth1 02:00:00:00:00:01 10.5.0.9/24\n"
    assert node.nbctl("lan", "disconnect", "lan0", "web", "--name", "eth1")[1] == "web\n"
    assert (node.node.calls[-1].lan, node.node.calls[-1].container, node.node.calls[-1].nic) == ("lan0", "web", "eth1")
    assert node.nbctl("lan", "rm", "lan*")[:2] == (0, "lan0\n")
    assert node.node.lans == {}


# ---------------------------------------------------------------- no node


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-H", str(tmp_path), "ps"]) == 1
    shown = capsys.readouterr().err
    assert f"unix://{tmp_path}/" in shown
    assert "start nestbedd" in shown
    assert shown.count("\n") == 2
    assert run(["-H", str(tmp_path), "run", "process", "--", "true"]) == 125
    assert run(["-H", "nonsense", "ps"]) == 1


# ---------------------------------------------------------------- nodes inside


def test_on_names_the_node_inside(node: Served) -> None:
    for words, name in (
        (("--on", "vm1", "--name", "web"), "vm1/web"),
        (("--on", "vm1/vm2/"), "vm1/vm2/"),
        (("--name", "vm1/web"), "vm1/web"),
    ):
        assert node.nbctl("run", "process", "-d", *words, "--", "cat")[0] == 0
        assert node.node.calls[-1].spec.name == name
    assert node.nbctl("run", "qemu", "--node", "--name", "vm1")[0] == 0
    assert node.node.calls[-1].spec.qemu.node


def test_ps_tells_of_nodes_that_do_not_answer(node: Served) -> None:
    node.node.add("web")
    node.node.unreachable = [
        node_pb2.NodeFault(node="vm1", state=node_pb2.NODE_STATE_SILENT, detail="it does not answer any more"),
        node_pb2.NodeFault(node="vm2", state=node_pb2.NODE_STATE_STOPPED, detail="its virtual machine does not run"),
    ]
    code, out, err = node.nbctl("ps", "-o", "name")
    assert (code, out) == (0, "web\n")
    assert err == "nbctl: node vm1 is silent: it does not answer any more\nremedy: `nbctl node ls` shows when it is ready\n"
