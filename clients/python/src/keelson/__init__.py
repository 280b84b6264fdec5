"""A client of Keelson, a Kubernetes control plane, over gRPC.

    import keelson
    from keelson.k8s import core_v1

    with keelson.connect("~/.kube/config") as client:
        for pod in client.resource(core_v1.Pod, "default").list():
            print(pod.metadata.name, pod.status.phase)

Objects are Kubernetes' own protobuf messages, the classes of keelson.k8s. A failed call raises
ApiError, which carries Kubernetes' Status.
"""
from keelson._client import Client, connect
from keelson._kubeconfig import ConfigError
from keelson._resource import Listing, Resource
from keelson._streams import Completed, PortForward, Session
from keelson._watch import ADDED, BOOKMARK, DELETED, MODIFIED, Event, Watch
from keelson.errors import AlreadyExists, ApiError, Conflict, Expired, Forbidden, NotFound
from keelson.objects import Kind, from_dict, int_or_string, kind_of, kinds, quantity, time, to_datetime, to_dict

__all__ = [
    "ADDED", "BOOKMARK", "DELETED", "MODIFIED", "AlreadyExists", "ApiError", "Client", "Completed", "ConfigError", "Conflict", "Event", "Expired",
    "Forbidden", "Kind", "Listing", "NotFound", "PortForward", "Resource", "Session", "Watch", "connect", "from_dict", "int_or_string", "kind_of",
    "kinds", "quantity", "time", "to_datetime", "to_dict",
]
