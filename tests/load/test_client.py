from __future__ import annotations

import pytest

from locallab.load.client import Answer, ResponseReader


class TestResponseReader:
    HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    CHUNKED = HEAD + b"7\r\ndata: a\r\n4;x=y\r\n\r\n\r\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n"

    def test_gives_the_same_lines_wherever_the_bytes_are_split(self) -> None:
        for place in range(len(self.CHUNKED)):
            reader = ResponseReader()
            lines = reader.feed(self.CHUNKED[:place]) + reader.feed(self.CHUNKED[place:])
            assert lines == [b"data: a", b"", b"data: b", b""], place
            assert (reader.status, reader.ended, reader.body) == (200, True, b"")

    def test_ends_at_the_content_length(self) -> None:
        reader = ResponseReader()
        assert reader.feed(b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nno") == []
        assert not reader.ended
        reader.feed(b"pe")
        assert (reader.status, reader.body, reader.ended) == (500, b"nope", True)

    def test_reads_a_body_without_length_until_the_connection_ends(self) -> None:
        reader = ResponseReader()
        assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\na\nb") == [b"a"]
        assert not reader.ended

    def test_refuses_what_is_not_http(self) -> None:
        with pytest.raises(ValueError, match="not HTTP"):
            ResponseReader().feed(b"SSH-2.0\r\n\r\n")


class TestAnswer:
    @pytest.mark.parametrize(
        ("data", "arrivals"),
        [
            (b'{"choices":[{"delta":{"content":"a"}}]}', 1),
            (b'{"choices": [{"delta": {"content": "a"}}]}', 1),
            (b'{"choices":[{"delta":{"reasoning_content":"a"}}]}', 1),
            (b'{"choices":[{"delta":{"content":""}}]}', 0),
            (b'{"choices":[{"delta":{"role":"assistant","content":null}}]}', 0),
            (b'{"choices":[{"delta":{"refusal":"\\"content\\":\\"a\\""}}]}', 0),
        ],
        ids=["text", "spaces", "reasoning", "empty", "null", "quoted"],
    )
    def test_counts_events_with_text(self, data: bytes, arrivals: int) -> None:
        taken = Answer(1, 0.0, status=200)
        taken.take(b"data: " + data, 1.0)
        assert sum(map(len, taken.arrivals.values())) == arrivals

    def test_keeps_choices_apart_and_waits_for_all(self) -> None:
        taken = Answer(4, 0.0, 2, status=200)
        for now, index in enumerate((1, 0, 1)):
            taken.take(b'data: {"choices":[{"index": %d,"delta":{"content":"\\"index\\":7"}}]}' % index, now)
        assert taken.arrivals == {1: [0, 2], 0: [1]}
        taken.take(b'data: {"choices":[{"index":1,"finish_reason":"length"}]}', 3.0)
        taken.take(b"data: [DONE]", 3.0)
        taken.close(4.0)
        assert taken.error == "cut off: no finish_reason"

    def test_prefers_the_servers_count_of_tokens(self) -> None:
        taken = Answer(3, 0.0, status=200)
        taken.take(b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"length"}]}', 1.0)
        assert taken.tokens == 1
        usage = b'{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}'
        taken.take(b'data: {"choices":[],"usage":%s}' % usage, 1.0)
        taken.take(b"data: [DONE]", 1.0)
        taken.close(2.0)
        assert (taken.tokens, taken.prompt_tokens, taken.cached_tokens, taken.finish_reasons) == (3, 7, 5, {0: "length"})
        assert (taken.error, taken.cut_off) == (None, False)

    @pytest.mark.parametrize(("n", "tokens"), [(1, 5), (2, 8)], ids=["of one choice: running", "of several: one each"])
    def test_takes_several_counts_of_tokens(self, n: int, tokens: int) -> None:
        taken = Answer(8, 0.0, n, status=200)
        for count in (3, 5):
            taken.take(b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":%d}}' % count, 1.0)
        assert (taken.tokens, taken.prompt_tokens) == (tokens, 7)

    @pytest.mark.parametrize(
        ("lines", "error"),
        [
            ([b'data: {"choices":[{"finish_reason":"stop"}]}'], "cut off: no [DONE]"),
            ([b": ping", b"data: [DONE]"], "cut off: no finish_reason"),
        ],
        ids=["no done", "no finish reason"],
    )
    def test_that_stops_early_is_cut_off(self, lines: list[bytes], error: str) -> None:
        taken = Answer(1, 0.0, status=200)
        for line in lines:
            taken.take(line, 1.0)
        taken.close(2.0)
        assert (taken.error, taken.cut_off) == (error, True)

    @pytest.mark.parametrize(
        ("usage", "events", "exact", "wrong"),
        [
            (4, 4, True, False),
            (4, 2, True, False),
            (3, 3, True, True),
            (5, 4, True, True),
            (4, 5, True, True),
            (3, 3, False, False),
            (0, 0, False, True),
            (5, 1, False, True),
        ],
        ids=[
            "asked for",
            "several an event",
            "too short",
            "too long",
            "more events",
            "may end",
            "nothing",
            "may end, too long",
        ],
    )
    def test_has_the_length_that_was_asked_for(self, usage: int, events: int, exact: bool, wrong: bool) -> None:
        taken = Answer(4, 0.0, exact=exact, arrivals={0: [1.0] * events}, usage_tokens=usage)
        assert taken.wrong_length == wrong

    def test_keeps_its_text_if_that_is_wanted(self) -> None:
        for kept, text in (([], 'a "b"'), (None, "")):
            taken = Answer(2, 0.0, kept=kept)
            for piece in (b"a ", b'\\"b\\"'):
                taken.take(b'data: {"choices":[{"delta":{"content":"%s"}}]}' % piece, 1.0)
            assert taken.text == text
