"""The text printed once the tunnel is open. Pure."""

from __future__ import annotations

import io
import json

KEY = "$LOCALLAB_API_KEY"
"""Stands for a key that cannot be shown because only its hash is stored."""

HELLO = [{"role": "user", "content": "Hello!"}]


def announcement(url: str, model: str, key: str | None = None) -> str:
    """Return the public address as text and as a QR code, the key if it is known, and client examples."""
    shown = key or "one of `locallab keys`; set LOCALLAB_API_KEY to it for the lines below"
    return f"""\
Public address: {url}
  key      {shown}
{qr(url)}
From anywhere:
  {curl(url, model, key)}
or in Python:
{python(url, model, key)}
Anyone with the address and the key can use this server. The address closes when the server stops.
"""


def qr(url: str) -> str:
    """Return a QR code for a terminal, two modules per character."""
    import segno  # slow to import, and only needed with a tunnel

    out = io.StringIO()
    segno.make(url, error="l").terminal(out, compact=True, border=2)
    return out.getvalue()


def curl(url: str, model: str, key: str | None) -> str:
    """Return a shell command that sends a chat request."""
    body = json.dumps({"model": model, "messages": HELLO})
    headers = f"""-H "Authorization: Bearer {key or KEY}" -H 'Content-Type: application/json'"""
    return f"curl {url}/v1/chat/completions {headers} -d '{body}'"


def python(url: str, model: str, key: str | None) -> str:
    """Return a Python program that sends a chat request with openai-python, indented."""
    shown = json.dumps(key) if key else 'os.environ["LOCALLAB_API_KEY"]'
    lines = [
        *([] if key else ["import os"]),
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key={shown})',
        f"answer = client.chat.completions.create(model={json.dumps(model)}, messages={json.dumps(HELLO)})",
        "print(answer.choices[0].message.content)",
    ]
    return "\n".join(f"  {line}" for line in lines)
