"""taskq and its peers side by side: one server, one task, one run."""
