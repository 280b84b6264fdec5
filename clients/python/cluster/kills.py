#!/usr/bin/python3
"""Writes and watches while apiservers are killed, and checks that no event is lost or repeated
and that no write is repeated. clients/nodejs/cluster/kills.ts is its twin.

    kills.py HOST:PORT,HOST:PORT,... PKI-DIRECTORY NAMESPACE

It prints "ready" once it writes, runs until its standard input ends, and prints a summary.

# How it knows

- Each write has a token of its own, in data.token or in an annotation. A write that was
  acknowledged has a revision; it must be in the watch, once. A write without an answer may
  have happened: the watch may show it, at most once.
- An object is created by a name or by a generateName. The client repeats creates and deletes with
  a request id; AlreadyExists, NotFound, or two objects with one token mean that the server
  performed one twice.
- Appending to a list by a JSON patch is not idempotent: a token that is in the list twice
  means that the patch was repeated.
- A second watch starts from the revision of the beginning when all is over. What it shows
  must be what the first watch showed.
"""
from __future__ import annotations

import collections
import sys
import threading
import time
from typing import Any, Optional

import keelson
from keelson.k8s import core_v1, meta_v1

LABEL = "client=python"
MOST_LIVES = 3000
WRITERS = 4


def main() -> None:
    addresses, pki, namespace = sys.argv[1:]
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    with keelson.connect(addresses=addresses, ca=f"{pki}/ca.crt", cert=f"{pki}/tls.crt", key=f"{pki}/tls.key", user_agent="kills-python") as client:
        Run(client, namespace, stop).run()


