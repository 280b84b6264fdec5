"""Kubernetes' objects: kinds, JSON, and values that JSON writes as text.

Objects are protobuf messages, the classes of keelson.k8s. to_dict and from_dict convert them
to and from the dictionaries that `kubectl -o json` shows and manifests hold.
"""
from __future__ import annotations

import base64
import datetime
import functools
import importlib.resources
import json
import re
from dataclasses import dataclass
from typing import Any, Type, TypeVar, Union

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from keelson.k8s import intstr_pb2, meta_v1_pb2, resource_pb2

M = TypeVar("M", bound=Message)

_META = "k8s.io.apimachinery.pkg.apis.meta.v1."
_LISTS = {_META + "Verbs"}  # a message that stands for a list; see also ExtraValue below


@dataclass(frozen=True)
class Kind:
    """A built-in kind."""

    message: str  #: the full name of the protobuf message
    group: str  #: empty for the core group
    version: str
    kind: str
    resource: str  #: the plural; empty for kinds that only travel as the body of a subresource
    namespaced: bool
    stored: bool  #: its objects can be listed and watched

    @property
    def api_version(self) -> str:
        """Group and version as manifests name them."""
        return f"{self.group}/{self.version}" if self.group else self.version


@dataclass(frozen=True)
class _Rules:
    inline: frozenset[str]
    pointer: frozenset[str]
    required: frozenset[str]
    names: dict[str, str]


@functools.lru_cache(maxsize=None)
def _schema() -> tuple[dict[str, Kind], dict[str, _Rules]]:
    data = json.loads(importlib.resources.files("keelson").joinpath("kubernetes.json").read_text(encoding="utf-8"))
    kinds = {k["message"]: Kind(**k) for k in data["kinds"]}
    rules = {
        name: _Rules(frozenset(m.get("inline", ())), frozenset(m.get("pointer", ())), frozenset(m.get("required", ())), m.get("names", {}))
        for name, m in data["messages"].items()
    }
    return kinds, rules


_NO_RULES = _Rules(frozenset(), frozenset(), frozenset(), {})


def kinds() -> list[Kind]:
    """The built-in kinds."""
    return list(_schema()[0].values())


def kind_of(obj: Union[Message, Type[Message]]) -> Kind:
    """Returns the kind of a message or of its class. It raises TypeError if it has none."""
    name = obj.DESCRIPTOR.full_name
    found = _schema()[0].get(name)
    if found is None:
        raise TypeError(f"{name} is not a kind of Kubernetes' API")
    return found


# Values.


def quantity(text: Union[str, int]) -> resource_pb2.Quantity:
    """Returns an amount such as "100m", "1.5Gi" or 2."""
    return resource_pb2.Quantity(string=str(text))


def int_or_string(value: Union[int, str]) -> intstr_pb2.IntOrString:
    """Returns a port, a number or a percentage such as "25%"."""
    if isinstance(value, int):
        return intstr_pb2.IntOrString(type=0, intVal=value)
    return intstr_pb2.IntOrString(type=1, strVal=value)


