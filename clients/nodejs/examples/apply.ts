// Applies a Deployment and shows what that caused: node apply.js [KUBECONFIG]
import { ApiError, apps_v1, connect } from "@keelson/client";

const manifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: example, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: example}}
  template:
    metadata: {labels: {app: example}}
    spec: {containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "600"]}]}
`;

const client = connect({ kubeconfig: process.argv[2], userAgent: "example-apply/1" });
try {
  const deployments = client.resource(apps_v1.Deployment, "default");
  const applied = await deployments.apply(manifest);
  console.log("applied at", applied.metadata?.resourceVersion);
  for await (const { type, object } of deployments.watch({ name: "example" })) {
    const { status, spec, metadata } = object;
    console.log(type, status?.readyReplicas ?? 0, "of", spec?.replicas, "ready");
    if ((status?.observedGeneration ?? 0) >= (metadata?.generation ?? 0) && status?.replicas === spec?.replicas) break;
  }
  const trace = await client.trace(apps_v1.Deployment, { name: "example", namespace: "default" });
  for (const s of trace.spans) console.log(`${(Number(s.endUnixNano - s.startUnixNano) / 1e6).toFixed(2)} ms  ${s.service}: ${s.name}`);
  await deployments.delete("example");
} catch (err) {
  if (!(err instanceof ApiError) || err.reason !== "Conflict") throw err;
  console.error("others own fields:", err.details.causes);
} finally {
  client.close();
}
