"""ssh into a virtual machine over the control network, as a user of the node with a key in the shared file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guest.conftest import Site

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]
UID = 12345


def ssh(site: Site, key: Path, user: str, *words: str) -> subprocess.CompletedProcess[str]:
    address = site.inspect("vm1")["control"]["addresses"][0].partition("/")[0]
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes")
    line = ("ssh", "-i", key, *(word for option in options for word in ("-o", option)), f"{user}@{address}", "--", *words)
    return site.machine.run(*line, timeout_seconds=60)


def test_users_log_in_with_their_keys(site: Site, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    # A home in the shared file system, as on the node; the user itself is entered in the guest, so that the node keeps its own.
    home = site.proj / "alice"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh" / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    for path in (home, home / ".ssh", home / ".ssh" / "authorized_keys"):
        os.chown(path, UID, UID)
    address = site.inspect("vm1")["control"]["addresses"][0].partition("/")[0]
    site.inside("vm1", "sh", "-c", f"echo alice:x:{UID}:{UID}::{home}:/bin/sh >>/etc/passwd; echo alice:x:{UID}: >>/etc/group")
    site.inside("vm1", "sh", "-c", "echo 'alice:*:19000:0:99999:7:::' >>/etc/shadow; echo 'alice ALL=(ALL) NOPASSWD: ALL' >>/etc/sudoers")
    while f"{address}:22 " not in (listening := site.inside("vm1", "ss", "-Hltn")):
        continue
    assert listening.count(":22 ") == 1, listening  # on the control NIC alone
    shown = ssh(site, key, "alice", "id; hostname; touch ~/was-here; sudo -n id -u")
    assert shown.returncode == 0, shown.stderr
    assert f"uid={UID}(alice)" in shown.stdout
    assert shown.stdout.splitlines()[1:] == ["vm1", "0"]
    assert (home / "was-here").stat().st_uid == UID
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    assert ssh(site, stranger, "alice", "true").returncode == 255


def test_host_key_is_the_machines_own(site: Site) -> None:
    address = site.inspect("vm1")["control"]["addresses"][0].partition("/")[0]
    while f"{address}:22 " not in site.inside("vm1", "ss", "-Hltn"):
        continue
    own = site.machine.run("ssh-keyscan", "-t", "ed25519", address).stdout.split()[2]
    for path in Path("/etc/ssh").glob("ssh_host_*_key"):
        public = path.with_suffix(".pub").read_text().split()[1]
        assert public != own
        assert site.machine.nbctl("exec", "vm1", "--", "cat", str(path)).returncode != 0
    assert ":*:" in site.inside("vm1", "cat", "/etc/shadow")
    assert "$" not in site.inside("vm1", "cat", "/etc/shadow")
