"""nestbedd's settings, and how it refuses to run."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nestbed.errors import InvalidArgument, NotFound
from nestbedd import settings

CHECKOUT = Path(__file__).resolve().parents[2]
TLS = ("--tls-cert", "/c", "--tls-key", "/k", "--tls-client-ca", "/a")


def config(tmp_path: Path, text: str) -> str:
    (tmp_path / "nestbedd.toml").write_text(text)
    return str(tmp_path / "nestbedd.toml")


def test_defaults() -> None:
    found = settings.read([])
    assert (found.run_dir, found.state_dir, found.listen, found.log_level) == (Path("/run/nestbed"), Path("/var/lib/nestbed"), (), "info")
    assert found.name


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = config(tmp_path, 'name = "filed"\nrun_dir = "/filed"\n')
    found = settings.read(["--config", path, "--run-dir", "/given"])
    assert (found.name, found.run_dir, found.state_dir) == ("filed", Path("/given"), Path("/var/lib/nestbed"))


def test_the_default_file_is_right_line_by_line() -> None:
    text = (CHECKOUT / "cmd" / "nestbedd" / "nestbedd.toml").read_text()
    shown = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ") and " = " in line]
    keys = {key for line in shown for key in tomllib.loads(line)}
    assert keys <= set(settings.Settings.__dataclass_fields__)
    assert tomllib.loads(text) == {}


def test_underlays(tmp_path: Path) -> None:
    assert settings.read([]).underlay == ()
    found = settings.read(["--underlay", "u1,u2", "--underlay", "u3", "--relay", "userspace"])
    assert (found.underlay, found.relay) == (("u1", "u2", "u3"), "userspace")
    assert settings.read(["--config", config(tmp_path, 'underlay = ["u1"]\nrelay = "kernel"\n')]).underlay == ("u1",)


def test_addresses() -> None:
    found = settings.read(["--listen", "tcp://192.0.2.1:5", "--listen", "tcp://[::1]", "--listen", "tcp://host:0", *TLS])
    assert found.listen == (("192.0.2.1", 5), ("::1", 7411), ("host", 0))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--name", "a/b"), "BAD_SETTING"),
        (("--name", "x" * 10_000), "BAD_SETTING"),
        (("--run-dir", "relative"), "BAD_SETTING"),
        (("--control-nic", "a b"), "BAD_SETTING"),
        (("--control-nic", "eth0", "--underlay", "eth0"), "BAD_SETTING"),
        (("--control-subnet", "10.0.0.1/8"), "BAD_SUBNET"),
        (("--control-subnet", "fd00::/64"), "BAD_SUBNET"),
        (("--state-dir", "/a/../b"), "BAD_SETTING"),
        (("--log-level", "loud"), "BAD_SETTING"),
        (("--relay", "tunnel"), "BAD_SETTING"),
        (("--underlay", "a,"), "BAD_SETTING"),
        (("--underlay", "a/b"), "BAD_SETTING"),
        (("--underlay", "x" * 16), "BAD_SETTING"),
        (("--underlay", "lo"), "BAD_SETTING"),
        (("--underlay", "u1", "--underlay", "u1"), "BAD_SETTING"),
        (("--listen", "tcp://192.0.2.1:5"), "TLS_REQUIRED"),
        (("--tls-cert", "/c"), "TLS_INCOMPLETE"),
        (("--listen", "192.0.2.1:5", *TLS), "BAD_SETTING"),
        (("--listen", "tcp://:5", *TLS), "BAD_SETTING"),
        (("--listen", "tcp://h:99999", *TLS), "BAD_SETTING"),
        (("--listen", "unix:///x", *TLS), "BAD_SETTING"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        settings.read(arguments)
    assert caught.value.reason == reason
    assert caught.value.remedy
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("text", "reason", "remedy"),
    [
        ('runs_dir = "/x"', "UNKNOWN_SETTING", "run_dir"),
        ("[tls]\ncert = 1", "UNKNOWN_SETTING", "tls"),
        ("name = 5", "BAD_SETTING", "text"),
        ('listen = "tcp://h:1"', "BAD_SETTING", "list"),
        ("name = ", "BAD_CONFIG", "correct"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, reason: str, remedy: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        settings.read(["--config", config(tmp_path, text)])
    assert caught.value.reason == reason
    assert remedy in caught.value.remedy


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        settings.read(["--config", str(tmp_path / "absent")])


def run(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [*prefix, sys.executable, "-m", "nestbedd", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, env=environment)


def test_wrong_settings_end_with_2_and_two_lines() -> None:
    result = run("--listen", "tcp://192.0.2.1:5")
    assert result.returncode == 2
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["nestbedd", "remedy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
def test_without_root_it_refuses(tmp_path: Path) -> None:
    result = run("--run-dir", str(tmp_path), prefix=("setpriv", "--reuid=65534", "--clear-groups"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "must run as root" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the daemon does")
def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--run-dir", str(tmp_path / "file" / "run"), "--state-dir", str(tmp_path / "state"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "remedy: " in result.stderr
