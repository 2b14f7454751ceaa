"""A public address through ngrok: opened, tried, watched, opened again when lost, counted. `Tunnel` is its face."""

from locallab.tunnel.announcement import announcement
from locallab.tunnel.facts import TunnelFacts
from locallab.tunnel.tunnel import Tunnel, wanted
from locallab.tunnel.usage import Usage

__all__ = ["Tunnel", "TunnelFacts", "Usage", "announcement", "wanted"]
