"""Where things are in the keeper's own mount namespace, of which every container's begins as a copy; ``template`` makes it."""

TEMPLATE, NEW_ROOT, SCRATCH, BUNDLES, DEVICES, MASK_DIR, MASK_FILE = "/t", "/r", "/s", "/b", "/d", "/m/dir", "/m/file"
