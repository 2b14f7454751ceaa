from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchlib import agreement  # noqa: E402
from benchlib.agreement import Agreement, ClientLeft, Token, Transcript, compare  # noqa: E402
from benchlib.traffic import Request, Traffic  # noqa: E402

SERVER = SCRIPTS.parent / "tests/support/sse_server.py"


def token(piece: str, logprob: float = -1.0, **others: float) -> Token:
    return Token(piece.encode(), logprob, {name.encode(): value for name, value in {piece: logprob, **others}.items()})


class TestCompare:
    @pytest.mark.parametrize(
        ("one", "other", "expected"),
        [
            ([token("a", -1.0), token("b", -2.0)], [token("a", -1.25), token("b", -2.0)], Agreement(None, 0.0, 0.25)),
            ([token("a"), token("b", -1.0, c=-1.25)], [token("a"), token("c", -1.0, b=-1.5)], Agreement(1, 0.5, 0.0)),
            ([token("b", -1.0, c=-3.0)], [token("c", -1.0, b=-1.5)], Agreement(0, 2.0, 0.0)),
            ([token("b")], [token("c", -1.0, b=-1.5)], Agreement(0, math.inf, 0.0)),
            ([token("a")], [token("a"), token("b")], Agreement(1, math.inf, 0.0)),
            ([token("b", c=-1.0), token("x")], [token("c", b=-1.0), token("y")], Agreement(0, 0.0, 0.0)),
            ([], [], Agreement(0, math.inf, 0.0)),
        ],
        ids=["equal", "close", "far in one", "not among the likeliest", "one ends", "only the first counts", "empty"],
    )
    def test_finds_the_first_difference_and_how_far_apart_it_is(
        self, one: list[Token], other: list[Token], expected: Agreement
    ) -> None:
        assert compare(one, other) == compare(other, one) == expected

    @pytest.mark.parametrize(
        ("agreements", "wrong"),
        [
            ([Agreement(None, 0.0, 0.5), Agreement(3, 1.0, 0.0)], []),
            ([Agreement(3, 1.1, 0.0), Agreement(None, 0.0, 0.0)], ["1 of 2 answers differ by more than rounding explains"]),
            ([Agreement(None, 0.0, 1.1)], ["1 of 1 answers differ by more"]),
            ([], ["none was compared"]),
        ],
        ids=["noise", "a token", "a logprob", "nothing"],
    )
    def test_rounding_explains_what_is_within_the_noise(self, agreements: list[Agreement], wrong: list[str]) -> None:
        found = agreement.problems(agreements, noise=1.0)
        assert len(found) == len(wrong)
        assert all(part in line for part, line in zip(wrong, found, strict=True))

    def test_the_description_tells_where_answers_part(self) -> None:
        found = agreement.describe([Agreement(None, 0.0, 0.5), Agreement(7, 0.25, 0.0), Agreement(3, 1.0, 0.0)])
        assert "3 answers compared, 1 equal" in found
        assert "at most 0.50 apart" in found
        assert found.endswith("3 (1.00), 7 (0.25)")


class TestTranscript:
    def line(self, **choice: Any) -> bytes:
        return b"data: " + json.dumps({"choices": [choice]}, separators=(",", ":")).encode()

    def test_keeps_text_and_tokens_by_choice(self) -> None:
        scored = {
            "token": "b",
            "logprob": -0.5,
            "bytes": [98],
            "top_logprobs": [{"token": "\\xc3", "logprob": -2, "bytes": [195]}],
        }
        heard = Transcript(2, 0.0, 2)
        heard.take(self.line(index=1, delta={"content": "b"}, logprobs={"content": [scored]}), 1.0)
        heard.take(self.line(index=0, delta={"role": "assistant", "content": None}), 1.0)
        heard.take(self.line(index=1, delta={"content": "c"}), 2.0)
        heard.take(b"data: [DONE]", 3.0)
        assert heard.texts == {0: "", 1: "bc"}
        assert heard.said[1] == [Token(b"b", -0.5, {b"\xc3": -2})]

    def test_the_client_leaves_in_the_middle(self) -> None:
        heard = Transcript(9, 0.0, leave_after=2)
        heard.take(self.line(index=0, delta={"content": "a"}), 1.0)
        with pytest.raises(ClientLeft):
            heard.take(self.line(index=0, delta={"content": "b"}), 2.0)
        assert heard.texts == {0: "ab"}


CONTEXT = 1024


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    traffic, made = Traffic(1, CONTEXT), []
    for _ in range(500):
        made.append(traffic.next())
        traffic.heard(made[-1], "word " * made[-1].max_tokens)
    return made


