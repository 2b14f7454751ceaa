"""`locallab serve --draft-model` as a process: two tiny models, spoken to with openai-python."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.support import tiny_gguf
from tests.support.served_process import serving


def test_a_chat_with_a_draft_model(tmp_path: Path) -> None:
    """Its answer is that without one; what was accepted is in the usage if anything was drafted."""
    model = tiny_gguf.write(tmp_path / "large.gguf", "llama")
    draft = tiny_gguf.write(tmp_path / "small.gguf", "llama", seed=1)
    answers = []
    for flags in ((), ("--draft-model", str(draft))):
        with serving(model, "--context", "256", "--parallel", "2", *flags) as process:
            assert [each["id"] for each in httpx.get(f"{process.url}/v1/models").json()["data"]].count("small") == 0

            async def run(process=process) -> str:
                async with process.client as client:
                    messages = [{"role": "user", "content": "abc"}]
                    done = await client.chat.completions.create(model="any", messages=messages, temperature=0, max_tokens=60)
                    assert done.usage and done.usage.completion_tokens == 60
                    return done.choices[0].message.content or ""

            answers.append(asyncio.run(run()))
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            assert (str(draft) in mapped) == bool(flags), "the draft model is loaded where it is named"
    assert answers[0] == answers[1] != ""
