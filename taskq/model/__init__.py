"""Plain values: no Redis, no threads, no event loop."""
