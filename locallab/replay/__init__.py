"""A replay of other clients' requests, which checks that the answers of a server would not break them."""

from locallab.replay.clients.all import EXCHANGES
from locallab.replay.exchange import Exchange
from locallab.replay.run import Outcome, Replayed, replay, replayed

__all__ = ["EXCHANGES", "Exchange", "Outcome", "Replayed", "replay", "replayed"]
