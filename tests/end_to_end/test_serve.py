"""`locallab serve` as a process, with the real model, spoken to with openai-python and httpx over real sockets."""

from __future__ import annotations

import asyncio
import math
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from locallab.engine.scheduler import WORTH_WAITING
from tests.support.live_engine import TIE
from tests.support.served_process import Process, counting, serving
from tests.support.wait import until


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[Process]:
    with serving(model_path, "--context", "2048") as process:
        yield process


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24} | more


async def go_on(client: openai.AsyncOpenAI, prompt: str) -> tuple[str, str]:
    """The text and the finish reason of a streamed raw completion."""
    chunks = [
        chunk.choices[0]
        async for chunk in await client.completions.create(model="any", prompt=prompt, temperature=0, max_tokens=8, stream=True)
        if chunk.choices
    ]
    return "".join(c.text for c in chunks), chunks[-1].finish_reason or ""


async def stream(client: openai.AsyncOpenAI, text: str, **more: object) -> tuple[str, str, int]:
    """The text, the finish reason and the cached tokens of a streamed answer."""
    parts: list[str] = []
    reason = ""
    cached = -1
    options = {"include_usage": True}
    async for chunk in await client.chat.completions.create(**chat(text, stream=True, stream_options=options, **more)):  # type: ignore[call-overload]
        if chunk.usage:
            cached = chunk.usage.prompt_tokens_details.cached_tokens
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            reason = choice.finish_reason or reason
    return "".join(parts), reason, cached


def test_32_streams_at_once_are_each_what_they_are_alone(server):
    starts = range(3, 227, 7)

    async def run() -> None:
        async with server.client as client:
            together = await asyncio.gather(*(go_on(client, counting(start)) for start in starts))
            for start, (text, reason) in zip(starts, together, strict=True):
                assert text.strip().startswith(str(start + 25))
                alone = await client.completions.create(model="any", prompt=counting(start), temperature=0, max_tokens=8)
                assert (alone.choices[0].text, alone.choices[0].finish_reason) == (text, reason)

    assert len(starts) == 32
    asyncio.run(run())


def test_a_model_with_a_sliding_window_and_without_a_chat_template(gemma: Path) -> None:
    async def run(process: Process) -> None:
        async with process.client as client:
            text, reason = await go_on(client, counting(3))
            assert (text.strip()[:2], reason) == ("28", "length")
            with pytest.raises(openai.BadRequestError, match=r"no chat template.*--chat-template"):
                await stream(client, "Name a colour.", max_tokens=4)

    with serving(gemma, "--context", "2048") as process:
        assert httpx.get(f"{process.url}/system/info").json()["model"]["architecture"] == "gemma3"
        asyncio.run(run(process))


def test_greedy_is_the_same_with_and_without_a_cached_prefix(server):
    async def ask(client: openai.AsyncOpenAI, prompt: str) -> tuple[str, int]:
        answer = await client.completions.create(model="any", prompt=prompt, temperature=0, max_tokens=8)
        assert answer.usage and answer.usage.prompt_tokens_details
        return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens or 0

    async def run() -> None:
        async with server.client as client:
            for start in range(303, 359, 7):
                prompt = counting(start)
                cold, warm, longer = [await ask(client, p) for p in (prompt, prompt, f"{prompt} {start + 25},")]
                assert cold[1] < 20 and warm[1] > 50 and longer[1] > 50
                assert cold[0] == warm[0]
                assert cold[0].strip().startswith(str(start + 25)) and longer[0].strip().startswith(str(start + 26))

    asyncio.run(run())


def test_a_client_that_leaves_in_mid_stream_frees_its_room(server):
    async def run() -> None:
        async with server.client as client:
            events = await client.chat.completions.create(**chat("Tell me a long story.", stream=True, max_tokens=1500))
            async for _ in events:
                break
            await events.close()

    asyncio.run(run())
    until(lambda: server.stats()["running"] == 0)


def test_a_prompt_beyond_the_context_is_refused_before_any_work(server):
    async def run() -> openai.BadRequestError:
        async with server.client as client:
            with pytest.raises(openai.BadRequestError) as error:
                await stream(client, "word " * 3000)
            return error.value

    steps = server.stats()["steps"]
    error = asyncio.run(run())
    assert error.code == "context_length_exceeded"
    assert error.body["n_ctx"] == 2048 and error.body["n_prompt_tokens"] > 3000  # type: ignore[index]
    assert server.stats()["steps"] == steps


