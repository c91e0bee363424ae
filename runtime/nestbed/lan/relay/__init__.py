"""The relay: the process that carries what the kernel's fast path does not, and delays frames where the kernel cannot.

``python -m nestbed.lan.relay RUN_DIR``. One per node. It is told what to do by a file (``wanted``), tells what became of it in another
(``status``), and counts in a third that is mapped into memory (``tally``): there is no dialogue that a death could interrupt.
"""

LOCK_FILE, STATUS_FILE = "relay.lock", "relay.status.json"
