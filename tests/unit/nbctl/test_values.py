"""nbctl: values of the command line, and the command line as a whole."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbctl import values
from nbctl.completion import FILES, generate
from nbctl.context import address
from nbctl.failure import OK, USAGE, Quit, Usage
from nbctl.parser import VERBS, build, find_command, parse

# ---------------------------------------------------------------- values

UNITS = {"": 0, "k": 1, "K": 1, "kb": 1, "KiB": 1, "m": 2, "MiB": 2, "M": 2, "g": 3, "GB": 3, "t": 4, "b": 0, "B": 0}


@given(st.integers(1, 8191), st.sampled_from(sorted(UNITS)))
def test_size_is_the_number_times_the_unit(number: int, unit: str) -> None:
    assert values.size(f"{number}{unit}") == number << (10 * UNITS[unit])


@pytest.mark.parametrize(("text", "count"), [("1.5k", 1536), ("0.5g", 1 << 29), ("64m", 64 << 20), (" 7 ", 7), ("10 MiB", 10 << 20)])
def test_size(text: str, count: int) -> None:
    assert values.size(text) == count


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "64q", "1e3", "m", "1..2m", "8192p", "99999999999999999999", "٣m", "64mm", "0x10", "inf", "1,5g"]
)
def test_no_size(text: str) -> None:
    with pytest.raises(Usage):
        values.size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(Usage):
        assert 0 < values.size(text) <= values.BYTES_MAX


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("1.5s", 1.5), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172800), ("0", 0)]
)
def test_duration(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "10x", "1h30", "-5", "1 h", "99999999999d"])
def test_no_duration(text: str) -> None:
    with pytest.raises(Usage):
        values.duration(text)


def test_moment() -> None:
    assert values.moment("2026-01-02T03:04:05Z") == 1767323045
    assert values.moment("2026-01-02T03:04:05.5+02:00") == pytest.approx(1767315845.5)
    assert values.moment("10m") == pytest.approx(time.time() - 600, abs=5)
    with pytest.raises(Usage):
        values.moment("2026-13-02T03:04:05Z")


PLAIN = st.text(string.ascii_letters + string.digits + "_.:/-", min_size=1, max_size=20)


@given(PLAIN, st.lists(PLAIN, max_size=4), st.one_of(st.just(""), PLAIN), st.one_of(st.just(""), PLAIN), st.randoms())
def test_lan_reads_what_was_written(lan: str, addresses: list[str], mac: str, name: str, random: object) -> None:
    options = [f"ip={address}" for address in addresses]
    options += [f"mac={mac}"] * bool(mac) + [f"name={name}"] * bool(name)
    others = [option for option in options if not option.startswith("ip=")]
    random.shuffle(others)  # type: ignore[attr-defined]
    read = values.lan(",".join([lan, *(option for option in options if option.startswith("ip=")), *others]))
    assert read == values.LanArgument(lan, name, mac, tuple(addresses))


@given(st.text(max_size=40))
def test_any_text_is_a_lan_or_refused(text: str) -> None:
    with contextlib.suppress(Usage):
        assert values.lan(text).lan


def test_lan_knows_the_nearest_option() -> None:
    with pytest.raises(Usage) as refusal:
        values.lan("lan0,mca=02:00:00:00:00:01")
    assert refusal.value.message == "--lan lan0: there is no option 'mca'"
    assert refusal.value.remedy == "did you mean mac=?"


@pytest.mark.parametrize("text", ["", ",ip=10.0.0.1/8", "ip=10.0.0.1/8", "lan0,ip", "lan0,ip=", "lan0,mac=a,mac=b", "lan0,,"])
def test_no_lan(text: str) -> None:
    with pytest.raises(Usage):
        values.lan(text)


@pytest.mark.parametrize(("text", "number"), [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("hup", 1), ("RTMIN+1", 35), ("64", 64)])
def test_signal(text: str, number: int) -> None:
    assert values.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "TREM", "-9", "SIG"])
def test_no_signal(text: str) -> None:
    with pytest.raises(Usage):
        values.signal_number(text)


def test_other_values() -> None:
    assert values.mount("/srv:/data:ro") == ("/srv", "/data", True)
    assert values.mount("/srv:/data") == ("/srv", "/data", False)
    assert values.route("10.6.0.0/24,via=10.5.0.1") == ("10.6.0.0/24", "10.5.0.1")
    assert values.fs("overlay=/keep") == ("overlay", "/keep")
    assert values.fs("host-ro") == ("host-ro", "")
    assert values.restart("on-failure:3") == ("on-failure", 3)
    assert values.pair("a=b=c") == ("a", "b=c")
    assert values.cpus("0.5") == 0.5
    assert values.tail("all") is None


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (values.mount, "data:/data"),
        (values.mount, "/data"),
        (values.mount, "/a:/b:rx"),
        (values.mount, "/a::ro"),
        (values.route, "10.6.0.0/24"),
        (values.route, "10.6.0.0/24,dev=eth0"),
        (values.fs, "rootfs"),
        (values.fs, "host=/x"),
        (values.fs, "overlay=keep"),
        (values.fs, "overlay="),
        (values.fs, "hots"),
        (values.restart, "always:3"),
        (values.restart, "on-failure:x"),
        (values.pair, "=x"),
        (values.pair, "x"),
        (values.cpus, "nan"),
        (values.cpus, "-1"),
        (values.variable, "a b=c"),
        (values.whole(1, 5), "6"),
    ],
)
def test_refused(read: object, text: str) -> None:
    with pytest.raises(Usage) as refusal:
        read(text)  # type: ignore[operator]
    assert refusal.value.remedy


# ---------------------------------------------------------------- the command line


def test_run_takes_everything_that_others_rely_on() -> None:
    line = (
        "-H unix:///x -o json run process --name n --lan lan0,ip=10.5.0.1/24,ip=fd00::1/64,mac=02:00:00:00:00:01,name=eth7 -d --rm -i -t"
        " -e A=b -e HOME -w /tmp --user 1:2 --fs overlay=/k -v /s:/d:ro --cpus 0.5 --memory 64m --pids-limit 9 --cap-add SYS_PTRACE"
        " --cap-drop ALL --sysctl net.ipv4.ip_forward=1 --route 10.6.0.0/24,via=10.5.0.2 --gateway 10.5.0.2 --hostname h --label a=b"
        " --restart no --init -- sh -c 'x' -- y"
    )
    verb, _, args = parse(line.split())
    assert verb == "run process"
    assert args.program == ["sh", "-c", "'x'", "--", "y"]
    assert (args.host, args.output, args.name, args.detach, args.rm) == ("unix:///x", "json", "n", True, True)
    assert args.lans == [values.LanArgument("lan0", "eth7", "02:00:00:00:00:01", ("10.5.0.1/24", "fd00::1/64"))]
    assert (args.memory, args.cpus, args.pids_limit) == (64 << 20, 0.5, 9)
    assert args.mounts == [("/s", "/d", True)]


def test_a_program_needs_no_dashes() -> None:
    args = parse(["run", "process", "--rm", "-it", "ls", "-l", "--color", "--", "--rm"]).args
    assert args.program == ["ls", "-l", "--color", "--", "--rm"]
    assert args.rm
    assert args.interactive
    args = parse(["exec", "-it", "web", "sh", "-c", "x"]).args
    assert (args.container, args.program) == ("web", ["sh", "-c", "x"])
    assert parse(["exec", "web", "--", "-weird"]).args.program == ["-weird"]


def test_global_options_stand_before_and_after_the_verb() -> None:
    for line in (["-o", "name", "ps", "-a"], ["ps", "-a", "-o", "name"], ["-o", "json", "ps", "-a", "-oname"]):
        assert parse(line).args.output == "name"


def test_dashes_end_options_elsewhere_too() -> None:
    assert parse(["rm", "-f", "--", "a", "b"]).args.names == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message", "remedy"),
    [
        ("pss", "`nbctl` has no verb 'pss'", "did you mean `nbctl ps`?"),
        ("list", "`nbctl` has no verb 'list'", "did you mean `nbctl ps`?"),
        ("lan crate x", "`nbctl lan` has no verb 'crate'", "did you mean `nbctl lan create`?"),
        ("run lxc -- x", "'lxc' is no kind of container", "write `nbctl run process [OPTION]... -- CMD`"),
        ("ps --al", "`nbctl ps` has no option --al", "did you mean --all?"),
        ("run process --nmae x -- y", "`nbctl run process` has no option --nmae", "did you mean --name?"),
        ("exec --usr 0 web id", "`nbctl exec` has no option --usr", "did you mean --user?"),
        ("-o jsn ps", "'jsn' is no form of output", "did you mean json?"),
        ("ps -z", "`nbctl ps` has no option -z", "see `nbctl ps --help` for those it has"),
        ("exec web", "there is no program to run", "see `nbctl exec --help`"),
        ("kill -s TREM x", "'TREM' is no signal", "did you mean TERM?"),
        ("audit now", "`nbctl audit` does not know what to do with 'now'", "see `nbctl audit --help`"),
    ],
)
def test_what_is_wrong_is_answered_with_what_is_right(line: str, message: str, remedy: str) -> None:
    with pytest.raises(Usage) as refusal:
        parse(line.split())
    assert (refusal.value.message, refusal.value.remedy, refusal.value.code) == (message, remedy, USAGE)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Quit) as ended:
        parse([*verb.split(), "--help"])
    assert ended.value.code == OK
    shown = capsys.readouterr().out
    assert f"usage: nbctl {verb}" in shown
    assert f"Examples:\n  nbctl {verb.removeprefix('node ')}" in shown or f"nbctl {verb}" in shown.partition("Examples:")[2]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if not verb.startswith("node ")])
def test_the_examples_are_right(verb: str) -> None:
    for line in find_command(verb).examples.splitlines():
        words = list(itertools.takewhile(lambda word: word not in {"|", "<"} and ">" not in word[:2], shlex.split(line)))
        if words[0] == "nbctl" and "$(nbctl" not in line:
            assert parse(words[1:]).verb == verb or words[1:] == ["start", "web"]


def test_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["--help"], ["help"]):
        with pytest.raises(Quit):
            parse(line)
        shown = capsys.readouterr().out
        assert all(verb in shown for verb in VERBS)
    with pytest.raises(Quit) as ended:
        parse([])
    assert ended.value.code == USAGE


@pytest.mark.parametrize("shell", FILES)
def test_completion_files_are_up_to_date_and_hold_everything(shell: str) -> None:
    from importlib import resources

    text = resources.files("nbctl.completion").joinpath(FILES[shell]).read_text()
    assert text == generate(shell), "run python -m nbctl.completion"
    for verb in VERBS:
        assert f'"{verb}")' in text
        options = build(verb, find_command(verb))._option_string_actions
        assert all(option in text for option in options)


# ---------------------------------------------------------------- the node's address


@pytest.mark.parametrize(
    ("host", "environment", "expected"),
    [
        (None, {}, "unix:///run/nestbed/{}"),
        (None, {"NBCTL_RUN_DIR": "/r"}, "unix:///r/{}"),
        (None, {"NBCTL_HOST": "tcp://n:1", "NBCTL_RUN_DIR": "/r"}, "tcp://n:1"),
        ("unix:///x/admin.sock", {"NBCTL_HOST": "tcp://n:1"}, "unix:///x/admin.sock"),
        ("/x/nestbed.sock", {}, "/x/nestbed.sock"),
        ("unix:///r", {}, "unix:///r/{}"),
        ("tcp://n:1", {}, "tcp://n:1"),
        ("nonsense", {}, "nonsense"),
    ],
)
@pytest.mark.parametrize(("uid", "socket"), [(0, "admin.sock"), (1000, "nestbed.sock")])
def test_address(
    host: str | None, environment: dict[str, str], expected: str, uid: int, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert address(host, environment) == expected.format(socket)
