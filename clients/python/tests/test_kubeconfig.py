"""Kubeconfigs: what is read, and what is refused by name."""
from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import keelson
import pytest
import yaml
from keelson import _kubeconfig


def kubeconfig(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, context: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", **(context or {})}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://10.0.0.1:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }


def test_data_and_files(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("CA")
    data = base64.b64encode(b"PEM").decode()
    config = kubeconfig(
        {"certificate-authority": "ca.crt", "tls-server-name": "kubernetes"},
        {"client-certificate-data": data, "client-key-data": data}, {"namespace": "shop"})
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    got = _kubeconfig.load(tmp_path / "config")
    assert got.addresses == ["10.0.0.1:6443"]
    assert (got.ca, got.cert, got.key) == (b"CA", b"PEM", b"PEM")
    assert (got.server_name, got.namespace, got.token) == ("kubernetes", "shop", None)


def test_tokens(tmp_path: Path) -> None:
    token = _kubeconfig.load(kubeconfig(user={"token": "t"})).token
    assert token is not None and token() == "t"
    (tmp_path / "token").write_text("from-file\n")
    token = _kubeconfig.load(kubeconfig(user={"tokenFile": str(tmp_path / "token")})).token
    assert token is not None and token() == "from-file"


def test_several_files_of_which_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = kubeconfig(), kubeconfig({"server": "https://second:1"})
    del first["users"]
    (tmp_path / "1").write_text(yaml.safe_dump(first))
    (tmp_path / "2").write_text(yaml.safe_dump(second))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/1:{tmp_path}/none:{tmp_path}/2")
    assert _kubeconfig.load(None).addresses == ["10.0.0.1:6443"]


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("cluster", "insecure-skip-tls-verify", True), ("cluster", "proxy-url", "http://proxy"), ("user", "exec", {"command": "aws"}),
        ("user", "auth-provider", {"name": "gcp"}), ("user", "username", "admin"), ("user", "password", "secret"), ("user", "as", "admin"),
        ("user", "as-groups", ["g"]),
    ],
)
def test_fields_that_are_refused(section: str, field: str, value: Any) -> None:
    with pytest.raises(keelson.ConfigError, match=f"{field} is not supported") as caught:
        _kubeconfig.load(kubeconfig(**{section: {field: value}}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("server", ["http://a:1", "https://a:1/path", "a:1", "https://u:p@a:1", "https://a:x", ""])
def test_servers_that_are_refused(server: str) -> None:
    with pytest.raises(keelson.ConfigError, match="server"):
        _kubeconfig.load(kubeconfig({"server": server}))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    config = kubeconfig()
    with pytest.raises(keelson.ConfigError, match="no 'x' in contexts"):
        _kubeconfig.load(config, "x")
    with pytest.raises(keelson.ConfigError, match="belong together"):
        _kubeconfig.load(kubeconfig(user={"client-key-data": "aaaa"}))
    with pytest.raises(keelson.ConfigError, match="client-key-data is not base64"):
        _kubeconfig.load(kubeconfig(user={"client-key-data": "?"}))
    with pytest.raises(keelson.ConfigError, match="no such file"):
        _kubeconfig.load(tmp_path / "none")
    (tmp_path / "bad").write_text("users: [{token: secret")
    with pytest.raises(keelson.ConfigError, match="not YAML") as caught:
        _kubeconfig.load(tmp_path / "bad")
    assert "secret" not in str(caught.value)


def test_connect_refuses_wrong_arguments() -> None:
    with pytest.raises(keelson.ConfigError, match="needs TLS"):
        keelson.connect(addresses="a:1", token="t", insecure=True)
    with pytest.raises(keelson.ConfigError, match="not HOST:PORT"):
        keelson.connect(addresses="a")
    with pytest.raises(keelson.ConfigError, match="belong together"):
        keelson.connect(addresses="a:1", cert=b"x")
    with pytest.raises(keelson.ConfigError, match="no addresses"):
        keelson.connect(addresses=[])


def test_a_pod_finds_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("token", "ca.crt", "namespace"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(_kubeconfig, "_SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    got = _kubeconfig.in_cluster()
    assert got is not None and got.token is not None
    assert (got.addresses, got.ca, got.token(), got.namespace) == (["[fd00::1]:6443"], b"ca.crt", "token", "namespace")
