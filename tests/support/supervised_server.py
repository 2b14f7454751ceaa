"""A server under the supervisor that does what its clients say: python supervised_server.py MAX_DEATHS LOG_FORMAT [OOM_KILLS].

OOM_KILLS is a file with a number that stands in for the kernel's count. Each connection sends one line of words, and gets one
line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from locallab import supervisor


def serve(max_deaths: str, log_format: str, oom_kills: str = "") -> None:
    if oom_kills:
        supervisor.oom_kills = lambda: int(Path(oom_kills).read_text())
    child = supervisor.Supervisor().run()
    if early := os.environ.get("EARLY"):
        end(early)
    listener = child.listener or socket.create_server(("127.0.0.1", 0))
    child.bound(listener, int(max_deaths), log_format)
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stops.append(number))
    if not child.supervision.restarts:
        print(listener.getsockname()[1], flush=True)
    if late := os.environ.get("LATE"):
        end(late)
    child.ready()
    listener.settimeout(0.05)
    while not stops or os.environ.get("STUBBORN"):
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        with client, client.makefile("rw") as file:
            print(json.dumps(obey(child, *file.readline().split())), file=file, flush=True)
    sys.exit(7)


def obey(child: supervisor.Child, word: str = "", *values: str) -> Any:
    told = child.supervision
    match word:
        case "tell":
            aside = {model: each.reason for model, each in told.set_aside.items()}
            return {"pid": os.getpid(), "restarts": told.restarts, "cause": told.cause, "aside": aside, "ram": told.ram}
        case "begin":
            return [told.box.begin(value) for value in values]
        case "loading":
            told.box.loading, told.box.ram = values[0], 1000
        case "loaded":
            told.box.loading, told.box.loaded = "", list(values)
        case "spawn":
            return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
        case "orphan":
            return int(subprocess.run(["sh", "-c", "sleep 0.01 > /dev/null & echo $!"], capture_output=True, check=True).stdout)
        case "end":
            end(values[0])
    return None


def end(how: str) -> None:
    """End by the signal of that name, or with that exit status."""
    if how.isdecimal():
        os._exit(int(how))
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(60)


if __name__ == "__main__":
    serve(*sys.argv[1:])
