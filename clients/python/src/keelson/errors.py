"""Failures of calls."""
from __future__ import annotations

from typing import Any, Optional

import grpc
from google.protobuf.message import DecodeError

from keelson.client.v1 import status_pb2
from keelson.k8s import meta_v1_pb2

_STATUS = "k8s.io.apimachinery.pkg.apis.meta.v1.Status"
# What an error without a Status is reported as.
_FALLBACK = {
    grpc.StatusCode.UNAVAILABLE: (503, "ServiceUnavailable"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "Timeout"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "Unauthorized"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "Forbidden"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "TooManyRequests"),
    grpc.StatusCode.INVALID_ARGUMENT: (400, "BadRequest"),
    grpc.StatusCode.CANCELLED: (499, "Canceled"),
}


class ApiError(Exception):
    """A call failed.

    Attributes:
        code: the HTTP code of Kubernetes' Status, for instance 404.
        reason: its reason, for instance "NotFound".
        message: its message.
        details: its details as Kubernetes' JSON has them: name, kind, causes,
            retryAfterSeconds.
        answered: True if a server sent the Status; False if it was made up from the gRPC
            error, because no server answered or the connection broke.
        grpc_code: the gRPC code.
        may_have_happened: True if the call was a write whose outcome is not known. Read
            the object before repeating it.
    """

    def __init__(self, what: str, status: meta_v1_pb2.Status, grpc_code: grpc.StatusCode, answered: bool = True) -> None:
        super().__init__(f"{what}: {status.message}" if what else status.message)
        self.code: int = status.code
        self.reason: str = status.reason
        self.message: str = status.message
        self.details: dict[str, Any] = _details(status)
        self.answered = answered
        self.grpc_code = grpc_code

    @property
    def nothing_done(self) -> bool:
        """True if the server refused the call without doing anything, so that it is safe to repeat."""
        return self.answered and self.code == 503 and self.details.get("retryAfterSeconds", 0) > 0

    @property
    def may_have_happened(self) -> bool:
        return self.code in (499, 500, 503, 504) and not self.nothing_done

    def has_cause(self, cause: str) -> bool:
        """Reports whether the details name a cause of this reason."""
        return any(c.get("reason") == cause for c in self.details.get("causes", []))


class NotFound(ApiError):
    """There is no such object (404)."""


class AlreadyExists(ApiError):
    """There is an object of that name (409)."""


class Conflict(ApiError):
    """The object has changed, a precondition does not hold, or others own the fields (409)."""


class Forbidden(ApiError):
    """The caller has not the permission (403)."""


class Expired(ApiError):
    """The server no longer has that state: list again (410)."""


_CLASSES: dict[str, type[ApiError]] = {
    "NotFound": NotFound, "AlreadyExists": AlreadyExists, "Conflict": Conflict,
    "Forbidden": Forbidden, "Expired": Expired, "Gone": Expired,
}


def _details(status: meta_v1_pb2.Status) -> dict[str, Any]:
    from keelson.objects import to_dict  # objects imports nothing of this module

    return to_dict(status.details) if status.HasField("details") else {}


def from_rpc(what: str, err: grpc.RpcError) -> ApiError:
    """Returns the ApiError of a failed RPC."""
    code: grpc.StatusCode = err.code()
    status = _attached(err)
    answered = status is not None
    if status is None:
        http, reason = _FALLBACK.get(code, (500, "InternalError"))
        status = meta_v1_pb2.Status(code=http, reason=reason, message=err.details() or code.name)
    return _CLASSES.get(status.reason, ApiError)(what, status, code, answered)


def _attached(err: grpc.RpcError) -> Optional[meta_v1_pb2.Status]:
    for key, value in err.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                if detail.type_url.rsplit("/", 1)[-1] == _STATUS:
                    return meta_v1_pb2.Status.FromString(detail.value)
        except DecodeError:
            return None
    return None
