"""API keys: where they come from, and whose a request's is."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError

_ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    """One caller's key, as a hash: its text is kept nowhere. `name` is for logs and limits."""

    name: str
    digest: bytes = field(repr=False)  # SHA-256 of the key
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that a server takes. Without `user` keys its routes are open to all; those that change
    the server's state need an admin key if there is one, else what the others need."""

    user: tuple[Key, ...] = ()
    admin: Key | None = None

    def find(self, secrets: Iterable[bytes]) -> Key | None:
        """The key that one of `secrets` is, in a time that does not depend on which, or how nearly."""
        found = None
        known = (*self.user, self.admin) if self.admin else self.user
        for digest in [_digest(secret) for secret in secrets]:
            for key in known:
                if hmac.compare_digest(key.digest, digest):
                    found = key
        return found


def read_keys(keys: Sequence[str], file: str | None, admin: str | None) -> KeyRing:
    """The keys given one by one, those of `file`, and the admin's. `file` has a key and perhaps a name on
    each line; empty lines and those that begin with # do not count.

    Raises ConfigError, which never has a key in it.
    """
    user = [
        _key(secret, f"key-{number}", f"api_key number {number}") for number, secret in enumerate(keys, 1)
    ]
    if file is not None:
        user += _read_file(Path(file).expanduser())
    every = [*user]
    if admin is not None:
        every.append(_key(admin, _ADMIN, "admin_api_key", is_admin=True))
    for kind, values in (("key", [key.digest for key in every]), ("name", [key.name for key in every])):
        if len(set(values)) < len(values):
            raise ConfigError(
                f"the API keys have a {kind} twice; accepted are keys that differ, also in their names, from"
                " each other and from the admin's"
            )
    return KeyRing(tuple(user), every[-1] if admin is not None else None)


def _read_file(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"api_key_file is {str(path)!r}, which cannot be read: {reason}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"line {number} of api_key_file {path}"
        if len(words) > 2:
            raise ConfigError(f"{where} has {len(words)} words; accepted are a key, and a name after it")
        keys.append(_key(words[0], words[1] if len(words) == 2 else f"line-{number}", where))
    if not keys:
        raise ConfigError(f"api_key_file is {str(path)!r}, which has no key; accepted is one on each line")
    return keys


def _key(secret: str, name: str, where: str, is_admin: bool = False) -> Key:
    if not secret or not all("!" <= char <= "~" for char in secret):
        raise ConfigError(f"{where} is no key; accepted are ASCII characters without spaces, one at least")
    return Key(name, _digest(secret.encode()), is_admin)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