def time(moment: datetime.datetime) -> meta_v1_pb2.Time:
    """Returns a moment, which must have a time zone, to the second."""
    if moment.tzinfo is None:
        raise ValueError("the time has no time zone")
    return meta_v1_pb2.Time(seconds=int(moment.timestamp() // 1))


def to_datetime(moment: Union[meta_v1_pb2.Time, meta_v1_pb2.MicroTime]) -> datetime.datetime:
    """Returns a Time or MicroTime as a datetime in UTC."""
    return datetime.datetime.fromtimestamp(moment.seconds, datetime.timezone.utc).replace(microsecond=moment.nanos // 1000)


# JSON.


def to_dict(obj: Message) -> dict[str, Any]:
    """Returns what `kubectl get -o json` shows, without fields that are zero and optional.

    A kind's dictionary has apiVersion and kind.
    """
    out: dict[str, Any] = {}
    found = _schema()[0].get(obj.DESCRIPTOR.full_name)
    if found is not None:
        out["apiVersion"], out["kind"] = found.api_version, found.kind
    out.update(_fields(obj))
    return out


def from_dict(cls: Type[M], data: dict[str, Any]) -> M:
    """Returns the message that a dictionary with Kubernetes' JSON names describes.

    It raises ValueError for an unknown field and for a value of the wrong type, with the
    field's path.
    """
    obj = cls()
    found = _schema()[0].get(obj.DESCRIPTOR.full_name)
    if found is not None:
        data = dict(data)
        for key, want in (("apiVersion", found.api_version), ("kind", found.kind)):
            if data.pop(key, want) != want:
                raise ValueError(f"{key}: want {want} for a {found.kind}")
    _merge(obj, data, found.kind if found else obj.DESCRIPTOR.name)
    return obj


def _rules(d: Descriptor) -> _Rules:
    return _schema()[1].get(d.full_name, _NO_RULES)


def _fields(obj: Message) -> dict[str, Any]:
    rules = _rules(obj.DESCRIPTOR)
    out: dict[str, Any] = {}
    for field, value in obj.ListFields():
        name = field.name
        if name in rules.inline:
            out.update(_fields(value))
            continue
        key = rules.names.get(name, name)
        if field.label == FieldDescriptor.LABEL_REPEATED:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                values = field.message_type.fields_by_name["value"]
                out[key] = {k: _value(values, value[k]) for k in sorted(value)}
            else:
                out[key] = [_value(field, v) for v in value]
            continue
        text = _value(field, value)
        if name in rules.pointer or name in rules.required or not _zero(text):
            out[key] = text
    return out


def _zero(value: Any) -> bool:
    return value is None or value == {} or value == "" or value is False or (value == 0 and isinstance(value, (int, float)))


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    if field.message_type is None:
        return value
    name = field.message_type.full_name
    if name == "k8s.io.apimachinery.pkg.api.resource.Quantity":
        return value.string
    if name == "k8s.io.apimachinery.pkg.util.intstr.IntOrString":
        return value.strVal if value.type == 1 else value.intVal
    if name == _META + "Time":
        return _rfc3339(value.seconds, 0, 0) if value.ByteSize() else None
    if name == _META + "MicroTime":
        return _rfc3339(value.seconds, value.nanos // 1000, 6) if value.ByteSize() else None
    if name == _META + "Duration":
        return _duration(value.duration)
    if name == _META + "FieldsV1":
        return json.loads(value.Raw or b"null")
    if name == "k8s.io.apimachinery.pkg.runtime.RawExtension":
        return json.loads(value.raw or b"null")
    if name in _LISTS or name.endswith(".ExtraValue"):
        return list(value.items)
    return _fields(value)


def _merge(obj: Message, data: dict[str, Any], path: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{path}: want an object, got {type(data).__name__}")
    rules = _rules(obj.DESCRIPTOR)
    fields = {rules.names.get(f.name, f.name): f for f in obj.DESCRIPTOR.fields if f.name not in rules.inline}
    rest: dict[str, Any] = {}
    for key, value in data.items():
        field = fields.get(key)
        if field is None:
            rest[key] = value
        elif value is not None:
            try:
                _set(obj, field, value, f"{path}.{key}")
            except TypeError as err:
                raise ValueError(f"{path}.{key}: {err}") from None
    for name in rules.inline:
        inner = obj.DESCRIPTOR.fields_by_name[name].message_type
        inner_rules = _rules(inner)
        mine = {k: rest.pop(k) for k in list(rest) if k in {inner_rules.names.get(f.name, f.name) for f in inner.fields}}
        if mine:
            _merge(getattr(obj, name), mine, path)
    if rest:
        raise ValueError(f"{path}: unknown field {', '.join(sorted(rest))}")


def _set(obj: Message, field: FieldDescriptor, value: Any, path: str) -> None:
    name = field.name
    if field.label != FieldDescriptor.LABEL_REPEATED:
        if field.message_type is None:
            setattr(obj, name, _scalar(field, value))
        else:
            target = getattr(obj, name)
            target.SetInParent()
            _message(target, value, path)
        return
    target = getattr(obj, name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(value, dict):
            raise ValueError(f"{path}: want an object, got {type(value).__name__}")
        values = field.message_type.fields_by_name["value"]
        for k, v in value.items():
            if values.message_type is None:
                target[k] = _scalar(values, v)
            else:
                _message(target[k], v, f"{path}.{k}")
        return
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{path}: want a list, got {type(value).__name__}")
    for i, v in enumerate(value):
        if field.message_type is None:
            target.append(_scalar(field, v))
        else:
            _message(target.add(), v, f"{path}[{i}]")


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value if isinstance(value, bytes) else base64.b64decode(value, validate=True)
    if isinstance(value, bool) != (field.type == FieldDescriptor.TYPE_BOOL):
        raise TypeError(f"{value!r} is not a {'boolean' if field.type == FieldDescriptor.TYPE_BOOL else 'value of its type'}")
    return value


def _message(target: Message, value: Any, path: str) -> None:
    """Sets target from its JSON, which is text for some messages."""
    name = target.DESCRIPTOR.full_name
    if isinstance(value, Message):
        target.CopyFrom(value)
    elif name == "k8s.io.apimachinery.pkg.api.resource.Quantity":
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{path}: want a quantity, got {type(value).__name__}")
        target.MergeFrom(quantity(str(value)))
    elif name == "k8s.io.apimachinery.pkg.util.intstr.IntOrString":
        target.MergeFrom(int_or_string(value))
    elif name in (_META + "Time", _META + "MicroTime"):
        seconds, nanos = _parse_time(value, path)
        target.MergeFrom(type(target)(seconds=seconds, nanos=nanos if name.endswith("MicroTime") else 0))
    elif name == _META + "Duration":
        target.MergeFrom(type(target)(duration=_parse_duration(value, path)))
    elif name == _META + "FieldsV1":
        target.MergeFrom(type(target)(Raw=json.dumps(value).encode()))
    elif name == "k8s.io.apimachinery.pkg.runtime.RawExtension":
        target.MergeFrom(type(target)(raw=json.dumps(value).encode()))
    elif name in _LISTS or name.endswith(".ExtraValue"):
        target.MergeFrom(type(target)(items=value))
    else:
        _merge(target, value, path)


def _rfc3339(seconds: int, micros: int, digits: int) -> str:
    text = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{micros:06d}Z" if digits else text + "Z"


def _parse_time(text: Any, path: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", str(text))
    if isinstance(text, datetime.datetime):
        return int(time(text).seconds), text.microsecond * 1000
    if not found:
        raise ValueError(f"{path}: {text!r} is not a time in RFC 3339")
    zone = "+00:00" if found[3] in "Zz" else found[3]
    moment = datetime.datetime.fromisoformat(found[1].replace("t", "T") + zone)
    return int(moment.timestamp()), int((found[2] or "0").ljust(9, "0"))


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def _parse_duration(text: Any, path: str) -> int:
    """Returns the nanoseconds of a duration as Go writes it."""
    if not re.fullmatch(r"[+-]?(0|(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+)", str(text)):
        raise ValueError(f"{path}: {text!r} is not a duration such as 1m30s")
    total = sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", str(text)))
    return -round(total) if str(text).startswith("-") else round(total)


def _duration(nanos: int) -> str:
    """Returns a duration as Go writes it."""
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    if nanos < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if nanos >= size:
                return f"{sign}{_decimal(nanos, size)}{unit}"
        return "0s"
    hours, rest = divmod(nanos, 3600 * 10**9)
    minutes, rest = divmod(rest, 60 * 10**9)
    text = f"{_decimal(rest, 10**9)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return sign + (f"{hours}h{text}" if hours else text)


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = str(part).rjust(len(str(unit)) - 1, "0").rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def revision(text: str) -> int:
    """Returns a resource version as a number. It raises ValueError if it is none."""
    if not text.isdecimal():
        raise ValueError(f"resource version {text!r} is not a number")
    return int(text)


def key_of(obj: Any) -> tuple[str, str]:
    """Returns namespace and name."""
    return obj.metadata.namespace, obj.metadata.name
