"""Secrets at rest: sealed with AES-256-GCM under the master key, each bound to the row that it belongs to.

The key comes from the setting SECRET_KEY, or else from ``secret.key`` in the data folder, made on first need and
readable by its owner only. A sealed text moved to another row does not open.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
from pathlib import Path

KEY_FILE = "secret.key"
_VERSION = "1."
_NONCE = 12
_KEY = 32


class SealBroken(Exception):
    """A sealed text can't be opened: another key sealed it, or it was changed, or belongs elsewhere."""


class Seal:
    """Seals and opens short texts. ``secret`` is the setting; without it the key lies in ``folder``."""

    def __init__(self, secret: str | None, folder: Path) -> None:
        self._secret = secret
        self._folder = folder
        self._known: bytes | None = None

    def seal(self, text: str, place: str) -> str:
        """The text, encrypted for this ``place`` (such as ``project|server``). Raises OSError if no key can be kept."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE)
        sealed = nonce + AESGCM(self._key()).encrypt(nonce, text.encode(), place.encode())
        return _VERSION + base64.b64encode(sealed).decode()

    def open(self, sealed: str, place: str) -> str:
        """The text. Raises SealBroken."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            raw = base64.b64decode(sealed.removeprefix(_VERSION), validate=True)
            return AESGCM(self._key()).decrypt(raw[:_NONCE], raw[_NONCE:], place.encode()).decode()
        except (InvalidTag, ValueError, binascii.Error):
            raise SealBroken(
                "It was encrypted with another key: give every process the same MIRRORFLOW_SECRET_KEY, "
                "or give the secret again."
            ) from None

    def _key(self) -> bytes:
        if self._known is None:
            self._known = _derived(self._secret) if self._secret else _kept(self._folder / KEY_FILE)
        return self._known


def _derived(secret: str) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), _KEY, salt=None, info=b"mirrorflow master key").derive(secret.encode())


def _kept(path: Path) -> bytes:
    """The key in the file, made if there is none. Two processes that make it at once end with one and the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(base64.b64encode(os.urandom(_KEY)).decode())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    try:
        key = base64.b64decode(path.read_text().strip(), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != _KEY:
        raise OSError(f"{path} holds no key of {_KEY} bytes in base64; restore it from a backup.")
    return key