class Run:
    def __init__(self, client: keelson.Client, namespace: str, stop: threading.Event) -> None:
        self.maps = client.resource(core_v1.ConfigMap, namespace)
        self.accounts = client.resource(core_v1.ServiceAccount, namespace)
        self.stop = stop
        self.events: list[tuple[str, str, str]] = []  # type, name, revision
        self.tokens: dict[str, str] = {}  # the revision of an event → the token of its object
        self.acknowledged: dict[str, str] = {}  # revision → what was written
        self.unknown = 0
        self.appended: set[str] = set()
        self.unsure: set[str] = set()
        self.failures: list[str] = []

    def run(self) -> None:
        account = self.accounts.create(core_v1.ServiceAccount(
            metadata=meta_v1.ObjectMeta(name="python"), secrets=[core_v1.ObjectReference(name="first")]))
        start = self.maps.list(label_selector=LABEL).resource_version
        watch = self.maps.watch(start=start, label_selector=LABEL)
        watcher = threading.Thread(target=self.follow, args=(watch,))
        watcher.start()
        print("ready", flush=True)
        writers = [threading.Thread(target=self.work, args=(i,)) for i in range(WRITERS)]
        for w in writers:
            w.start()
        self.stop.wait()
        for w in writers:
            w.join()
        # The last write, which the watch has to see.
        last = self.until_done(lambda: self.maps.create(self.map("last-python", "last")))
        deadline = time.monotonic() + 60
        while last not in self.tokens and time.monotonic() < deadline and watcher.is_alive():
            time.sleep(0.02)
        watch.close()
        watcher.join()
        self.check(watch, start, account.metadata.name, last)
        print(f"{len(self.acknowledged)} writes acknowledged, {self.unknown} unanswered, {len(self.events)} events, last break: {watch.last_error}", flush=True)
        for f in self.failures[:20]:
            print("FAIL:", f, flush=True)
        sys.exit(1 if self.failures else 0)

    def follow(self, watch: keelson.Watch[Any]) -> None:
        try:
            for e in watch:
                self.events.append((e.type, e.object.metadata.name, e.resource_version))
                self.tokens[e.resource_version] = e.object.data["token"]
        except Exception as err:
            self.failures.append(f"the watch ended: {err!r}")

    def work(self, number: int) -> None:
        try:
            while not self.stop.is_set() and number < MOST_LIVES and not self.failures:
                self.life(number)
                number += WRITERS
        except Exception as err:
            self.failures.append(f"a writer ended: {err!r}")

    def map(self, name: str, token: str) -> Any:
        return core_v1.ConfigMap(metadata=meta_v1.ObjectMeta(name=name, labels={"client": "python"}), data={"token": token})

    def write(self, what: str, call: Any) -> Optional[Any]:
        """Performs a write once. None: it has no answer, or was refused for lack of one."""
        try:
            obj = call()
        except keelson.ApiError as err:
            if err.may_have_happened:
                self.unknown += 1
            elif not err.nothing_done:
                self.failures.append(f"{what}: {err.code} {err.reason}: {err}")
            return None
        if obj is not None and obj.metadata.resourceVersion:
            self.acknowledged[obj.metadata.resourceVersion] = what
        return obj

    def until_done(self, call: Any) -> str:
        """Repeats a create until it has happened, and returns its revision."""
        while True:
            try:
                return str(call().metadata.resourceVersion)
            except keelson.AlreadyExists:
                return str(self.maps.get("last-python").metadata.resourceVersion)
            except keelson.ApiError as err:
                if not (err.may_have_happened or err.nothing_done):
                    raise

    def life(self, number: int) -> None:
        """Creates an object, changes it, appends to the list of the account, and deletes every other object."""
        name = f"python-{number}"
        new = self.map(name, f"{number}.0")
        if number % 3 == 0:
            new.metadata.name, new.metadata.generateName = "", name + "-"
        obj = self.write(f"create {name}", lambda: self.maps.create(new))
        if obj is None:
            return
        name = obj.metadata.name
        for i in (1, 2):
            changed = self.map(name, f"{number}.{i}")
            changed.metadata.resourceVersion = obj.metadata.resourceVersion
            obj = self.write(f"update {name}", lambda: self.maps.update(changed))
            if obj is None:
                return
        if number % 10 == 0:
            self.append(f"t{number}")
        if number % 2:
            uid = obj.metadata.uid
            self.write(f"delete {name}", lambda: self.maps.delete(name, uid=uid))

    def append(self, token: str) -> None:
        """Appends to the list of the account."""
        try:
            self.accounts.patch("python", [{"op": "add", "path": "/secrets/-", "value": {"name": token}}], kind="json")
            self.appended.add(token)
        except keelson.ApiError as err:
            if err.may_have_happened:
                self.unknown += 1
                self.unsure.add(token)
            elif not err.nothing_done:
                self.failures.append(f"patch: {err}")

    def check(self, watch: keelson.Watch[Any], start: str, account: str, last: str) -> None:
        if watch.relists:
            self.failures.append(f"the server forgot the state of the watch {watch.relists} times")
        revisions = [int(rv) for _, _, rv in self.events]
        if revisions != sorted(set(revisions)):
            self.failures.append("events are repeated or out of order")
        for rv, what in self.acknowledged.items():
            if rv not in self.tokens:
                self.failures.append(f"lost: {what} at revision {rv}")
        written = collections.Counter(self.tokens[rv] for kind, name, rv in self.events if kind != "DELETED")
        for token in [w for w, times in written.items() if times > 1]:
            self.failures.append(f"the token {token} was written twice")
        again = []
        with self.maps.watch(start=start, label_selector=LABEL) as second:
            for e in second:
                again.append((e.type, e.object.metadata.name, e.resource_version))
                if e.resource_version == last:
                    break
        if again != self.events:
            self.failures.append(f"a watch after the kills shows {len(again)} events, the watch during them {len(self.events)}")
        secrets = [s.name for s in self.accounts.get(account).secrets]
        if len(secrets) != len(set(secrets)):
            self.failures.append("a patch was repeated")
        missing = self.appended - set(secrets)
        extra = set(secrets) - self.appended - self.unsure - {"first"}
        if missing or extra:
            self.failures.append(f"patches lost: {sorted(missing)}, unexpected: {sorted(extra)}")
        present = {o.metadata.name for o in self.maps.list(label_selector=LABEL, page_size=50)}
        state: dict[str, str] = {}
        for kind, name, _ in self.events:
            state[name] = kind
        if present != {n for n, kind in state.items() if kind != "DELETED"}:
            self.failures.append("the objects are not those that the events leave")
        if len(self.acknowledged) < 20:
            self.failures.append(f"only {len(self.acknowledged)} writes were acknowledged")


if __name__ == "__main__":
    main()
