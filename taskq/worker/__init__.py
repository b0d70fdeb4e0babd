"""The worker: a supervisor, and the children in which tasks run."""
