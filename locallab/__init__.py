"""LocalLab: a private, fast, OpenAI-style inference endpoint on your own machine.

with locallab.start(model="smollm2:135m") as server:      # a server in the background
    server.openai().chat.completions.create(...)

with locallab.Engine("smollm2:135m") as engine:            # a model without one
    engine.chat([{"role": "user", "content": "Hello!"}])
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from locallab.inprocess import Answer, Engine, Server, start
    from locallab.version import __version__

__all__ = ["Answer", "Engine", "Server", "__version__", "start"]


def __getattr__(name: str) -> object:
    """Import the public names on first use: they need llama.cpp and the server, and `import locallab` stays fast and small."""
    if name == "__version__":
        from locallab.version import __version__

        return __version__
    if name not in __all__:
        raise AttributeError(f"module 'locallab' has no attribute {name!r}")
    from locallab import inprocess

    return getattr(inprocess, name)
