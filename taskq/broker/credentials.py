"""User and password from a provider, which is asked at each new connection.

Tokens of a cloud expire: what let a connection in an hour ago does not let in the next one.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider

from taskq.broker.faults import NeverCredentials, NoCredentials
from taskq.errors import ConfigError

# A password, which is the default user's; or user and password.
Login: TypeAlias = tuple[str] | tuple[str, str]
# What `TaskQ(credentials=...)` takes.
Credentials: TypeAlias = Callable[[], str | Login] | CredentialProvider

USELESS = "credentials= are for a Redis that has users, and {} has none: leave them out"


class Provider(CredentialProvider):
    """Asks what an app was given; what that raises or returns is shown to nobody."""

    def __init__(self, asked: Credentials) -> None:
        self._asked = _checked(asked)

    def __repr__(self) -> str:
        return "<Provider>"

    def get_credentials(self) -> Login:
        """Return user and password, or a password alone.

        Raises:
            NoCredentials: there are none.

        """
        asked = self._asked
        ask = asked.get_credentials if isinstance(asked, CredentialProvider) else asked
        try:
            found: Any = ask()
        except NoCredentials:
            raise
        except Exception as error:  # noqa: BLE001 - of any kind
            raise _raised(error) from None
        return _login(found)

    async def told(self) -> CredentialProvider:
        """Return what tells the same to one connection; what may block does so in a thread.

        Older clients let a provider block the event loop.
        """
        user, password = ("", *await self._await())[-2:]
        return UsernamePasswordCredentialProvider(user, password)

    async def _await(self) -> Login:
        asked = self._asked
        if not isinstance(asked, CredentialProvider) or not _is_awaited(asked):
            return await asyncio.to_thread(self.get_credentials)
        try:
            found: Any = await asked.get_credentials_async()
        except Exception as error:  # noqa: BLE001 - of any kind
            raise _raised(error) from None
        return _login(found)


def _checked(asked: Any) -> Credentials:
    what = "credentials must be a function without arguments, or redis's CredentialProvider"
    if isinstance(asked, type) or not (isinstance(asked, CredentialProvider) or callable(asked)):
        kind = f"the class {asked.__name__}" if isinstance(asked, type) else type(asked).__name__
        msg = f"{what}, not {kind}"
        raise ConfigError(msg)
    if inspect.iscoroutinefunction(asked):
        msg = f"{what}; what is asked by coroutines alone cannot be asked by workers"
        raise ConfigError(msg)
    return cast("Credentials", asked)


def _is_awaited(asked: CredentialProvider) -> bool:
    """Whether it has a way of its own for coroutines; that which is inherited blocks."""
    # Older clients have none.
    name = "get_credentials_async"
    own: Any = getattr(type(asked), name, None)
    return own is not None and own is not getattr(CredentialProvider, name, None)


def _raised(error: Exception) -> NoCredentials:
    """Return what is told of an error; its own words may hold a secret."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    return NoCredentials(
        f"the provider of credentials raised {kind} ({frame.filename}:{frame.lineno})"
    )


def _login(found: Any) -> Login:
    match found:
        case str() | (str(),):
            return (found if isinstance(found, str) else found[0],)
        case ("" | None, str() as password):
            return (password,)
        case (str() as user, str() as password):
            return (user, password)
        case _:
            msg = (
                "the provider of credentials returned neither a password nor (user, password), "
                f"but {type(found).__name__}"
            )
            raise NeverCredentials(msg)
