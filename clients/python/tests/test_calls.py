"""Reads, writes, errors, and what is repeated, against a scripted server."""
from __future__ import annotations

from typing import Any, Iterator

import fake
import grpc
import keelson
import pytest
from keelson._connection import AGAIN, Again
from keelson.k8s import authorization_v1, core_v1, meta_v1, policy_v1
from keelson.resource.v1 import resource_pb2 as rpc
from keelson.trace.v1 import trace_pb2

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def connect(*servers: fake.Server, **options: Any) -> keelson.Client:
    options.setdefault("connect_timeout", 30)
    return keelson.connect(addresses=[s.address for s in servers], insecure=True, **options)


def config_map(name: str = "a") -> Any:
    return core_v1.ConfigMap(metadata=meta_v1.ObjectMeta(namespace="default", name=name))


def test_get_sends_the_reference_and_decodes_the_object() -> None:
    with fake.Server(Get=lambda r, n: rpc.GetResponse(object=fake.packed(fake.config_map("a", 7)))) as s, connect(s) as client:
        got = client.resource(core_v1.ConfigMap, "default").get("a", traceparent="00-1-2-01")
        assert got.metadata.resourceVersion == "7"
        ref = s.calls[0][1].ref
        assert (ref.group, ref.version, ref.resource, ref.namespace, ref.name) == ("", "v1", "configmaps", "default", "a")
        assert s.metadata[0]["traceparent"] == "00-1-2-01"
        assert s.metadata[0]["user-agent"].startswith("keelson-python")


def test_an_error_carries_the_status() -> None:
    def refuse(request: Any, number: int) -> Any:
        raise fake.Refused(404, "NotFound", grpc.StatusCode.NOT_FOUND, cause="Because")

    with fake.Server(Get=refuse) as s, connect(s) as client, pytest.raises(keelson.NotFound) as caught:
        client.resource(core_v1.ConfigMap, "default").get("a")
    err = caught.value
    assert (err.code, err.reason, err.message, err.answered) == (404, "NotFound", "the test says NotFound", True)
    assert err.details["causes"] == [{"reason": "Because"}] and err.has_cause("Because")
    assert str(err) == "get configmaps default/a: the test says NotFound"
    assert not err.may_have_happened


def test_a_read_is_repeated_when_the_connection_breaks() -> None:
    def get(request: Any, number: int) -> Any:
        if number < 3:
            raise fake.Break()
        return rpc.GetResponse(object=fake.packed(fake.config_map("a", 7)))

    with fake.Server(Get=get) as s, connect(s) as client:
        assert client.resource(core_v1.ConfigMap, "default").get("a").metadata.name == "a"
        assert s.count("Get") == 4


def test_a_read_is_repeated_a_bounded_number_of_times() -> None:
    def get(request: Any, number: int) -> Any:
        raise fake.Break()

    with fake.Server(Get=get) as s, connect(s) as client:
        with pytest.raises(keelson.ApiError) as caught:
            client.resource(core_v1.ConfigMap, "default").get("a")
        assert (caught.value.code, caught.value.answered, s.count("Get")) == (503, False, 4)


@pytest.mark.parametrize("failure", [fake.Break(), fake.Refused(503, "ServiceUnavailable", UNAVAILABLE), fake.Refused(409, "Conflict", grpc.StatusCode.ABORTED, 1)])
def test_no_write_is_repeated_whose_outcome_is_a_verdict_or_not_known(failure: Exception) -> None:
    def fail(request: Any, number: int) -> Any:
        raise failure

    with fake.Server(Create=fail, Update=fail, Patch=fail, Apply=fail, Delete=fail, DeleteCollection=fail) as s, connect(s) as client:
        r, reviews = client.resource(core_v1.ConfigMap, "default"), client.resource(authorization_v1.SelfSubjectAccessReview)
        for write in (
            lambda: r.update(config_map()), lambda: r.patch("a", {}), lambda: r.apply(config_map()),
            lambda: r.delete("a", resource_version="1"), lambda: r.delete_collection(), lambda: r.post("a", "eviction", policy_v1.Eviction()),
            lambda: reviews.create(authorization_v1.SelfSubjectAccessReview()),
        ):
            with pytest.raises(keelson.ApiError) as caught:
                write()
            assert caught.value.may_have_happened == (caught.value.code == 503)
        assert len(s.calls) == 7


