"""Surrogates: imaginary honest users with whom a strategic one guesses what the real ones send."""

from __future__ import annotations

from clients.honest import HonestClient


class SurrogateClient(HonestClient):
    """The honest code on datasets of the attacker's own, with a memory apart from honest users'.

    Its user ids are those of datasets: a strategic user's own, or ids past the last user, whose
    data nobody else holds.
    """

    @property
    def record(self) -> str:
        """Name of a memory apart from that of honest users on the same node."""
        return f"surrogates-{self.users[0]}-{self.kind}"
