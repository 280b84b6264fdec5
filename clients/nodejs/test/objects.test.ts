// Kubernetes' JSON of protobuf messages.
import assert from "node:assert/strict";
import { test } from "node:test";
import { apps_v1, authentication_v1, core_v1, decodeObject, encodeObject, kinds, type Kind } from "@keelson/client";
import { durationFromText, durationToText } from "#internal/text.js";

const deployment: apps_v1.Deployment = {
  apiVersion: "apps/v1",
  kind: "Deployment",
  metadata: { name: "shop", creationTimestamp: "2026-01-02T03:04:05Z", uid: "u", managedFields: [{ manager: "m", fieldsV1: { "f:spec": { ".": {} } } }] },
  spec: {
    replicas: 0, // a zero that means something
    selector: { matchLabels: { app: "shop" } },
    strategy: { rollingUpdate: { maxSurge: "25%", maxUnavailable: 0 } },
    template: {
      spec: {
        containers: [{
          name: "c", image: "i",
          resources: { limits: { cpu: "100m", memory: "1Gi" } },
          readinessProbe: { httpGet: { port: "http" } }, // an inline handler
          env: [{ name: "K", valueFrom: { secretKeyRef: { name: "s", key: "k" } } }],
          envFrom: [{ secretRef: { name: "s" } }],
        }],
        volumes: [{ name: "v", emptyDir: {} }, { name: "w", configMap: { name: "x", optional: false } }],
      },
    },
  },
};

function again<T>(kind: Kind<T>, object: T): T {
  return decodeObject(kind, encodeObject(kind, object));
}

test("a manifest survives", () => {
  assert.deepEqual(again(apps_v1.Deployment, deployment), deployment);
});

test("zeros that servers send are left out, except where JSON requires them", () => {
  const pod = again(core_v1.Pod, {
    metadata: { generation: 0 }, spec: { hostNetwork: false, containers: [{ name: "c", terminationMessagePath: "" }] },
    status: { containerStatuses: [{ name: "c", restartCount: 0, ready: false, image: "", imageID: "" }] },
  });
  assert.deepEqual(pod, {
    apiVersion: "v1", kind: "Pod", spec: { containers: [{ name: "c" }] },
    status: { containerStatuses: [{ name: "c", restartCount: 0, ready: false, image: "", imageID: "" }] },
  });
  assert.deepEqual(again(core_v1.Pod, { spec: {} as core_v1.PodSpec }).spec, { containers: [] });
});

test("values that JSON writes as text", () => {
  const secret = again(core_v1.Secret, { data: { k: "AAE=" }, metadata: { deletionTimestamp: "2026-01-02T05:04:05+02:00" } });
  assert.deepEqual([secret.data, secret.metadata?.deletionTimestamp], [{ k: "AAE=" }, "2026-01-02T03:04:05Z"]);
  const review = again(authentication_v1.TokenReview, { spec: {}, status: { user: { extra: { scopes: ["a", "b"] } } } });
  assert.deepEqual(review.status?.user?.extra, { scopes: ["a", "b"] });
  for (const [nanos, text] of [[0n, "0s"], [1500n, "1.5µs"], [90n * 10n ** 9n, "1m30s"], [3_600_500_000_000n, "1h0m0.5s"], [-(10n ** 9n), "-1s"]] as const) {
    assert.deepEqual([durationToText(nanos), durationFromText(text, "")], [text, nanos]);
  }
});

test("what does not fit is refused with its path", () => {
  for (const [object, message] of [
    [{ spec: { containers: [{ nmae: "c" }] } }, "Pod.spec.containers[0]: unknown field nmae"],
    [{ spec: { containers: {} } }, "Pod.spec.containers: want a list, got object"],
    [{ spec: { hostNetwork: "yes" } }, "Pod.spec.hostNetwork: want a boolean, got string"],
    [{ spec: { priority: "1" } }, "Pod.spec.priority: want an integer, got string"],
    [{ spec: { priority: 2 ** 31 } }, "Pod.spec.priority: 2147483648 has more than 32 bits"],
    [{ metadata: { creationTimestamp: "today" } }, 'Pod.metadata.creationTimestamp: "today" is not a time in RFC 3339'],
    [{ metadata: { labels: { a: 1 } } }, "Pod.metadata.labels.a: want a string, got number"],
    [{ kind: "Node" }, "kind is Node, want Pod"],
  ] as const) {
    assert.throws(() => encodeObject(core_v1.Pod, object as unknown as core_v1.Pod), { name: "TypeError", message });
  }
});

test("every kind has a message", () => {
  for (const kind of kinds()) assert.deepEqual((again(kind as Kind<{ kind?: string }>, {})).kind, kind.kind);
});