def test_creates_and_deletes_with_a_uid_are_repeated_with_one_request_id() -> None:
    def broken(answer: Any) -> Any:
        def serve(request: Any, number: int) -> Any:
            if number % 2 == 0:
                raise fake.Break()
            return answer(request)

        return serve

    with fake.Server(Create=broken(lambda r: rpc.CreateResponse(object=r.object)), Delete=broken(lambda r: rpc.DeleteResponse(gone=True))) as s:
        with connect(s) as client:
            r = client.resource(core_v1.ConfigMap, "default")
            for _ in range(2):
                r.create(core_v1.ConfigMap(metadata=meta_v1.ObjectMeta(generateName="a-")))
                r.delete("a", uid="u")
        for method in ("Create", "Delete"):
            ids = [request.options.request_id for m, request in s.calls if m == method]
            assert len(ids) == 4 and ids[0] == ids[1] != ids[2] == ids[3] and 0 < len(ids[0]) <= 64


def test_a_write_that_was_refused_undone_is_repeated_elsewhere() -> None:
    def refuse(request: Any, number: int) -> Any:
        raise fake.Refused(503, "ServiceUnavailable", UNAVAILABLE, retry_after=1)

    with fake.Server(Create=refuse) as cut_off, fake.Server(Create=lambda r, n: rpc.CreateResponse(object=r.object)) as well:
        with connect(cut_off, well) as client:
            for i in range(4):
                client.resource(core_v1.ConfigMap, "default").create(config_map(str(i)))
        assert well.count("Create") == 4
        assert well.calls[0][1].options.field_manager == "keelson-python"


def test_repeating_a_refused_call_ends_after_two_seconds() -> None:
    refused = fake_error(503, retry_after=1)
    now = 100.0
    again, waits = Again(safe=False, now=lambda: now), []
    while (pause := again.pause(refused)) is not None:
        waits.append(pause)
        now += pause + 0.001
    assert waits[:5] == [0, 0.02, 0.04, 0.08, 0.16] and max(waits) == 0.25
    assert AGAIN - 0.3 < sum(waits) <= AGAIN


def fake_error(code: int, retry_after: int = 0) -> keelson.ApiError:
    status = meta_v1.Status(code=code, reason="ServiceUnavailable")
    if retry_after:
        status.details.retryAfterSeconds = retry_after
    return keelson.ApiError("", status, UNAVAILABLE)


def test_calls_go_to_apiservers_that_answer() -> None:
    def get(request: Any, number: int) -> Any:
        return rpc.GetResponse(object=fake.packed(fake.config_map("a", 7)))

    with fake.Server(Get=get) as first, fake.Server(Get=get) as second:
        with keelson.connect(addresses=[fake.unused_address(), first.address, second.address], insecure=True) as client:
            for _ in range(200):
                client.resource(core_v1.ConfigMap, "default").get("a")
                if first.calls and second.calls:
                    break
            assert first.calls and second.calls
            first.stop()
            for _ in range(5):
                client.resource(core_v1.ConfigMap, "default").get("a")


def test_without_any_apiserver_a_write_fails_in_time() -> None:
    with keelson.connect(addresses=fake.unused_address(), insecure=True, connect_timeout=0.1) as client:
        with pytest.raises(keelson.ApiError) as caught:
            client.resource(core_v1.ConfigMap, "default").create(config_map())
    assert caught.value.code == 503 and not caught.value.answered


def test_a_deadline_ends_a_call() -> None:
    import threading

    stop = threading.Event()

    def hang(request: Any, number: int) -> Any:
        stop.wait(30)
        return rpc.CreateResponse()

    with fake.Server(Create=hang) as s, connect(s) as client:
        with pytest.raises(keelson.ApiError) as caught:
            client.resource(core_v1.ConfigMap, "default").create(config_map(), timeout=0.2)
        stop.set()
    assert (caught.value.code, caught.value.reason, caught.value.may_have_happened) == (504, "Timeout", True)


