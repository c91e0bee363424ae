"""nestbed: networks of real software on few machines."""

__version__ = "0.1.0"
