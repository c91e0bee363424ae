"""The second disk of a machine that boots as its makers meant it to: what cloud-init looks for (data source NoCloud), and the agent.

cloud-init has the agent run as a service; all that the machine is to be, the agent is told at every start, as in every other machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from nestbed.errors import HostLacks, translated
from nestbed.qemu import confined

LABEL = "cidata"
SEED = "seed.iso"
_SECONDS = 60.0
_START = (
    "m=$(mktemp -d) && mount -o ro /dev/disk/by-label/cidata $m && $m/agent install && umount $m"
    " && systemctl start --no-block nestbed-agent.service"
)


def files(machine_id: str, hostname: str) -> dict[str, str]:
    """What cloud-init reads. No users are made, whose numbers the testbed's may need; interfaces are the agent's."""
    config = {
        "users": [],
        "bootcmd": [["sh", "-c", _START]],
        "ssh_genkeytypes": ["ed25519"],
    }
    return {
        "meta-data": json.dumps({"instance-id": f"nestbed-{machine_id}", "local-hostname": hostname}) + "\n",
        "user-data": "#cloud-config\n" + json.dumps(config) + "\n",
        "network-config": json.dumps({"version": 1, "config": []}) + "\n",
    }


async def make(directory: Path, agent: Path, *, machine_id: str, hostname: str) -> None:
    """Write ``seed.iso`` in the directory of a machine.

    Raises:
        HostLacks: xorriso is missing, or fails.
    """
    folder = directory / "seed.new"
    with translated(f"writing {directory / SEED}", path=directory):
        folder.mkdir(mode=0o700)
        for name, content in files(machine_id, hostname).items():
            (folder / name).write_text(content)
        shutil.copy(agent, folder / "agent")
        (folder / "agent").chmod(0o755)
    words = ("xorriso", "-as", "mkisofs", "-quiet", "-V", LABEL, "-J", "-R", "-o", str(directory / SEED), str(folder))
    code, text = await confined.said(words, seconds=_SECONDS, directory=directory)
    if code == confined.NOT_FOUND:
        raise confined.missing("xorriso", "")
    if code:
        why = text.strip().rpartition("\n")[2]
        raise HostLacks(
            f"the disk for cloud-init cannot be made: xorriso: {why}", reason="SEED_FAILED", remedy="see the node's disk", cause=why
        )
    with translated(f"writing {directory / SEED}", path=directory):
        (directory / SEED).chmod(0o444)
        shutil.rmtree(folder)
