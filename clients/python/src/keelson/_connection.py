"""Connections to apiservers, and which calls are repeated.

Each apiserver has a channel of its own, which reconnects by itself. A call goes to the next
channel that is connected; if none is, it waits for one, at most connect_timeout.

What is repeated:

- any call that a server refused without doing anything (503 with retryAfterSeconds): for
  AGAIN seconds, first at once and then with growing pauses, each time at the next apiserver;
- a call that is safe to repeat and failed with UNAVAILABLE: up to ATTEMPTS times in all. These
  are reads, creates of objects (with a request id, by which the server knows the repetition),
  and deletes with the uid as a precondition (with a request id too).

Nothing else is: another write whose connection broke may have happened.
"""
from __future__ import annotations

import random
import threading
import time
from typing import Any, Callable, Iterator, Optional, Sequence, TypeVar

import grpc
from google.protobuf.message import Message

from keelson import errors

AGAIN = 2.0
LEAST_PAUSE, MOST_PAUSE = 0.02, 0.25
ATTEMPTS = 4
SAFE_PAUSE, MOST_SAFE_PAUSE = 0.1, 1.0
MAX_MESSAGE = 64 << 20

R = TypeVar("R", bound=Message)
Metadata = Sequence[tuple[str, str]]


class Endpoint:
    """An apiserver's address and its channel."""

    def __init__(self, address: str, credentials: Optional[grpc.ChannelCredentials], options: list[tuple[str, Any]], changed: Callable[[], None]) -> None:
        self.address = address
        self.ready = False
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, credentials, options)
        self._changed = changed
        self._known = threading.Event()
        self.channel.subscribe(self._on_state, try_to_connect=True)

    def _on_state(self, state: grpc.ChannelConnectivity) -> None:
        self.ready = state is grpc.ChannelConnectivity.READY
        self._known.set()
        self._changed()

    def forget(self) -> None:
        # A channel that is closed before grpcio's thread has looked at it makes the thread
        # print an exception.
        self._known.wait(0.5)
        self.channel.unsubscribe(self._on_state)


class Connection:
    """Calls to any of several apiservers. It is safe for concurrent use."""

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Optional[grpc.ChannelCredentials],
        token: Optional[Callable[[], str]],
        user_agent: str,
        server_name: Optional[str],
        connect_timeout: float,
    ) -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", user_agent),
            # round_robin over the addresses of one name reconnects without being asked.
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 2_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # A proxy of the environment is not for the cluster.
            ("grpc.enable_http_proxy", 0),
        ]
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        self._token = token
        self._connect_timeout = connect_timeout
        self._changed = threading.Condition()
        self._next = random.randrange(len(addresses))
        self._closed = False
        self._endpoints = [Endpoint(a, credentials, options, self._notify) for a in addresses]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for e in self._endpoints:
            e.forget()
        for e in self._endpoints:
            e.channel.close()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def pick(self, deadline: Optional[float] = None) -> grpc.Channel:
        """Returns the next channel that is connected. If none becomes so in time, it returns
        one that is not, whose calls fail with the reason."""
        give_up = time.monotonic() + self._connect_timeout
        if deadline is not None:
            give_up = min(give_up, deadline)
        with self._changed:
            while True:
                if self._closed:
                    raise ValueError("the client is closed")
                count = len(self._endpoints)
                for i in range(count):
                    e = self._endpoints[(self._next + i) % count]
                    if e.ready:
                        self._next = (self._next + i + 1) % count
                        return e.channel
                left = give_up - time.monotonic()
                if left <= 0:
                    self._next = (self._next + 1) % count
                    return self._endpoints[self._next].channel
                self._changed.wait(left)

    def metadata(self, traceparent: Optional[str]) -> Metadata:
        out = []
        if self._token is not None:
            out.append(("authorization", "Bearer " + self._token()))
        if traceparent:
            out.append(("traceparent", traceparent))
        return out

    def unary(self, what: str, method: str, request: Message, answer: type[R], *, safe: bool, timeout: Optional[float], traceparent: Optional[str] = None) -> R:
        """Calls a method with one answer and repeats it as the module says. It raises ApiError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        again = Again(safe)
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            call = self.pick(deadline).unary_unary(
                method, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString)
            try:
                return call(request, timeout=left, metadata=self.metadata(traceparent))
            except grpc.RpcError as err:
                failure = errors.from_rpc(what, err)
            pause = again.pause(failure)
            if pause is None or deadline is not None and time.monotonic() + pause >= deadline:
                raise failure from None
            time.sleep(pause)

    def stream(self, method: str, request: Message, answer: type[R], *, timeout: Optional[float] = None, traceparent: Optional[str] = None) -> grpc.Call:
        """Starts a call with a stream of answers, once. Iterating raises grpc.RpcError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        channel = self.pick(deadline)
        call = channel.unary_stream(method, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString)
        left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        return call(request, timeout=left, metadata=self.metadata(traceparent))

    def both(self, method: str, requests: Iterator[Message], answer: type[R], *, traceparent: Optional[str] = None) -> grpc.Call:
        """Starts a call with streams in both directions, once."""
        call = self.pick().stream_stream(method, request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString)
        return call(requests, metadata=self.metadata(traceparent))


class Again:
    """Decides, for one call, whether and when to repeat it."""

    def __init__(self, safe: bool, now: Callable[[], float] = time.monotonic) -> None:
        self._safe = safe
        self._now = now
        self._attempts = 1
        self._pause = 0.0
        self._until: Optional[float] = None

    def pause(self, failure: errors.ApiError) -> Optional[float]:
        """Returns how many seconds to wait before the next attempt, or None for no other."""
        if failure.nothing_done:
            now = self._now()
            if self._until is None:
                self._until = now + AGAIN
            pause, self._pause = self._pause, min(max(2 * self._pause, LEAST_PAUSE), MOST_PAUSE)
            return pause if now + pause <= self._until else None
        if not self._safe or failure.grpc_code is not grpc.StatusCode.UNAVAILABLE or self._attempts >= ATTEMPTS:
            return None
        pause = min(SAFE_PAUSE * 2 ** (self._attempts - 1), MOST_SAFE_PAUSE)
        self._attempts += 1
        return pause * random.uniform(0.5, 1)