def page(names: str, rv: int = 5, token: str = "") -> Any:
    answer = rpc.ListResponse(resource_version=str(rv), items=[fake.packed(fake.config_map(n, 1)) for n in names])
    setattr(answer, "continue", token)
    return answer


def test_a_list_comes_in_pages_of_one_revision() -> None:
    with fake.Server(List=lambda r, n: iter([page("ab"), page("c", token="more")])) as s, connect(s) as client:
        listing = client.resource(core_v1.ConfigMap).list(page_size=2, limit=3)
        assert listing.resource_version == "5"
        assert [o.metadata.name for o in listing] == ["a", "b", "c"]
        assert listing.continue_token == "more"
        assert s.calls[0][1].page_size == 2 and s.calls[0][1].ref.namespace == ""


def test_a_list_that_breaks_continues_with_the_same_revision() -> None:
    def answer(request: Any, number: int) -> Iterator[Any]:
        if number == 0:
            yield page("ab")
            raise fake.Break()
        if number == 1:
            raise fake.Break()
        yield page("a")
        yield page("bcd")

    with fake.Server(List=answer) as s, connect(s) as client:
        assert [o.metadata.name for o in client.resource(core_v1.ConfigMap).list()] == ["a", "b", "c", "d"]
        for _, request in s.calls[1:]:
            assert (request.resource_version, request.resource_version_match) == ("5", "Exact")


def test_deletes_say_whether_the_object_is_gone() -> None:
    answers = [rpc.DeleteResponse(object=fake.packed(fake.config_map("a", 7))), rpc.DeleteResponse(gone=True)]
    with fake.Server(Delete=lambda r, n: answers[n]) as s, connect(s) as client:
        r = client.resource(core_v1.ConfigMap, "default")
        assert r.delete("a", uid="u", grace_period_seconds=0).metadata.name == "a"
        assert r.delete("a") is None
        first, second = s.calls[0][1], s.calls[1][1]
        assert first.preconditions.uid == "u" and first.HasField("grace_period_seconds")
        assert not second.HasField("preconditions") and not second.HasField("grace_period_seconds")


def test_apply_takes_messages_dictionaries_and_yaml() -> None:
    with fake.Server(Apply=lambda r, n: rpc.ApplyResponse(object=fake.packed(config_map()))) as s, connect(s, user_agent="shop/1") as client:
        r = client.resource(core_v1.ConfigMap, "default")
        r.apply(core_v1.ConfigMap(metadata=meta_v1.ObjectMeta(name="a"), data={"k": "v"}))
        r.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "other"}})
        r.apply("metadata: {name: a}\nkind: ConfigMap\n", force=True)
        requests = [request for _, request in s.calls]
        assert requests[0].configuration == b'{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}}'
        assert [q.ref.namespace for q in requests] == ["default", "other", "default"]
        assert {q.ref.name for q in requests} == {"a"} and {q.options.field_manager for q in requests} == {"shop"}
        assert requests[2].force and not requests[1].force


def test_a_trace_is_named_by_its_object() -> None:
    with fake.Server(GetTrace=lambda r, n: trace_pb2.GetTraceResponse(trace_id="t")) as s, connect(s) as client:
        assert client.trace(config_map(), earlier=1).trace_id == "t"
        request = s.calls[0][1]
        assert (request.resource, request.namespace, request.name, request.earlier) == ("configmaps", "default", "a", 1)


def test_wrong_uses_are_refused_before_a_call() -> None:
    with keelson.connect(addresses="127.0.0.1:1", insecure=True) as client:
        with pytest.raises(ValueError, match="has a namespace"):
            client.resource(core_v1.ConfigMap).get("a")
        with pytest.raises(TypeError, match="has no namespace"):
            client.resource(core_v1.Node, "default")
        with pytest.raises(TypeError, match="no collection"):
            client.resource(policy_v1.Eviction)
        with pytest.raises(TypeError, match="not a kind"):
            client.resource(core_v1.PodSpec)
        with pytest.raises(TypeError, match="want a k8s.io.api.core.v1.Secret"):
            client.resource(core_v1.Secret, "default").create(config_map())
        with pytest.raises(ValueError, match="patch kind"):
            client.resource(core_v1.ConfigMap, "default").patch("a", {}, kind="diff")
