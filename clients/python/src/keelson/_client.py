"""A connection to a cluster."""
from __future__ import annotations

import os
import time
from typing import Any, Callable, Optional, Sequence, Type, TypeVar, Union

import grpc
from google.protobuf.message import Message

from keelson import _kubeconfig
from keelson._connection import Connection
from keelson._resource import Resource
from keelson._streams import Streams
from keelson.objects import kind_of
from keelson.trace.v1 import trace_pb2

T = TypeVar("T", bound=Message)
Pem = Union[str, bytes, os.PathLike, None]


def connect(
    kubeconfig: Union[str, "os.PathLike[str]", dict[str, Any], None] = None,
    *,
    context: Optional[str] = None,
    addresses: Union[str, Sequence[str], None] = None,
    ca: Pem = None,
    cert: Pem = None,
    key: Pem = None,
    token: Union[str, Callable[[], str], None] = None,
    server_name: Optional[str] = None,
    user_agent: str = "keelson-python",
    timeout: Optional[float] = 30.0,
    connect_timeout: float = 10.0,
    insecure: bool = False,
) -> "Client":
    """Returns a client. It does not wait for a connection.

    Args:
        kubeconfig: a file or its content. Without it and without addresses, the files of
            $KUBECONFIG or ~/.kube/config, and in a pod its service account.
        context: the kubeconfig's context, by default the current one.
        addresses: HOST:PORT of the apiservers' gRPC or HTTPS ports. Calls are balanced over
            those that answer. With a kubeconfig, they replace its server.
        ca, cert, key: PEM data or the paths of files. Without ca, the machine's authorities.
        token: a bearer token, or a function that returns one and is called for each call.
        server_name: the name in the apiservers' certificates, by default that of each address.
        user_agent: the program, for instance "shop/1.2". The part before the slash is the
            field manager of writes.
        timeout: seconds that a call may take with its repetitions; None for no limit. Watches
            and streams have none.
        connect_timeout: seconds that a call waits while no apiserver is connected.
        insecure: clear text, for tests only. A token is refused with it.
    """
    if isinstance(addresses, str):
        addresses = [a.strip() for a in addresses.split(",")]
    config: Optional[_kubeconfig.Config] = None
    if kubeconfig is None and addresses is None:
        config = _kubeconfig.in_cluster() if not os.environ.get("KUBECONFIG") else None
    if config is None and (kubeconfig is not None or addresses is None):
        config = _kubeconfig.load(kubeconfig, context)
    config = config or _kubeconfig.Config([])
    if addresses is not None:
        config.addresses = list(addresses)
    for a in config.addresses:
        host, colon, port = a.rpartition(":")
        if not host or not colon or not port.isdecimal():
            raise _kubeconfig.ConfigError(f"address {a!r} is not HOST:PORT")
    if not config.addresses:
        raise _kubeconfig.ConfigError("no addresses")
    config.ca, config.cert, config.key = (_kubeconfig.pem(given) or found for given, found in ((ca, config.ca), (cert, config.cert), (key, config.key)))
    if (config.cert is None) != (config.key is None):
        raise _kubeconfig.ConfigError("cert and key belong together")
    if isinstance(token, str):
        text = token
        config.token = lambda: text
    elif token is not None:
        config.token = token
    if insecure and config.token is not None:
        raise _kubeconfig.ConfigError("a token needs TLS")
    credentials = None if insecure else grpc.ssl_channel_credentials(config.ca, config.key, config.cert)
    connection = Connection(config.addresses, credentials, config.token, user_agent, server_name or config.server_name, connect_timeout)
    return Client(connection, user_agent.split("/", 1)[0], timeout, config.namespace)


class Client(Streams):
    """A connection to a cluster, made by connect. It is safe for concurrent use. Close it, or use it in a with statement."""

    def __init__(self, connection: Connection, field_manager: str, timeout: Optional[float], namespace: Optional[str]) -> None:
        self.connection = connection
        self.field_manager = field_manager  #: the default field manager of writes
        self.timeout = timeout  #: seconds of a call
        self.namespace = namespace  #: the kubeconfig's; resource does not use it by itself
        self.sleep: Callable[[float], None] = time.sleep

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. Calls in progress fail, and watches end with ValueError."""
        self.connection.close()

    def resource(self, cls: Type[T], namespace: Optional[str] = None) -> Resource[T]:
        """Returns access to a kind, for instance resource(core_v1.Pod, "default").

        Without a namespace, list, watch and delete_collection cover all, and other methods
        need one.
        """
        return Resource(self, cls, namespace)

    def trace(
        self, obj: Union[Message, Type[Message], None] = None, name: str = "", *, namespace: str = "", earlier: int = 0, trace_id: str = "",
        timeout: Optional[float] = None,
    ) -> trace_pb2.GetTraceResponse:
        """Returns what the last write of an object caused: the spans of its trace, parents first.

        obj is the object, or its class with a name and namespace. earlier selects the trace of
        an earlier write. trace_id names a trace instead of an object. It raises NotFound if no
        span is in the apiservers' memory.
        """
        request = trace_pb2.GetTraceRequest(trace_id=trace_id, earlier=earlier)
        if obj is not None:
            kind = kind_of(obj)
            if isinstance(obj, Message):
                metadata: Any = getattr(obj, "metadata")
                name, namespace = metadata.name, metadata.namespace
            request.MergeFrom(trace_pb2.GetTraceRequest(group=kind.group, resource=kind.resource, namespace=namespace, name=name))
        what = f"trace {request.resource} {namespace + '/' if namespace else ''}{name}" if obj is not None else f"trace {trace_id}"
        return self.connection.unary(
            what, "/keelson.trace.v1.TraceService/GetTrace", request, trace_pb2.GetTraceResponse, safe=True,
            timeout=self.timeout if timeout is None else timeout)
