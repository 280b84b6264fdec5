"""A watch that does not end: it resumes where a broken stream ended.

# States

- initial: there is no revision to resume from. The server sends all objects as ADDED and ends
  them with a bookmark. Objects that the caller has seen in the same revision are not repeated,
  and those that are missing at the bookmark are reported as DELETED.
- live: each event has a revision greater than the last one. A stream that breaks is resumed
  after that revision, at the next apiserver; an event that is not newer is dropped.

An Expired (410) in live, or a revision that the server has not reached after a restore, leads
back to initial. A break in initial starts initial again.

A watch that started from a revision knows the collection only in part. It cannot report the
difference, so it raises Expired instead of going back to initial.

# Invariants

Each change is yielded once and in order. The last object of each name is held, so that the
difference can be told; that is the memory of a watch.
"""
from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import Any, Callable, Generic, Iterable, Iterator, Optional, TypeVar

import grpc
from google.protobuf.message import Message

from keelson import errors
from keelson.objects import key_of, revision
from keelson.resource.v1 import resource_pb2 as rpc

T = TypeVar("T", bound=Message)
LEAST_DELAY, MOST_DELAY = 0.05, 5.0
ADDED, MODIFIED, DELETED, BOOKMARK = "ADDED", "MODIFIED", "DELETED", "BOOKMARK"
_TYPES = {1: ADDED, 2: MODIFIED, 3: DELETED, 4: BOOKMARK}


@dataclass(frozen=True)
class Event(Generic[T]):
    """A change of one object, or a bookmark.

    Attributes:
        type: "ADDED", "MODIFIED", "DELETED" or "BOOKMARK".
        object: the object as it is now, or its last state if it was deleted. A bookmark has
            none: reading it raises AttributeError.
        old: the object before the change, if the watch knows it.
        resource_version: the revision of the event. A watch from there continues after it.
        traceparent: the W3C trace context of the write, or "".
        initial_events_end: True in the bookmark that ends the initial state.
    """

    type: str
    resource_version: str
    found: Optional[T] = None
    old: Optional[T] = None
    traceparent: str = ""
    initial_events_end: bool = False

    @property
    def object(self) -> T:
        if self.found is None:
            raise AttributeError("a bookmark has no object")
        return self.found


class State(Generic[T]):
    """What a watch has seen. It makes no calls."""

    def __init__(self, decode: Callable[[Any], T], start: str = "", items: Optional[Iterable[T]] = None) -> None:
        self._decode = decode
        self.resume = start
        self._revision = revision(start) if start else 0
        # Whether held is the whole collection.
        self.complete = not start or items is not None
        self.held: dict[tuple[str, str], T] = {key_of(o): o for o in items or ()}
        self._seen: Optional[set[tuple[str, str]]] = None

    def begin(self) -> None:
        """A stream is about to be opened."""
        self._seen = None if self.resume else set()

    def restart(self) -> None:
        """The server no longer has the state to resume from."""
        self.resume = ""

    def receive(self, response: rpc.WatchResponse) -> Iterator[Event[T]]:
        """Yields the events that a message of the stream means to the caller."""
        kind, rv = _TYPES.get(response.type), response.resource_version
        if kind is None:
            raise ValueError(f"the server sent an event of type {response.type}")
        number = revision(rv)
        if self._seen is not None:
            yield from self._receive_initial(kind, response, number)
            return
        # A server that resumes too early repeats itself.
        if kind != BOOKMARK and number <= self._revision:
            return
        event = None
        if kind == BOOKMARK:
            event = Event[T](BOOKMARK, rv)
        elif kind == DELETED:
            event = self._remove(self._decode(response.object), rv, response.traceparent)
        else:
            event = self._put(kind, self._decode(response.object), rv, response.traceparent)
        self.resume, self._revision = rv, number
        if event is not None:
            yield event

    def _receive_initial(self, kind: str, response: rpc.WatchResponse, number: int) -> Iterator[Event[T]]:
        rv, seen = response.resource_version, self._seen
        assert seen is not None
        if kind == BOOKMARK:
            if not response.initial_events_end:
                return
            for key in sorted(set(self.held) - seen):
                gone = self.held.pop(key)
                yield Event(DELETED, rv, gone, gone)
            self._seen, self.resume, self._revision = None, rv, number
            yield Event[T](BOOKMARK, rv, initial_events_end=True)
            return
        obj = self._decode(response.object)
        key = key_of(obj)
        if kind == DELETED:
            seen.discard(key)
            event = self._remove(obj, rv, response.traceparent)
            if event is not None:
                yield event
            return
        seen.add(key)
        old = self.held.get(key)
        if old is not None:
            was, now = _meta(old), _meta(obj)
            if was.uid == now.uid and was.resourceVersion == now.resourceVersion:
                return
            if was.uid != now.uid:
                del self.held[key]
                yield Event(DELETED, rv, old, old)
        event = self._put(kind, obj, rv, response.traceparent)
        if event is not None:
            yield event

    def _put(self, kind: str, obj: T, rv: str, traceparent: str) -> Optional[Event[T]]:
        key = key_of(obj)
        old = self.held.get(key)
        if old is not None:
            kind = MODIFIED
        elif self.complete:
            kind = ADDED
        self.held[key] = obj
        return Event(kind, rv, obj, old, traceparent)

    def _remove(self, obj: T, rv: str, traceparent: str) -> Optional[Event[T]]:
        old: Optional[T] = self.held.get(key_of(obj))
        self.held.pop(key_of(obj), obj)
        if old is None and self.complete:
            return None
        return Event(DELETED, rv, obj, old, traceparent)


