"""The runtime for process containers: a keeper that clones, confines, logs and reaps, and the daemon's side of it."""
