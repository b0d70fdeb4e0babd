"""Names: what a task is called when its decorator does not say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskq.errors import ConfigError


def default_name(fn: Callable[..., Any]) -> str:
    """Return `module.qualname`, the module by the name under which a worker imports it."""
    name = getattr(fn, "__qualname__", "").replace(".<locals>", "")
    if not name or "<" in name:
        msg = f"{fn!r} has no name of its own: give the task one with name="
        raise ConfigError(msg)
    return f"{importable_module(fn.__module__)}.{name}"


def importable_module(module: str) -> str:
    """Return the name of a module; that of a script run as `__main__` as others see it."""
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules[module]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if file is None:
        return "interactive"
    path = Path(file).resolve().with_suffix("")
    root = Path(sys.path[0] or ".").resolve()
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return ".".join(inside.parts)
