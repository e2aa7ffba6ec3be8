"""The command line: ``sampdetox`` and ``python -m sampdetox_transforms``."""
