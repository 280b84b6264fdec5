"""Where a cluster is and who the caller is: kubeconfig files and pods' service accounts.

A field that this client cannot honour is refused by name; none is ignored.
"""
from __future__ import annotations

import base64
import binascii
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Union
from urllib.parse import urlsplit

import yaml

Token = Callable[[], str]

_CLUSTER = {"server", "certificate-authority", "certificate-authority-data", "tls-server-name", "disable-compression", "extensions"}
_USER = {"client-certificate", "client-certificate-data", "client-key", "client-key-data", "token", "tokenFile", "extensions"}
_CONTEXT = {"cluster", "user", "namespace", "extensions"}
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ConfigError(ValueError):
    """The configuration does not say how to reach a cluster."""


@dataclass
class Config:
    """How to reach a cluster."""

    addresses: list[str]
    ca: Optional[bytes] = None
    cert: Optional[bytes] = None
    key: Optional[bytes] = None
    token: Optional[Token] = None
    server_name: Optional[str] = None
    namespace: Optional[str] = None  #: the context's


def load(path: Union[str, os.PathLike[str], dict[str, Any], None], context: Optional[str] = None) -> Config:
    """Reads a kubeconfig: a file, a dictionary, or for None the files of $KUBECONFIG or ~/.kube/config."""
    if isinstance(path, dict):
        return _config(_Merged(path, Path.cwd()), context)
    paths = [Path(path).expanduser()] if path is not None else _default_paths()
    merged = _Merged({}, Path.cwd())
    found = False
    for p in paths:
        try:
            text = p.read_text(encoding="utf-8")
        except FileNotFoundError:
            if path is not None:
                raise ConfigError(f"kubeconfig {p}: there is no such file") from None
            continue
        try:
            data = yaml.safe_load(text) or {}
        except yaml.YAMLError as err:
            # The error's own text may quote a credential.
            mark = getattr(err, "problem_mark", None)
            raise ConfigError(f"kubeconfig {p}: not YAML" + (f" at line {mark.line + 1}" if mark else "")) from None
        if not isinstance(data, dict):
            raise ConfigError(f"kubeconfig {p}: want an object")
        merged.add(data, p.resolve().parent)
        found = True
    if not found:
        raise ConfigError("no kubeconfig: " + ", ".join(str(p) for p in paths) + " do not exist")
    return _config(merged, context)


def in_cluster() -> Optional[Config]:
    """Returns the configuration of a pod with a service account, or None outside of a cluster."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (_SERVICE_ACCOUNT / "token").exists():
        return None
    return Config(
        addresses=[f"[{host}]:{port}" if ":" in host else f"{host}:{port}"],
        ca=(_SERVICE_ACCOUNT / "ca.crt").read_bytes(),
        token=file_token(_SERVICE_ACCOUNT / "token"),
        namespace=(_SERVICE_ACCOUNT / "namespace").read_text().strip() or None,
    )


def file_token(path: Path) -> Token:
    """Returns a source that reads the file again after 10 seconds, since tokens of pods are renewed."""
    last: list[Any] = ["", float("-inf")]

    def token() -> str:
        if time.monotonic() - last[1] > 10:
            last[0], last[1] = path.read_text(encoding="utf-8").strip(), time.monotonic()
        return str(last[0])

    return token


def pem(value: Union[str, bytes, os.PathLike[str], None]) -> Optional[bytes]:
    """Returns PEM data, given as such or as the path of a file."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.lstrip().startswith("-----BEGIN "):
        return value.encode()
    return Path(value).expanduser().read_bytes()


def _default_paths() -> list[Path]:
    listed = os.environ.get("KUBECONFIG")
    if listed:
        return [Path(p).expanduser() for p in listed.split(os.pathsep) if p]
    return [Path.home() / ".kube/config"]


class _Merged:
    """Several files, of which the first that names an entry counts. Paths are relative to their file."""

    def __init__(self, data: dict[str, Any], base: Path) -> None:
        self.current = ""
        self.entries: dict[tuple[str, str], tuple[dict[str, Any], Path]] = {}
        self.add(data, base)

    def add(self, data: dict[str, Any], base: Path) -> None:
        self.current = self.current or str(data.get("current-context") or "")
        for section, member in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
            for entry in data.get(section) or []:
                if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                    raise ConfigError(f"kubeconfig: an entry of {section} has no name")
                self.entries.setdefault((section, entry["name"]), (entry.get(member) or {}, base))

    def get(self, section: str, name: str, known: set[str]) -> tuple[dict[str, Any], Path]:
        if (section, name) not in self.entries:
            raise ConfigError(f"kubeconfig: there is no {name!r} in {section}")
        entry, base = self.entries[(section, name)]
        for field, value in entry.items():
            if field not in known and value not in (None, False, "", [], {}):
                raise ConfigError(f"kubeconfig: {section} {name!r}: {field} is not supported")
        return entry, base


def _config(merged: _Merged, context: Optional[str]) -> Config:
    name = context or merged.current
    if not name:
        raise ConfigError("kubeconfig: there is no current-context; name a context")
    ctx, _ = merged.get("contexts", name, _CONTEXT)
    cluster_name, user_name = str(ctx.get("cluster") or ""), str(ctx.get("user") or "")
    cluster, cluster_base = merged.get("clusters", cluster_name, _CLUSTER)
    config = Config(
        addresses=[_address(cluster_name, str(cluster.get("server") or ""))],
        ca=_data(cluster, "certificate-authority", cluster_base),
        server_name=cluster.get("tls-server-name") or None,
        namespace=ctx.get("namespace") or None,
    )
    if user_name:
        user, base = merged.get("users", user_name, _USER)
        config.cert, config.key = _data(user, "client-certificate", base), _data(user, "client-key", base)
        if (config.cert is None) != (config.key is None):
            raise ConfigError(f"kubeconfig: users {user_name!r}: client-certificate and client-key belong together")
        if user.get("tokenFile"):
            config.token = file_token(base / str(user["tokenFile"]))
        elif user.get("token"):
            text = str(user["token"])
            config.token = lambda: text
    return config


def _address(cluster: str, server: str) -> str:
    where = f"kubeconfig: clusters {cluster!r}: server {server!r}"
    url = urlsplit(server)
    try:
        port = url.port
    except ValueError:
        raise ConfigError(f"{where} has a port that is not a number") from None
    if url.scheme != "https" or not url.hostname:
        raise ConfigError(f"{where} is not https://HOST:PORT")
    if url.path.strip("/") or url.query or url.fragment or url.username or url.password:
        raise ConfigError(f"{where} has more than a host and a port, which gRPC does not support")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{host}:{443 if port is None else port}"


def _data(entry: dict[str, Any], field: str, base: Path) -> Optional[bytes]:
    if entry.get(field + "-data"):
        try:
            return base64.b64decode(entry[field + "-data"], validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError(f"kubeconfig: {field}-data is not base64") from None
    if entry.get(field):
        path = base / str(entry[field])
        try:
            return path.read_bytes()
        except OSError as err:
            raise ConfigError(f"kubeconfig: {field} {path}: {err.strerror}") from None
    return None
