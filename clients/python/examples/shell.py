"""Runs a command in a pod, prints its log, and fetches a page through a forwarded port.

    python3 shell.py KUBECONFIG NAMESPACE POD PORT COMMAND...
"""
import sys
import urllib.request

import keelson

kubeconfig, namespace, pod, port, *command = sys.argv[1:]
with keelson.connect(kubeconfig) as client:
    done = client.run(pod, namespace, command)
    print("exit code", done.exit_code)
    sys.stdout.buffer.write(done.stdout)
    for line in client.logs(pod, namespace, tail_lines=5):
        sys.stdout.buffer.write(line)
    with client.port_forward(pod, namespace, int(port)) as forward:
        with urllib.request.urlopen("http://%s:%d/" % forward.address, timeout=10) as page:
            print(page.status, len(page.read()), "bytes")
