"""A server for tests, whose answers each test scripts."""
from __future__ import annotations

import socket
import threading
from concurrent import futures
from typing import Any, Callable, Iterator, Optional

import grpc
from keelson.client.v1 import status_pb2
from keelson.k8s import core_v1, meta_v1
from keelson.pod.v1 import pod_pb2
from keelson.resource.v1 import resource_pb2 as rpc
from keelson.trace.v1 import trace_pb2

RESOURCE, POD, TRACE = "keelson.resource.v1.ResourceService", "keelson.pod.v1.PodService", "keelson.trace.v1.TraceService"
_UNARY = {
    "Get": rpc.GetRequest, "Create": rpc.CreateRequest, "Update": rpc.UpdateRequest, "Patch": rpc.PatchRequest,
    "Apply": rpc.ApplyRequest, "Delete": rpc.DeleteRequest, "DeleteCollection": rpc.DeleteCollectionRequest,
}
_STREAM = {"List": rpc.ListRequest, "Watch": rpc.WatchRequest}


class Break(Exception):
    """Ends a call with UNAVAILABLE and no Status, as a broken connection does."""


class Refused(Exception):
    """Ends a call with a Kubernetes Status."""

    def __init__(self, code: int, reason: str, grpc_code: grpc.StatusCode, retry_after: int = 0, cause: str = "") -> None:
        super().__init__(reason)
        self.status = meta_v1.Status(status="Failure", code=code, reason=reason, message=f"the test says {reason}")
        if retry_after:
            self.status.details.retryAfterSeconds = retry_after
        if cause:
            self.status.details.causes.add(reason=cause)
        self.grpc_code = grpc_code


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def expired() -> Refused:
    return Refused(410, "Expired", grpc.StatusCode.OUT_OF_RANGE)


class Server:
    """Serves on a free port of loopback. handlers maps a method to a function of the request and the context."""

    def __init__(self, **handlers: Callable[..., Any]) -> None:
        self.handlers = handlers
        self.calls: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        methods: dict[str, Any] = {}
        for name, request in _UNARY.items():
            methods[name] = grpc.unary_unary_rpc_method_handler(self._unary(name), request.FromString, lambda m: m.SerializeToString())
        for name, request in _STREAM.items():
            methods[name] = grpc.unary_stream_rpc_method_handler(self._stream(name), request.FromString, lambda m: m.SerializeToString())
        pods: dict[str, Any] = {"Logs": grpc.unary_stream_rpc_method_handler(self._stream("Logs"), pod_pb2.LogsRequest.FromString, lambda m: m.SerializeToString())}
        for name, request in (("Exec", pod_pb2.ExecRequest), ("Attach", pod_pb2.AttachRequest), ("PortForward", pod_pb2.PortForwardRequest)):
            pods[name] = grpc.stream_stream_rpc_method_handler(self._stream(name), request.FromString, lambda m: m.SerializeToString())
        trace = {"GetTrace": grpc.unary_unary_rpc_method_handler(self._unary("GetTrace"), trace_pb2.GetTraceRequest.FromString, lambda m: m.SerializeToString())}
        self._server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler(RESOURCE, methods), grpc.method_handlers_generic_handler(POD, pods),
            grpc.method_handlers_generic_handler(TRACE, trace)))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def count(self, method: str) -> int:
        return sum(1 for m, _ in self.calls if m == method)

    def _record(self, name: str, request: Any, context: Any) -> int:
        with self._lock:
            number = self.count(name)
            self.calls.append((name, request))
            self.metadata.append({k: v for k, v in context.invocation_metadata()})
            return number

    def _unary(self, name: str) -> Callable[[Any, Any], Any]:
        def serve(request: Any, context: Any) -> Any:
            number = self._record(name, request, context)
            try:
                return self.handlers[name](request, number)
            except (Break, Refused) as err:
                _abort(context, err)

        return serve

    def _stream(self, name: str) -> Callable[[Any, Any], Iterator[Any]]:
        def serve(request: Any, context: Any) -> Iterator[Any]:
            number = self._record(name, request, context)
            try:
                for message in self.handlers[name](request, number):
                    if message is HANG:
                        ended = threading.Event()
                        if context.add_callback(ended.set):
                            ended.wait()
                        return
                    yield message
            except (Break, Refused) as err:
                _abort(context, err)

        return serve


HANG = object()  # a stream that sends this stays open until the client ends it


def _abort(context: Any, err: Exception) -> None:
    if isinstance(err, Refused):
        detail = status_pb2.Status(code=err.grpc_code.value[0], message=err.status.message)
        detail.details.add(type_url="type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.Status", value=err.status.SerializeToString())
        context.set_trailing_metadata((("grpc-status-details-bin", detail.SerializeToString()),))
        context.abort(err.grpc_code, err.status.message)
    context.abort(UNAVAILABLE, "the connection broke")


def config_map(name: str, rv: int, uid: str = "", value: str = "") -> Any:
    obj = core_v1.ConfigMap(metadata=meta_v1.ObjectMeta(namespace="default", name=name, uid=uid or "uid-" + name, resourceVersion=str(rv)))
    if value:
        obj.data["value"] = value
    return obj


def packed(obj: Any) -> Any:
    from keelson._resource import encode

    return encode(obj)


def event(kind: str, obj: Any, rv: Optional[int] = None) -> Any:
    return rpc.WatchResponse(
        type=getattr(rpc.WatchResponse, "TYPE_" + kind), object=packed(obj), resource_version=str(rv or obj.metadata.resourceVersion))


def bookmark(rv: int, end: bool = False) -> Any:
    return rpc.WatchResponse(type=rpc.WatchResponse.TYPE_BOOKMARK, resource_version=str(rv), initial_events_end=end)


def unused_address() -> str:
    """An address on which nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"
