"""The LAN plane: what carries frames between the members of a LAN."""
