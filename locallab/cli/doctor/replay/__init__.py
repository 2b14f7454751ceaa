"""A replay of other clients' requests, which checks that the answers of a server would not break them."""

from locallab.cli.doctor.replay.clients.all import EXCHANGES
from locallab.cli.doctor.replay.exchange import Exchange
from locallab.cli.doctor.replay.run import Outcome, replay

__all__ = ["EXCHANGES", "Exchange", "Outcome", "replay"]
