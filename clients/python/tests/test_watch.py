"""Watches over streams that break, servers that repeat themselves, and states that expire."""
from __future__ import annotations

import threading
from typing import Any, Iterator

import fake
import grpc
import keelson
import pytest
from fake import HANG, bookmark, config_map, event
from keelson.k8s import core_v1

from test_calls import connect


def take(watch: Any, count: int) -> list[tuple[str, str, str]]:
    """The next events: type, name, revision."""
    out = []
    for _ in range(count):
        e = next(watch)
        out.append((e.type, e.object.metadata.name if e.found else "", e.resource_version))
    return out


def script(*streams: Any) -> Any:
    """Watch number i answers with streams[i], a list whose last element may be an exception."""

    def answer(request: Any, number: int) -> Iterator[Any]:
        for item in streams[number]:
            if isinstance(item, Exception):
                raise item
            yield item

    return answer


def test_a_broken_watch_resumes_after_the_last_event() -> None:
    with fake.Server(Watch=script(
        [event("ADDED", config_map("a", 3)), bookmark(5, end=True), event("MODIFIED", config_map("a", 6)), fake.Break()],
        [fake.Break()],
        [],  # the server ended the stream in an orderly way
        [event("MODIFIED", config_map("a", 6)), event("ADDED", config_map("b", 8)), event("DELETED", config_map("a", 9)), bookmark(12), fake.Break()],
        [event("MODIFIED", config_map("b", 13)), HANG],
    )) as s, connect(s) as client, client.resource(core_v1.ConfigMap).watch() as watch:
        assert take(watch, 5) == [
            ("ADDED", "a", "3"), ("MODIFIED", "a", "6"), ("ADDED", "b", "8"), ("DELETED", "a", "9"), ("MODIFIED", "b", "13")]
        assert [r.resource_version for _, r in s.calls] == ["", "6", "6", "6", "12"]
        assert [r.send_initial_events for _, r in s.calls] == [True, False, False, False, False]


def test_an_expired_watch_yields_the_difference() -> None:
    with fake.Server(Watch=script(
        [event("ADDED", config_map(n, 3)) for n in "abcd"] + [bookmark(5, end=True), fake.expired()],
        # a: the same; b: changed; c: gone; d: replaced; e: new.
        [event("ADDED", config_map("a", 3)), event("ADDED", config_map("b", 20)), event("ADDED", config_map("d", 21, uid="other")),
         event("ADDED", config_map("e", 22)), bookmark(30, end=True), event("MODIFIED", config_map("a", 31)), HANG],
    )) as s, connect(s) as client, client.resource(core_v1.ConfigMap).watch(bookmarks=True) as watch:
        assert take(watch, 5)[4] == ("BOOKMARK", "", "5")
        assert take(watch, 7) == [
            ("MODIFIED", "b", "20"), ("DELETED", "d", "21"), ("ADDED", "d", "21"), ("ADDED", "e", "22"), ("DELETED", "c", "30"),
            ("BOOKMARK", "", "30"), ("MODIFIED", "a", "31")]
        assert watch.relists == 1


def test_an_initial_state_that_breaks_is_not_repeated() -> None:
    with fake.Server(Watch=script(
        [event("ADDED", config_map("a", 3)), event("ADDED", config_map("b", 4)), fake.Break()],
        [event("ADDED", config_map("b", 4)), event("ADDED", config_map("c", 6)), bookmark(7, end=True), HANG],
    )) as s, connect(s) as client, client.resource(core_v1.ConfigMap).watch() as watch:
        assert take(watch, 4) == [("ADDED", "a", "3"), ("ADDED", "b", "4"), ("ADDED", "c", "6"), ("DELETED", "a", "7")]


def test_a_revision_from_the_future_is_an_expired_one() -> None:
    ahead = fake.Refused(504, "Timeout", grpc.StatusCode.DEADLINE_EXCEEDED, cause="ResourceVersionTooLarge")
    with fake.Server(Watch=script(
        [event("ADDED", config_map("a", 3)), bookmark(5, end=True), ahead], [bookmark(2, end=True), event("ADDED", config_map("b", 4)), HANG],
    )) as s, connect(s) as client, client.resource(core_v1.ConfigMap).watch() as watch:
        assert take(watch, 3) == [("ADDED", "a", "3"), ("DELETED", "a", "2"), ("ADDED", "b", "4")]


def test_a_watch_from_a_revision_raises_expired() -> None:
    with fake.Server(Watch=script([event("MODIFIED", config_map("a", 6)), fake.Break()], [fake.expired()])) as s, connect(s) as client:
        watch = client.resource(core_v1.ConfigMap).watch(start="5")
        assert take(watch, 1) == [("MODIFIED", "a", "6")]
        with pytest.raises(keelson.Expired):
            next(watch)


def test_a_watch_from_a_whole_list_yields_the_difference() -> None:
    with fake.Server(Watch=script([fake.expired()], [event("ADDED", config_map("b", 9)), bookmark(10, end=True), HANG])) as s, connect(s) as client:
        with client.resource(core_v1.ConfigMap).watch(start="5", items=[config_map("a", 3)]) as watch:
            assert take(watch, 2) == [("ADDED", "b", "9"), ("DELETED", "a", "10")]


def test_a_verdict_ends_a_watch() -> None:
    forbidden = fake.Refused(403, "Forbidden", grpc.StatusCode.PERMISSION_DENIED)
    with fake.Server(Watch=script([event("ADDED", config_map("a", 3)), bookmark(5, end=True), forbidden], [forbidden])) as s, connect(s) as client:
        watch = client.resource(core_v1.ConfigMap).watch()
        next(watch)
        with pytest.raises(keelson.Forbidden):
            next(watch)


def test_a_watch_moves_to_another_apiserver() -> None:
    def answer(request: Any, number: int) -> Iterator[Any]:
        if request.send_initial_events:
            yield bookmark(5, end=True)
        else:
            yield event("ADDED", config_map("a", 6))
        yield HANG

    with fake.Server(Watch=answer) as first, fake.Server(Watch=answer) as second, connect(first, second) as client:
        with client.resource(core_v1.ConfigMap).watch(bookmarks=True) as watch:
            next(watch)
            (first if first.calls else second).stop()
            assert take(watch, 1) == [("ADDED", "a", "6")]


def test_close_ends_a_watch_that_waits() -> None:
    with fake.Server(Watch=script([bookmark(5, end=True), HANG])) as s, connect(s) as client:
        watch = client.resource(core_v1.ConfigMap).watch()
        ended = threading.Event()
        thread = threading.Thread(target=lambda: (list(watch), ended.set()))
        thread.start()
        while not s.calls:
            assert not ended.wait(0.01)
        watch.close()
        assert ended.wait(30)
        thread.join()