def _meta(obj: Any) -> Any:
    return obj.metadata


class Watch(Generic[T]):
    """An iterator over changes, which ends when it is closed. Close it, from any thread, or use it in a with statement.

    It raises ApiError only for a verdict that will not change by itself: the caller has no
    permission, the request is wrong, or Expired if the watch started from a revision.
    """

    def __init__(self, what: str, open_stream: Callable[[State[T]], grpc.Call], state: State[T], bookmarks: bool) -> None:
        self._what = what
        self._open = open_stream
        self._state = state
        self._bookmarks = bookmarks
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._call: Optional[grpc.Call] = None
        self._events = self._run()
        self.last_error: Optional[errors.ApiError] = None  #: why the last stream ended, if it broke
        self.relists = 0  #: how often the server had forgotten the state to resume from

    def __iter__(self) -> "Watch[T]":
        return self

    def __next__(self) -> Event[T]:
        return next(self._events)

    def __enter__(self) -> "Watch[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def resource_version(self) -> str:
        """The revision up to which events have been received; "" before the initial state is complete."""
        return self._state.resume

    def close(self) -> None:
        """Ends the watch. A thread that waits for an event sees the end of the iteration."""
        self._closed.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()

    def _run(self) -> Iterator[Event[T]]:
        delay = 0.0
        while not self._closed.is_set():
            failure: Optional[errors.ApiError] = None
            progress = False
            self._state.begin()
            try:
                call = self._open(self._state)
                with self._lock:
                    self._call = call
                if self._closed.is_set():
                    return
                for response in call:
                    progress = True
                    for event in self._state.receive(response):
                        if event.type != BOOKMARK or self._bookmarks:
                            yield event
                        if self._closed.is_set():
                            return
            except grpc.RpcError as err:
                if self._closed.is_set():
                    return
                failure = errors.from_rpc(self._what, err)
            finally:
                with self._lock:
                    if self._call is not None:
                        self._call.cancel()
                    self._call = None
            if failure is not None:
                self.last_error = failure
                if isinstance(failure, errors.Expired) or failure.has_cause("ResourceVersionTooLarge"):
                    if not self._state.complete:
                        raise failure
                    self._state.restart()
                    self.relists += 1
                elif not progress and is_verdict(failure):
                    raise failure
            delay = 0.0 if progress else min(max(2 * delay, LEAST_DELAY), MOST_DELAY)
            if delay > 0:
                self._closed.wait(delay * random.uniform(0.5, 1))


def is_verdict(failure: errors.ApiError) -> bool:
    """Reports whether a server's refusal is one that repeating the request will not change."""
    return failure.code in (400, 401, 403, 404, 405, 406, 422)
