"""The `locallab` command, also as `python -m locallab`. `locallab serve` runs under a supervisor, which must import little."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command; with `serve`, this process becomes the supervisor and a fork of it goes on."""
    server = None
    if sys.argv[1:2] == ["serve"]:
        from locallab import supervisor

        if supervisor.wanted(sys.argv[1:], os.environ):
            server = supervisor.Supervisor().run()
    from locallab import cli

    cli.main(obj=server)


if __name__ == "__main__":
    main()
