"""Virtual machines: QEMU under the contract of ``nestbed.runtime``. ``docs/vm.md`` says how one is made and who does what."""
