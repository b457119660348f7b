"""What a user does with a broadcast: honestly, or strategically."""

from clients.base import Answer, Client
from clients.honest import HonestClient
from clients.poisoned import PoisonedClient, RelabelledClient
from clients.strategic import AttackSetup, StrategicClient

__all__ = [
    "Answer",
    "AttackSetup",
    "Client",
    "HonestClient",
    "PoisonedClient",
    "RelabelledClient",
    "StrategicClient",
]
