"""One file per kernel facility, one thin function per system call; raises OSError only and holds no policy."""
