"""Where things are in the keeper's own mount namespace, of which every container's begins as a copy; ``template`` makes it."""

TEMPLATE, NEW_ROOT, SCRATCH, BUNDLES, DEVICES, DEVICES_KVM = "/t", "/r", "/s", "/b", "/d", "/k"
MASK_DIR, MASK_FILE = "/m/dir", "/m/file"
