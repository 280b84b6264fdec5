"""Typed access to the objects of one kind."""
from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Generic, List, Iterator, Optional, Type, TypeVar, Union

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from keelson import errors
from keelson._connection import Again
from keelson._watch import State, Watch
from keelson.objects import Kind, kind_of, to_dict
from keelson.resource.v1 import resource_pb2 as rpc

if TYPE_CHECKING:
    from keelson._client import Client

T = TypeVar("T", bound=Message)
B = TypeVar("B", bound=Message)
SERVICE = "/keelson.resource.v1.ResourceService/"
PREFIX = "type.googleapis.com/"
_PATCHES = {"json": rpc.PatchRequest.KIND_JSON, "merge": rpc.PatchRequest.KIND_MERGE, "strategic": rpc.PatchRequest.KIND_STRATEGIC_MERGE}


class Resource(Generic[T]):
    """Access to one kind, and by default to one namespace. It is small and safe for concurrent use.

    All methods raise ApiError. `timeout` is in seconds and includes repetitions; None takes
    the client's. `traceparent` makes the call part of a W3C trace.
    """

    def __init__(self, client: "Client", cls: Type[T], namespace: Optional[str]) -> None:
        self.kind: Kind = kind_of(cls)
        if not self.kind.resource:
            raise TypeError(f"a {self.kind.kind} has no collection: it is the body of a subresource; see post")
        if namespace and not self.kind.namespaced:
            raise TypeError(f"a {self.kind.kind} has no namespace")
        self._client = client
        self._cls = cls
        self._namespace = namespace or ""

    # Reads.

    def get(self, name: str, *, namespace: Optional[str] = None, resource_version: str = "", timeout: Optional[float] = None, traceparent: Optional[str] = None) -> T:
        """Returns an object, by default in its newest state. It raises NotFound."""
        request = rpc.GetRequest(ref=self._ref(name, namespace), resource_version=resource_version)
        answer = self._unary("Get", self._what("get", name, namespace), request, rpc.GetResponse, True, timeout, traceparent)
        return self._decode(answer.object)

    def list(
        self,
        *,
        namespace: Optional[str] = None,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
        resource_version_match: str = "",
        limit: int = 0,
        continue_token: str = "",
        page_size: int = 0,
        timeout: Optional[float] = None,
        traceparent: Optional[str] = None,
    ) -> "Listing[T]":
        """Returns an iterator over a collection, all of one revision, which holds one page at a time.

        Without a namespace it is that of all namespaces. If a connection breaks, the iteration
        continues at another apiserver with the same revision. `limit` ends it early, with
        `continue_token` set. There is no time limit by default, since the caller sets the pace.
        """
        request = rpc.ListRequest(
            ref=self._ref("", namespace, collection=True), label_selector=label_selector, field_selector=field_selector,
            resource_version=resource_version, resource_version_match=resource_version_match, limit=limit, page_size=page_size)
        setattr(request, "continue", continue_token)
        return Listing(self, request, timeout, traceparent)

    def watch(
        self,
        *,
        start: Union[str, "Listing[T]", None] = None,
        items: Optional[List[T]] = None,
        name: str = "",
        namespace: Optional[str] = None,
        label_selector: str = "",
        field_selector: str = "",
        bookmarks: bool = False,
        traceparent: Optional[str] = None,
    ) -> Watch[T]:
        """Returns an iterator over changes, which resumes by itself; see Watch.

        Without `start`, the present objects come first as ADDED, and each change is yielded
        once even if the server has to send its state anew. With `start`, a resource version or
        a Listing, the changes after it are yielded; if the server has forgotten that state, the
        watch raises Expired, unless `items` are all objects of that revision. `bookmarks`
        yields these too; the first ends the present objects.
        """
        if items is not None and not start:
            raise ValueError("items need start, the revision that they are of")
        first = start.resource_version if isinstance(start, Listing) else start or ""
        request = rpc.WatchRequest(
            ref=self._ref(name, namespace, collection=True), label_selector=label_selector, field_selector=field_selector, allow_bookmarks=True)

        def open_stream(state: State[T]) -> grpc.Call:
            request.resource_version = state.resume
            request.send_initial_events = not state.resume
            return self._client.connection.stream(SERVICE + "Watch", request, rpc.WatchResponse, traceparent=traceparent)

        return Watch(self._what("watch", name, namespace), open_stream, State(self._decode, first, items), bookmarks)

    # Writes. A create, and a delete with a uid, is repeated after a broken connection, which its
    # request id makes safe. Others are repeated only if the server says that it did nothing.

    def create(self, obj: T, *, dry_run: bool = False, field_manager: Optional[str] = None, timeout: Optional[float] = None, traceparent: Optional[str] = None) -> T:
        """Stores a new object and returns it. It raises AlreadyExists."""
        ref = self._ref("", self._namespace_of(obj))
        request = rpc.CreateRequest(ref=ref, object=self._encode(obj), options=self._options(dry_run, field_manager))
        if self.kind.stored:
            request.options.request_id = request_id()
        answer = self._unary(
            "Create", self._what("create", _meta(obj).name or _meta(obj).generateName, ref.namespace), request, rpc.CreateResponse, self.kind.stored, timeout, traceparent)
        return self._decode(answer.object)

    def update(self, obj: T, *, subresource: str = "", dry_run: bool = False, field_manager: Optional[str] = None, timeout: Optional[float] = None, traceparent: Optional[str] = None) -> T:
        """Replaces an object, or its subresource such as "status". It raises Conflict if the object's resourceVersion is not the present one."""
        ref = self._ref(_meta(obj).name, self._namespace_of(obj), subresource)
        request = rpc.UpdateRequest(ref=ref, object=self._encode(obj), options=self._options(dry_run, field_manager))
        answer = self._unary("Update", self._what("update", ref.name, ref.namespace), request, rpc.UpdateResponse, False, timeout, traceparent)
        return self._decode(answer.object)

    def patch(
        self, name: str, patch: Any, *, kind: str = "merge", namespace: Optional[str] = None, subresource: str = "", dry_run: bool = False,
        field_manager: Optional[str] = None, timeout: Optional[float] = None, traceparent: Optional[str] = None,
    ) -> T:
        """Changes part of an object. kind is "merge" (RFC 7386), "json" (RFC 6902) or "strategic"; patch is what JSON holds, or JSON as bytes."""
        if kind not in _PATCHES:
            raise ValueError(f"patch kind {kind!r}: want one of {', '.join(_PATCHES)}")
        data = patch if isinstance(patch, bytes) else json.dumps(patch).encode()
        request = rpc.PatchRequest(
            ref=self._ref(name, namespace, subresource), kind=_PATCHES[kind], patch=data, options=self._options(dry_run, field_manager))
        return self._decode(self._unary("Patch", self._what("patch", name, namespace), request, rpc.PatchResponse, False, timeout, traceparent).object)

    def apply(
        self, configuration: Union[T, dict[str, Any], str, bytes], *, name: Optional[str] = None, namespace: Optional[str] = None, force: bool = False,
        subresource: str = "", dry_run: bool = False, field_manager: Optional[str] = None, timeout: Optional[float] = None, traceparent: Optional[str] = None,
    ) -> T:
        """Performs server-side apply, and creates the object if it does not exist.

        configuration holds the fields that the caller wants: a message (the fields that are
        set), a dictionary, or JSON or YAML text. It raises Conflict if others own fields with
        other values and force is not set.
        """
        if isinstance(configuration, (str, bytes)):
            import yaml

            data = configuration.encode() if isinstance(configuration, str) else configuration
            meta = (yaml.safe_load(data) or {}).get("metadata") or {}
        else:
            document = to_dict(configuration) if isinstance(configuration, Message) else configuration
            data, meta = json.dumps(document).encode(), document.get("metadata") or {}
        name = name or str(meta.get("name") or "")
        namespace = str(meta.get("namespace") or "") or namespace
        request = rpc.ApplyRequest(
            ref=self._ref(name, namespace, subresource), configuration=data, force=force, options=self._options(dry_run, field_manager))
        return self._decode(self._unary("Apply", self._what("apply", name, namespace), request, rpc.ApplyResponse, False, timeout, traceparent).object)

    def delete(
        self, name: str, *, namespace: Optional[str] = None, uid: str = "", resource_version: str = "", grace_period_seconds: Optional[int] = None,
        propagation_policy: str = "", dry_run: bool = False, timeout: Optional[float] = None, traceparent: Optional[str] = None,
    ) -> Optional[T]:
        """Removes an object, or begins its graceful termination. It returns the object if it still exists, or None if it is gone.

        uid and resource_version are preconditions: Conflict is raised if they do not hold.
        """
        request = rpc.DeleteRequest(ref=self._ref(name, namespace), propagation_policy=propagation_policy, options=self._options(dry_run, None))
        if uid or resource_version:
            request.preconditions.MergeFrom(rpc.Preconditions(uid=uid, resource_version=resource_version))
        if grace_period_seconds is not None:
            request.grace_period_seconds = grace_period_seconds
        if uid:
            request.options.request_id = request_id()
        answer = self._unary("Delete", self._what("delete", name, namespace), request, rpc.DeleteResponse, bool(uid), timeout, traceparent)
        return None if answer.gone else self._decode(answer.object)

    def delete_collection(
        self, *, namespace: Optional[str] = None, label_selector: str = "", field_selector: str = "", grace_period_seconds: Optional[int] = None,
        propagation_policy: str = "", dry_run: bool = False, timeout: Optional[float] = None, traceparent: Optional[str] = None,
    ) -> int:
        """Removes what a list with the same selectors returns, and returns how many objects that were."""
        request = rpc.DeleteCollectionRequest(
            ref=self._ref("", namespace, collection=True), label_selector=label_selector, field_selector=field_selector,
            propagation_policy=propagation_policy, options=self._options(dry_run, None))
        if grace_period_seconds is not None:
            request.grace_period_seconds = grace_period_seconds
        return int(self._unary("DeleteCollection", self._what("delete all", "", namespace), request, rpc.DeleteCollectionResponse, False, timeout, traceparent).count)

    def post(self, name: str, subresource: str, body: B, *, answer: Optional[Type[B]] = None, namespace: Optional[str] = None, timeout: Optional[float] = None, traceparent: Optional[str] = None) -> B:
        """Performs the action of a subresource ("binding", "eviction", "token") and returns the server's answer, of body's type."""
        request = rpc.CreateRequest(ref=self._ref(name, namespace, subresource), object=encode(body), options=self._options(False, None))
        got = self._unary("Create", self._what(f"create {subresource} of", name, namespace), request, rpc.CreateResponse, False, timeout, traceparent)
        return decode(answer or type(body), got.object)

    # Parts.

    def _what(self, verb: str, name: str, namespace: Optional[str]) -> str:
        where = self._namespace if namespace is None else namespace
        return f"{verb} {self.kind.resource} {where + '/' if where else ''}{name}".rstrip()

    def _timeout(self, timeout: Optional[float]) -> Optional[float]:
        return self._client.timeout if timeout is None else timeout

    def _unary(self, method: str, what: str, request: Message, answer: Any, safe: bool, timeout: Optional[float], traceparent: Optional[str]) -> Any:
        return self._client.connection.unary(
            what, SERVICE + method, request, answer, safe=safe, timeout=self._timeout(timeout), traceparent=traceparent)

    def _ref(self, name: str, namespace: Optional[str], subresource: str = "", collection: bool = False) -> rpc.Ref:
        where = self._namespace if namespace is None else namespace
        if self.kind.namespaced and not where and not collection:
            raise ValueError(f"a {self.kind.kind} has a namespace: give one to resource() or to the call")
        if not self.kind.namespaced:
            where = ""
        return rpc.Ref(group=self.kind.group, version=self.kind.version, resource=self.kind.resource, namespace=where, name=name, subresource=subresource)

    def _namespace_of(self, obj: Any) -> Optional[str]:
        return str(obj.metadata.namespace) or None if self.kind.namespaced else None

    def _options(self, dry_run: bool, field_manager: Optional[str]) -> rpc.WriteOptions:
        return rpc.WriteOptions(dry_run=dry_run, field_manager=field_manager or self._client.field_manager)

    def _encode(self, obj: T) -> AnyMessage:
        if obj.DESCRIPTOR.full_name != self.kind.message:
            raise TypeError(f"want a {self.kind.message}, got a {obj.DESCRIPTOR.full_name}")
        return encode(obj)

    def _decode(self, packed: AnyMessage) -> T:
        return decode(self._cls, packed)


