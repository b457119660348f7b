"""Surrogates: imaginary honest users with whom a strategic one guesses what the real ones send."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from clients.honest import HonestClient


class SurrogateClient(HonestClient):
    """The honest code on datasets of the attacker's own, with a memory apart from honest users'.

    Its user ids are those of datasets: a strategic user's own, or ids past the last user, whose
    data nobody else holds.
    """

    def recall(self, name: str) -> dict[str, Tensor]:
        """Return what surrogates with these datasets remember."""
        return super().recall(self._apart(name))

    def remember(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors apart from those of honest users on the same node."""
        super().remember(self._apart(name), tensors)

    def _apart(self, name: str) -> str:
        return f"surrogates-{self.users[0]}-{name}"
