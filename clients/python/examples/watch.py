"""Prints every change of pods, for as long as it runs, whatever happens to the apiservers.

    python3 watch.py HOST:PORT,HOST:PORT PKI-DIRECTORY
"""
import sys

import keelson
from keelson.k8s import core_v1

addresses, pki = sys.argv[1:]
with keelson.connect(addresses=addresses, ca=f"{pki}/ca.crt", cert=f"{pki}/tls.crt", key=f"{pki}/tls.key") as client:
    with client.resource(core_v1.Pod).watch(bookmarks=True) as watch:
        for event in watch:
            if event.type == keelson.BOOKMARK:
                print("# up to date at", event.resource_version)
                continue
            pod = event.object
            print(event.type, f"{pod.metadata.namespace}/{pod.metadata.name}", pod.status.phase, pod.spec.nodeName)