def test_logprobs_of_the_answer_and_the_prompt(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    asked = chat("Name a colour.", logprobs=True, top_logprobs=3, max_tokens=6)
    answer = client.chat.completions.create(**asked)
    content = answer.choices[0].logprobs.content
    assert "".join(each.token for each in content) == answer.choices[0].message.content
    for each in content:
        assert each.top_logprobs[0].token == each.token and 0 < math.exp(each.logprob) <= 1
    streamed = client.chat.completions.create(**asked, stream=True)
    again = [each for chunk in streamed for choice in chunk.choices if choice.logprobs for each in choice.logprobs.content]
    assert len(again) == len(content)
    first = {top.token: top.logprob for top in again[0].top_logprobs}
    assert first[content[0].token] == pytest.approx(content[0].logprob, abs=TIE)

    prompt = counting(3)
    scored = client.completions.create(model="any", prompt=prompt, echo=True, logprobs=1, max_tokens=0, temperature=0)
    told = scored.choices[0].logprobs
    assert scored.choices[0].text == prompt == "".join(told.tokens) and told.token_logprobs[0] is None
    assert all(prompt.startswith(token, at) for token, at in zip(told.tokens, told.text_offset, strict=True))
    assert sum(told.token_logprobs[-20:]) > -5 and scored.usage.completion_tokens == 0


def test_answers_to_one_prompt_compute_it_once(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    before = server.stats()
    answer = client.completions.create(model="any", prompt=counting(403), n=4, best_of=8, max_tokens=4, temperature=1, seed=5)
    after = server.stats()
    computed = after["prompt_tokens"] - before["prompt_tokens"] - (after["cached_tokens"] - before["cached_tokens"])
    few = 7 * WORTH_WAITING  # each of the others may compute so many itself rather than wait
    assert len(answer.choices) == 4 and computed <= answer.usage.prompt_tokens + few < 2 * answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 32


def test_a_prompt_is_told_why_it_is_computed_again(server):
    def ask(prompt: str, stream: bool) -> tuple[int, int, str, str]:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 4, "stream": stream}
        told = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300).headers["x-locallab-cache"]
        found = re.fullmatch(r"hit=(\d+)/(\d+); tier=(\w+); stop=(.+)", told)
        assert found
        return int(found[1]), int(found[2]), found[3], found[4]

    def sums() -> dict[str, dict[str, int]]:
        return httpx.get(f"{server.url}/system/info").json()["model"]["cache"]  # type: ignore[no-any-return]

    before, prompt = sums(), "A line that nobody has sent before: " + counting(503)
    for stream in (False, True):
        prompt = prompt[::-1]  # both times a new one
        hit, total, tier, stop = ask(prompt, stream)
        assert hit < 20 and stop == ("first time" if not hit else f"diverged at {hit}")
        assert ask(prompt, stream) == (total - 1, total, "resident", "end")
        hit, longer, tier, stop = ask(prompt + " and more", stream)
        assert total - 2 <= hit < longer and (tier, stop) == ("resident", f"diverged at {hit}")
    after = sums()
    assert after["requests"]["end"] == before["requests"]["end"] + 2
    assert sum(after["requests"].values()) == sum(before["requests"].values()) + 6
    assert after["hit_tokens"]["resident"] > before["hit_tokens"]["resident"]


def test_metrics_tell_what_was_done(server):
    def figures() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return {
            line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("locallab_") and "le=" not in line
        }

    async def run() -> tuple[str, str, int]:
        async with server.client as client:
            return await stream(client, "Tell me a story.", max_tokens=8, extra_body={"ignore_eos": True})

    before = figures()
    asyncio.run(run())
    after = figures()
    grown = {name.removeprefix("locallab_"): after[name] - before.get(name, 0) for name in after}
    assert grown["completion_tokens_total"] == 8 and grown["prompt_tokens_total"] > 8
    assert grown["time_to_first_token_seconds_count"] == 1 and grown["inter_token_seconds_count"] == 7
    assert grown["step_seconds_count"] >= 8 and min(grown["step_seconds_sum"], grown["inter_token_seconds_sum"]) > 0
    assert after["locallab_kv_capacity_tokens"] >= after["locallab_kv_used_tokens"] > 8


def test_a_long_prompt_does_not_stop_the_others(server):
    async def run() -> None:
        async with server.client as client:
            events = await client.chat.completions.create(
                **chat("Count from one to two hundred.", stream=True, max_tokens=120, extra_body={"ignore_eos": True})
            )
            seen = 0
            long: asyncio.Task[object] | None = None
            while_prefilling = 0
            async for _ in events:
                seen += 1
                if seen == 5:
                    long = asyncio.create_task(stream(client, "word " * 1500, max_tokens=1))
                while_prefilling += long is not None and not long.done()
            assert long
            await long
            assert while_prefilling > 10

    asyncio.run(run())


def test_sigterm_lets_a_stream_finish_and_exits_0(model_path):
    with serving(model_path, "--grace", "60") as server:

        async def run() -> tuple[str, str, int]:
            async with server.client as client:
                task = asyncio.create_task(stream(client, "Tell me a story.", max_tokens=40, extra_body={"ignore_eos": True}))
                while not server.stats()["running"]:
                    await asyncio.sleep(0.02)
                server.process.send_signal(signal.SIGTERM)
                return await task

        text, reason, _ = asyncio.run(run())
        assert reason == "length" and text
        assert server.process.wait(30) == 0


def test_sigint_without_grace_ends_a_stream_with_an_error_and_exits_0(model_path):
    with serving(model_path, "--grace", "0") as server:

        async def run() -> None:
            async with server.client as client:
                with pytest.raises(openai.APIError):
                    events = await client.chat.completions.create(
                        **chat("Tell me a story.", stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
                    )
                    async for _ in events:
                        if server.process.poll() is None:
                            server.process.send_signal(signal.SIGINT)
                            break
                    async for _ in events:
                        pass

        asyncio.run(run())
        assert server.process.wait(30) == 0
