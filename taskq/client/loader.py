"""A name on the command line becomes an app: `proj`, `proj:app`, `pkg.module:attribute`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from taskq.client.app import TaskQ
from taskq.errors import ConfigError


def load_app(name: str, modules: Iterable[str] = ()) -> TaskQ:
    """Import an app, what it includes, and further modules.

    The current directory is importable.

    Raises:
        ConfigError: one line that says what was found and what to type.

    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module_name, _, attribute = name.partition(":")
    app = _app_in(_import(module_name), attribute)
    for pattern in (*app.include, *modules):
        for included in _expand(pattern):
            _import(included)
    return app


def _import(name: str) -> ModuleType:
    if name.endswith(".py") or "/" in name:
        suggestion = name.removesuffix(".py").strip("./").replace("/", ".")
        msg = f"{name!r} is a path; type the module's name: {suggestion}"
        raise ConfigError(msg)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            msg = f"no module named {name!r}: looked in {Path.cwd()} and on sys.path"
            raise ConfigError(msg) from None
        raise ConfigError(_where(name, error)) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(_where(name, error)) from error


def _where(name: str, error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return (
        f"cannot import {name!r}: {type(error).__name__}: {text} ({frame.filename}:{frame.lineno})"
    )


def _app_in(module: ModuleType, attribute: str) -> TaskQ:
    if attribute:
        app = getattr(module, attribute, None)
        if isinstance(app, TaskQ):
            return app
        found = "nothing" if app is None else f"a {type(app).__name__}"
        msg = f"{module.__name__}:{attribute} is {found}, not a TaskQ{_hint(module)}"
        raise ConfigError(msg)
    apps = _apps_of(module)
    if len({id(app) for app in apps.values()}) == 1:
        return next(iter(apps.values()))
    if not apps:
        msg = f"no TaskQ in {module.__name__!r}: make one, or name its place, `module:attribute`"
        raise ConfigError(msg)
    msg = f"several apps in {module.__name__!r}{_hint(module)}"
    raise ConfigError(msg)


def _apps_of(module: ModuleType) -> dict[str, TaskQ]:
    return {name: value for name, value in vars(module).items() if isinstance(value, TaskQ)}


def _hint(module: ModuleType) -> str:
    names = [f"{module.__name__}:{name}" for name in _apps_of(module)]
    return f"; type one of: {', '.join(names)}" if names else ""


def _expand(pattern: str) -> list[str]:
    """Return the modules that a pattern names: `shop.jobs.*` is each one in the package."""
    if not pattern.endswith(".*"):
        return [pattern]
    package = _import(pattern[:-2])
    if not hasattr(package, "__path__"):
        msg = f"include {pattern!r}: {package.__name__!r} is a module, not a package"
        raise ConfigError(msg)
    found = pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    return [package.__name__, *sorted(module.name for module in found)]
