"""By which other paths something hidden could be reached."""

from __future__ import annotations

import pytest

from nestbed.process.masks import aliases, parse_mounts

MOUNTINFO = rb"""
22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 254:0 /var/lib /mnt/state\040of rw - ext4 /dev/vda rw
24 22 254:0 /var/lib/nestbed/containers /srv/bundles rw - ext4 /dev/vda rw
25 22 254:0 /etc /mnt/etc rw - ext4 /dev/vda rw
26 22 254:16 / /data rw - ext4 /dev/vdb rw
27 22 254:16 /keys /etc/keys rw - ext4 /dev/vdb rw
28 22 0:9 / /var/lib/nestbed2 rw - tmpfs none rw
""".strip()


@pytest.mark.parametrize(
    ("path", "others"),
    [
        ("/var/lib/nestbed", {"/mnt/state of/nestbed", "/srv/bundles"}),
        ("/etc/shadow", {"/mnt/etc/shadow"}),
        ("/etc/keys/node.pem", {"/data/keys/node.pem"}),
        ("/data/keys", {"/etc/keys"}),
        ("/data", {"/etc/keys"}),
        ("/var/lib/nestbed2", set()),
        ("/var/lib/nestbed2/lock", set()),
        ("/boot", set()),
    ],
)
def test_other_paths_to_the_same_files(path: str, others: set[str]) -> None:
    assert aliases([path], parse_mounts(MOUNTINFO)) == others


def test_a_mount_over_another_counts() -> None:
    mounts = parse_mounts(MOUNTINFO + b"\n29 22 254:32 /sub /data rw - ext4 /dev/vdc rw\n30 22 254:32 / /all rw - ext4 /dev/vdc rw")
    assert aliases(["/data/x"], mounts) == {"/all/sub/x"}
