"""Kubernetes' JSON of protobuf messages."""
from __future__ import annotations

import datetime
from typing import Any

import keelson
import pytest
from keelson.k8s import apps_v1, authentication_v1, core_v1, meta_v1

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "shop", "creationTimestamp": "2026-01-02T03:04:05Z", "uid": "u",
        "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {".": {}}}}],
    },
    "spec": {
        "replicas": 0,  # a zero that means something
        "selector": {"matchLabels": {"app": "shop"}},
        "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "c", "image": "i",
                        "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
                        "readinessProbe": {"httpGet": {"port": "http"}},  # an inline handler
                        "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                        "envFrom": [{"secretRef": {"name": "s"}}],
                    }
                ],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "x", "optional": False}}],
            }
        },
    },
}


def test_a_manifest_survives() -> None:
    obj = keelson.from_dict(apps_v1.Deployment, DEPLOYMENT)
    assert obj.spec.template.spec.containers[0].readinessProbe.handler.httpGet.port.strVal == "http"
    assert obj.spec.template.spec.volumes[0].volumeSource.HasField("emptyDir")
    again = apps_v1.Deployment.FromString(obj.SerializeToString())
    assert keelson.to_dict(again) == DEPLOYMENT


def test_zeros_that_servers_send_are_left_out() -> None:
    pod = core_v1.Pod()
    pod.metadata.generation = 0
    pod.spec.hostNetwork = False
    pod.spec.containers.add(name="c", terminationMessagePath="")
    pod.status.containerStatuses.add(name="c", restartCount=0, ready=False, image="", imageID="")
    pod.metadata.creationTimestamp.SetInParent()
    got = keelson.to_dict(pod)
    assert got["spec"] == {"containers": [{"name": "c"}]}
    assert got["status"] == {"containerStatuses": [{"name": "c", "restartCount": 0, "ready": False, "image": "", "imageID": ""}]}
    assert "metadata" not in got


def test_values_that_json_writes_as_text() -> None:
    secret = keelson.from_dict(core_v1.Secret, {"data": {"k": "AAE="}, "metadata": {"deletionTimestamp": "2026-01-02T05:04:05+02:00"}})
    assert secret.data["k"] == b"\0\1"
    assert keelson.to_dict(secret)["metadata"]["deletionTimestamp"] == "2026-01-02T03:04:05Z"
    review = keelson.from_dict(authentication_v1.TokenReview, {"status": {"user": {"extra": {"scopes": ["a", "b"]}}}})
    assert keelson.to_dict(review)["status"]["user"]["extra"] == {"scopes": ["a", "b"]}
    assert keelson.quantity(2).string == "2" and keelson.int_or_string("25%").type == 1 and keelson.int_or_string(80).intVal == 80
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    assert keelson.to_datetime(keelson.time(moment)) == moment
    with pytest.raises(ValueError):
        keelson.time(datetime.datetime(2026, 1, 2))


@pytest.mark.parametrize(
    "cls, data, message",
    [
        (core_v1.Pod, {"spec": {"containers": [{"nmae": "c"}]}}, r"Pod.spec.containers\[0\]: unknown field nmae"),
        (core_v1.Pod, {"spec": {"containers": {}}}, "Pod.spec.containers: want a list"),
        (core_v1.Pod, {"spec": {"hostNetwork": "yes"}}, "Pod.spec.hostNetwork: 'yes' is not a boolean"),
        (core_v1.Pod, {"spec": {"priority": "1"}}, "Pod.spec.priority"),
        (core_v1.Pod, {"metadata": {"creationTimestamp": "today"}}, "not a time in RFC 3339"),
        (core_v1.Pod, {"kind": "Node"}, "kind: want Pod"),
        (meta_v1.ObjectMeta, {"labels": {"a": 1}}, "ObjectMeta.labels"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(cls: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keelson.from_dict(cls, data)


def test_every_kind_has_a_message() -> None:
    import importlib

    for kind in keelson.kinds():
        package, _, name = kind.message.rpartition(".")
        parts = package.split(".")
        module = importlib.import_module(f"keelson.k8s.{parts[-2]}_{parts[-1]}")
        assert keelson.kind_of(getattr(module, name)) == kind