class TestTraffic:
    def test_requests_fit_the_context(self, requests: list[Request]) -> None:
        assert max(request.size + request.max_tokens for request in requests) <= CONTEXT
        assert all(sum(len(text.split()) for text in request.messages) <= request.size for request in requests)

    def test_every_kind_comes(self, requests: list[Request]) -> None:
        kinds = [
            {request.edited for request in requests},
            {request.greedy for request in requests},
            {request.leave_after is None for request in requests},
        ]
        assert kinds == [{True, False}] * 3
        assert {request.n for request in requests} == {1, 2, 3, 4}
        assert len({request.messages[0] for request in requests}) == 3
        assert max(len(request.messages) for request in requests) >= 6

    def test_conversations_go_on_from_what_was_said_or_edited(self, requests: list[Request]) -> None:
        sent = {(*request.messages, "word " * request.max_tokens) for request in requests}
        later = [request for request in requests if len(request.messages) > 2]
        assert all((request.messages[:-1] in sent) != request.edited for request in later)
        questions = {request.messages for request in requests}
        assert all(request.messages[:-2] in questions for request in later)

    def test_equal_seeds_make_equal_requests(self) -> None:
        assert Traffic(1, 1024).next() == Traffic(1, 1024).next() != Traffic(2, 1024).next()

    def test_a_body_says_who_spoke_and_asks_for_logprobs_of_greedy_answers(self) -> None:
        body = Request(("s", "u", "a", "u"), 9, 5, n=2).body()
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
        assert (body["temperature"], body["logprobs"], body["n"], body["max_tokens"]) == (0, True, 2, 5)
        assert "logprobs" not in Request(("s", "u"), 9, 5, greedy=False).body()


class TestScript:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "tiny.gguf"
        path.write_bytes(b"GGUF")
        return path

    def command(self, *flags: str) -> str:
        return " ".join([shlex.quote(sys.executable), shlex.quote(str(SERVER)), "--port {port}", *flags])

    def soak(self, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPTS / "soak"), "--minutes", "0.01", "--context", "512", "--sample", "3", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    @pytest.mark.parametrize(
        ("soaked", "reference", "code", "told"),
        [
            ("--word yes", "--word yes", 0, "3 answers compared, 3 equal"),
            ("--word yes --lead 0.5", "--word no --lead 0.25", 0, "3 answers compared, 0 equal"),
            ("--word yes --lead 0.5", "--word no --lead 1.5", 1, "wrong: 3 of 3 answers differ by more"),
            ("--word yes --fault status --every 4", "--word yes", 1, "HTTP 500: scripted failure"),
            ("--word yes --fault cut", "--word yes", 1, "no greedy answer was whole"),
            ("--word yes --no-logprobs", "--word yes --no-logprobs", 1, "wrong: 3 of 3 answers differ by more"),
            ("--word yes", "--fault event", 1, "wrong: reference: error event: scripted event"),
            ("--no-such-flag", "--word yes", 1, "wrong: soaked does not start"),
        ],
        ids=["equal", "close", "different", "an error", "only errors", "no logprobs", "a bad reference", "no server"],
    )
    def test_tells_good_from_bad(self, model: Path, soaked: str, reference: str, code: int, told: str) -> None:
        commands = ["--command", self.command(soaked), "--reference", self.command(reference)]
        done = self.soak("--model", str(model), *commands)
        assert (done.returncode, told in done.stdout) == (code, True), done.stdout + done.stderr

    def test_soaks_the_cpp_server_too(self, model: Path) -> None:
        done = self.soak("--model", str(model), "--command", "{llama-server} --kv-unified", "--llama-server", "no-such-program")
        assert (done.returncode, "no-such-program -m" in done.stderr) == (1, True), done.stderr
        assert "--kv-unified\nsoaked: cannot start" in done.stderr

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
    def test_interruption_stops_the_server(self, model: Path, number: signal.Signals) -> None:
        command = [sys.executable, str(SCRIPTS / "soak"), "--model", str(model), "--command", self.command("--first 60")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr
            ready = next(found for line in running.stderr if (found := re.search(r"ready at .* \(pid (\d+)\)", line)))
            os.kill(running.pid, number)
            output, _ = running.communicate()
        assert (running.returncode, output) == (130, "")
        assert not Path(f"/proc/{ready[1]}").exists()

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            ([], "--model"),
            (["--model", "/no/such.gguf"], "--model: no such file: /no/such.gguf"),
            (["--model", __file__, "--minutes", "0"], "--minutes: more than 0 is needed"),
            (["--model", __file__, "--command", "run {colour}"], "--command: unknown placeholder"),
            (["--model", __file__, "--reference", "run '"], "--reference: No closing quotation"),
        ],
    )
    def test_wrong_flags_are_named(self, flags: list[str], named: str) -> None:
        done = self.soak(*flags)
        assert done.returncode == 2
        assert named in done.stderr
