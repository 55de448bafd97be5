"""The ``robustcore`` command: one file a command."""
