"""Secrets that go out with a question and must come back: drawn, and compared.

They are drawn from the operating system, not from a run's seed: they move nothing.
"""

from __future__ import annotations

import secrets

NONCE_BYTES = 16
"""128 bits: nobody meets one by trying, however many replies a site carries."""


def fresh() -> str:
    """Return a secret that no question had before.

    >>> len(fresh()) == 2 * NONCE_BYTES and fresh() != fresh()
    True
    """
    return secrets.token_hex(NONCE_BYTES)


def same(expected: str, said: str) -> bool:
    """Whether two are equal, in a time that does not depend on where they differ.

    >>> same("ab", "ab"), same("ab", "é")
    (True, False)
    """
    return secrets.compare_digest(expected.encode(), said.encode())
