"""What clients of other makers send, replayed: whether a server answers each of them in a way it does not break on."""

from locallab.cli.doctor.replay.clients.all import EXCHANGES
from locallab.cli.doctor.replay.exchange import Exchange
from locallab.cli.doctor.replay.run import Outcome, replay

__all__ = ["EXCHANGES", "Exchange", "Outcome", "replay"]
