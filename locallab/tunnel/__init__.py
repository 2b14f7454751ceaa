"""A public address through ngrok or Cloudflare: opened, tested, watched, reopened when lost, with its traffic counted."""

from locallab.tunnel.announcement import announcement
from locallab.tunnel.facts import TunnelFacts
from locallab.tunnel.tunnel import Tunnel, configured_tunnel
from locallab.tunnel.usage import Usage

__all__ = ["Tunnel", "TunnelFacts", "Usage", "announcement", "configured_tunnel"]
