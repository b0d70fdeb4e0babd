"""The slots of a child: threads for `def`, one event loop for `async def`."""
