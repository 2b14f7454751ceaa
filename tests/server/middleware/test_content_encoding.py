"""Compressed bodies over a real socket: what is decoded, refused, and bounded."""

from __future__ import annotations

import gzip
import json
import random
import time
import zlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served, only_prompt


def raw_deflate(data: bytes) -> bytes:
    compress = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compress.compress(data) + compress.flush()


def two_members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-Gzip", gzip.compress),
    "gzip in two members": ("gzip", two_members),
    "deflate": ("deflate", zlib.compress),
    "deflate without its frame": ("deflate", raw_deflate),
    "identity": ("identity", bytes),
}


@pytest.mark.parametrize("name", CODINGS)
def test_a_compressed_body_is_decoded(served: Served, name: str) -> None:
    coding, encode = CODINGS[name]
    words = " ".join(random.Random(name).choices(["one", "two", "three"], k=20_000))
    body = encode(json.dumps({"prompt": words[:300], "user": words}).encode())
    answer = served.http.post("/generate", content=body, headers={"content-encoding": coding})
    assert answer.json()["response"] == TEXT and only_prompt(served) == "<s>" + words[:300]


@hypothesis(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(CODINGS)), cuts=st.lists(st.integers(1, 30), max_size=8))
def test_it_may_come_in_pieces(served: Served, name: str, cuts: list[int]) -> None:
    coding, encode = CODINGS[name]
    body = encode(json.dumps({"prompt": "hi"}).encode())
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    pieces = [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    answer = served.http.post("/generate", content=iter(pieces), headers={"content-encoding": coding})
    assert answer.json()["response"] == TEXT


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "no such"])
def test_other_codings_are_refused_with_those_that_are_not(served: Served, coding: str) -> None:
    answer = served.http.post("/v1/chat/completions", content=b"x", headers={"content-encoding": coding})
    assert answer.status_code == 415 and answer.headers["accept-encoding"] == "gzip, deflate"
    assert coding in answer.json()["error"]["message"]


BROKEN = {
    "no gzip": ("gzip", b'{"prompt": "hi"}'),
    "cut": ("gzip", gzip.compress(b'{"prompt": "hi"}')[:-3]),
    "something behind": ("gzip", gzip.compress(b'{"prompt": "hi"}') + b"xyz"),
    "something behind deflate": ("deflate", zlib.compress(b'{"prompt": "hi"}') + b"xyz"),
    "one byte": ("deflate", b"x"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_body_that_is_not_of_its_coding(served: Served, name: str) -> None:
    coding, body = BROKEN[name]
    answer = served.http.post("/generate", content=body, headers={"content-encoding": coding})
    assert answer.status_code == 400 and f"not valid {coding}" in answer.json()["detail"]


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_the_limit_of_bodies_holds_decoded(serve: Serve, encode: Callable[[bytes], bytes]) -> None:
    bomb = encode(bytes(200 << 20))
    with serve(max_body_mib=1) as served:
        assert len(bomb) < 1 << 20
        start = time.monotonic()
        coding = "gzip" if encode is gzip.compress else "deflate"
        answer = served.http.post("/generate", content=bomb, headers={"content-encoding": coding})
        assert answer.status_code == 413 and "larger than 1 MiB" in answer.json()["detail"]
        assert time.monotonic() - start < 10


def test_members_are_counted(served: Served) -> None:
    """Empty ones decode to nothing, however many there are."""
    body, headers = gzip.compress(json.dumps({"prompt": "hi"}).encode()), {"content-encoding": "gzip"}
    few = served.http.post("/generate", content=gzip.compress(b"") * 1000 + body, headers=headers)
    assert few.json()["response"] == TEXT
    many = served.http.post("/generate", content=gzip.compress(b"") * 1024 + body, headers=headers)
    assert (many.status_code, many.json()) == (400, {"detail": "the request body has more than 1,024 gzip members"})