class Listing(Generic[T]):
    """An iterator over a collection; see Resource.list. It is consumed once."""

    def __init__(self, resource: Resource[T], request: rpc.ListRequest, timeout: Optional[float], traceparent: Optional[str]) -> None:
        self._resource = resource
        self._request = request
        self._timeout = timeout
        self._traceparent = traceparent
        self._pages = self._run()
        self._first: Optional[rpc.ListResponse] = None
        self._resource_version = ""
        self.continue_token = ""  #: set at the end if limit ended the list
        self.remaining_item_count = 0  #: the number of objects after those returned, if it is known

    @property
    def resource_version(self) -> str:
        """The revision of the list, from which a watch can start. Reading it fetches the first page."""
        if not self._resource_version:
            self._first = next(self._pages, None)
        return self._resource_version

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page

    def pages(self) -> Iterator[list[T]]:
        """Yields the objects page by page."""
        while True:
            page, self._first = self._first or next(self._pages, None), None
            if page is None:
                return
            yield [self._resource._decode(a) for a in page.items]

    def _run(self) -> Iterator[rpc.ListResponse]:
        what = self._resource._what("list", "", self._request.ref.namespace)
        received, skip = 0, 0
        again = Again(safe=True)
        while True:
            call = self._resource._client.connection.stream(
                SERVICE + "List", self._request, rpc.ListResponse, timeout=self._timeout, traceparent=self._traceparent)
            try:
                for page in call:
                    again = Again(safe=True)
                    self._resource_version = page.resource_version
                    self.continue_token = getattr(page, "continue")
                    self.remaining_item_count = page.remaining_item_count
                    drop = min(skip, len(page.items))
                    del page.items[:drop]
                    skip -= drop
                    received += len(page.items)
                    if page.items or not drop:
                        yield page
                return
            except grpc.RpcError as err:
                failure = errors.from_rpc(what, err)
            finally:
                call.cancel()
            pause = again.pause(failure)
            if pause is None:
                raise failure
            self._resource._client.sleep(pause)
            # The rest is read from the same revision; a continue token names it already.
            skip = received
            if self._resource_version and not getattr(self._request, "continue"):
                self._request.resource_version, self._request.resource_version_match = self._resource_version, "Exact"


def request_id() -> str:
    """Returns the id of a write, by which servers know its repetition."""
    return uuid.uuid4().hex


def encode(obj: Message) -> AnyMessage:
    """Packs an object as the protocol does."""
    return AnyMessage(type_url=PREFIX + obj.DESCRIPTOR.full_name, value=obj.SerializeToString())


def decode(cls: Type[T], packed: AnyMessage) -> T:
    """Unpacks an object, which must be of the class."""
    if packed.type_url.rsplit("/", 1)[-1] != cls.DESCRIPTOR.full_name:
        raise ValueError(f"the server sent a {packed.type_url!r} where a {cls.DESCRIPTOR.full_name} was expected")
    obj = cls()
    obj.ParseFromString(packed.value)
    return obj


def _meta(obj: Any) -> Any:
    return obj.metadata
