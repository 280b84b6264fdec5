"""Applies a Deployment and shows what that caused.

    python3 apply.py [KUBECONFIG]
"""
import sys

import keelson
from keelson.k8s import apps_v1

MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: example, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: example}}
  template:
    metadata: {labels: {app: example}}
    spec: {containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "600"]}]}
"""

with keelson.connect(*sys.argv[1:], user_agent="example-apply/1") as client:
    deployments = client.resource(apps_v1.Deployment, "default")
    try:
        deployment = deployments.apply(MANIFEST)
    except keelson.Conflict as err:
        sys.exit(f"others own fields: {err.details}")
    print("applied", deployment.metadata.name, "at", deployment.metadata.resourceVersion)
    for event in deployments.watch(name="example"):
        status = event.object.status
        print(event.type, status.readyReplicas, "of", event.object.spec.replicas, "ready")
        if status.observedGeneration >= deployment.metadata.generation and status.replicas == event.object.spec.replicas:
            break
    for span in client.trace(deployment).spans:
        print(f"{(span.end_unix_nano - span.start_unix_nano) / 1e6:9.2f} ms  {span.service}: {span.name}")
    deployments.delete("example")
