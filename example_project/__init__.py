"""An example: measure a tree of Python files with taskq."""
