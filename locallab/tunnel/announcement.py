"""What is printed once the tunnel is open. Pure."""

from __future__ import annotations

import io
import json

KEY = "$LOCALLAB_API_KEY"
"""Stands for a key that we cannot show, because only its hash is kept."""

HELLO = [{"role": "user", "content": "Hello!"}]


def announcement(url: str, model: str, key: str | None = None) -> str:
    """The public address as text and as a QR code, the key if it can be shown, and how clients use both."""
    shown = key or "one of `locallab keys`; put it into LOCALLAB_API_KEY for the lines below"
    return f"""\
Public address: {url}
  key      {shown}
{qr(url)}
From anywhere:
  {curl(url, model, key)}
or in Python:
{python(url, model, key)}
Who has the address and the key can use this server. When it stops, the address is closed.
"""


def qr(url: str) -> str:
    """A QR code for a terminal, two modules a character."""
    import segno  # as pyngrok: only with a tunnel, and not quick to import

    out = io.StringIO()
    segno.make(url, error="l").terminal(out, compact=True, border=2)
    return out.getvalue()


def curl(url: str, model: str, key: str | None) -> str:
    """A shell command that asks the server."""
    body = json.dumps({"model": model, "messages": HELLO})
    headers = f"""-H "Authorization: Bearer {key or KEY}" -H 'Content-Type: application/json'"""
    return f"curl {url}/v1/chat/completions {headers} -d '{body}'"


def python(url: str, model: str, key: str | None) -> str:
    """A Python program that asks the server with openai-python, indented."""
    given = json.dumps(key) if key else 'os.environ["LOCALLAB_API_KEY"]'
    lines = [
        *([] if key else ["import os"]),
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key={given})',
        f"answer = client.chat.completions.create(model={json.dumps(model)}, messages={json.dumps(HELLO)})",
        "print(answer.choices[0].message.content)",
    ]
    return "\n".join(f"  {line}" for line in lines)
