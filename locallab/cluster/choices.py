"""The choices of this process's routers, told to the front at once: it need not wait for the replica that was chosen."""

from __future__ import annotations

from concurrent.futures import Future

_expected: dict[bytes, Future[bytes]] = {}


def expect(number: bytes) -> Future[bytes]:
    """Return the address, encoded, of the replica that will be chosen for the request with this number, until `forget`."""
    future: Future[bytes] = Future()
    _expected[number] = future
    return future


def tell(number: bytes, address: bytes) -> None:
    """Tell which replica is chosen; the first choice counts, and a request that nobody expects is left alone."""
    future = _expected.pop(number, None)
    if future is not None and future.set_running_or_notify_cancel():
        future.set_result(address)


def forget(number: bytes) -> None:
    """Expect no choice for this request any more."""
    _expected.pop(number, None)
