// Watches over streams that break, servers that repeat themselves, and states that expire.
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { status as Code } from "@grpc/grpc-js";
import { ApiError, core_v1, type Event, type Resource } from "@keelson/client";
import { bookmark, Break, configMap, dial, event, expired, HANG, Refused, Server } from "./fake.js";

/** Watch number i answers with streams[i], whose last element may be an error. */
async function script(t: TestContext, ...streams: unknown[][]): Promise<[Server, Resource<core_v1.ConfigMap>]> {
  const s = await Server.start({
    watch: function* (_, n) {
      for (const item of streams[n] as unknown[]) {
        if (item instanceof Error) throw item;
        yield item;
      }
    },
  });
  const client = dial([s]);
  t.after(() => { client.close(); s.stop(); });
  return [s, client.resource(core_v1.ConfigMap)];
}

/** The next events: type, name, revision. */
async function take(watch: AsyncIterator<Event<core_v1.ConfigMap>>, count: number): Promise<string[]> {
  const out: string[] = [];
  while (out.length < count) {
    const { value, done } = await watch.next();
    assert.ok(done !== true, "the watch ended");
    out.push([value.type, ...(value.type === "BOOKMARK" ? [] : [value.object.metadata?.name]), value.resourceVersion].join(" "));
  }
  return out;
}

test("a broken watch resumes after the last event", async (t) => {
  const [s, r] = await script(t,
    [event("ADDED", configMap("a", 3)), bookmark(5, true), event("MODIFIED", configMap("a", 6)), new Break()],
    [new Break()],
    [], // the server ended the stream in an orderly way
    [event("MODIFIED", configMap("a", 6)), event("ADDED", configMap("b", 8)), event("DELETED", configMap("a", 9)), bookmark(12), new Break()],
    [event("MODIFIED", configMap("b", 13)), HANG]);
  const watch = r.watch();
  assert.deepEqual(await take(watch, 5), ["ADDED a 3", "MODIFIED a 6", "ADDED b 8", "DELETED a 9", "MODIFIED b 13"]);
  assert.deepEqual(s.calls.map((c) => c.request.resourceVersion), ["", "6", "6", "6", "12"]);
  assert.deepEqual(s.calls.map((c) => c.request.sendInitialEvents), [true, false, false, false, false]);
  watch.close();
});

test("an expired watch yields the difference", async (t) => {
  const [, r] = await script(t,
    [..."abcd"].map((n) => event("ADDED", configMap(n, 3)) as unknown).concat(bookmark(5, true), expired()),
    // a: the same; b: changed; c: gone; d: replaced; e: new.
    [event("ADDED", configMap("a", 3)), event("ADDED", configMap("b", 20)), event("ADDED", configMap("d", 21, "other")), event("ADDED", configMap("e", 22)),
      bookmark(30, true), event("MODIFIED", configMap("a", 31)), HANG]);
  const watch = r.watch({ bookmarks: true });
  assert.equal((await take(watch, 5))[4], "BOOKMARK 5");
  assert.deepEqual(await take(watch, 7), ["MODIFIED b 20", "DELETED d 21", "ADDED d 21", "ADDED e 22", "DELETED c 30", "BOOKMARK 30", "MODIFIED a 31"]);
  assert.equal(watch.relists, 1);
  watch.close();
});

test("an initial state that breaks is not repeated", async (t) => {
  const [, r] = await script(t,
    [event("ADDED", configMap("a", 3)), event("ADDED", configMap("b", 4)), new Break()],
    [event("ADDED", configMap("b", 4)), event("ADDED", configMap("c", 6)), bookmark(7, true), HANG]);
  const watch = r.watch();
  assert.deepEqual(await take(watch, 4), ["ADDED a 3", "ADDED b 4", "ADDED c 6", "DELETED a 7"]);
  watch.close();
});

test("a revision from the future is an expired one", async (t) => {
  const [, r] = await script(t,
    [event("ADDED", configMap("a", 3)), bookmark(5, true), new Refused(504, "Timeout", Code.DEADLINE_EXCEEDED, { cause: "ResourceVersionTooLarge" })],
    [bookmark(2, true), event("ADDED", configMap("b", 4)), HANG]);
  const watch = r.watch();
  assert.deepEqual(await take(watch, 3), ["ADDED a 3", "DELETED a 2", "ADDED b 4"]);
  watch.close();
});

test("a watch from a revision throws Expired, and one from a whole list yields the difference", async (t) => {
  const [, r] = await script(t, [event("MODIFIED", configMap("a", 6)), new Break()], [expired()],
    [expired()], [event("ADDED", configMap("b", 9)), bookmark(10, true), HANG]);
  const watch = r.watch({ from: "5" });
  assert.deepEqual(await take(watch, 1), ["MODIFIED a 6"]);
  await assert.rejects(watch.next(), (err) => err instanceof ApiError && err.reason === "Expired");
  const whole = r.watch({ from: "5", items: [configMap("a", 3)] });
  assert.deepEqual(await take(whole, 2), ["ADDED b 9", "DELETED a 10"]);
  whole.close();
});

test("a verdict ends a watch", async (t) => {
  const forbidden = new Refused(403, "Forbidden", Code.PERMISSION_DENIED);
  const [, r] = await script(t, [event("ADDED", configMap("a", 3)), bookmark(5, true), forbidden], [forbidden]);
  const watch = r.watch();
  await take(watch, 1);
  await assert.rejects(watch.next(), (err) => err instanceof ApiError && err.code === 403);
});

test("a watch moves to another apiserver", async (t) => {
  const handlers = {
    watch: function* (q: { sendInitialEvents: boolean }) {
      yield q.sendInitialEvents ? bookmark(5, true) : event("ADDED", configMap("a", 6));
      yield HANG;
    },
  };
  const first = await Server.start(handlers), second = await Server.start(handlers);
  const client = dial([first, second]);
  t.after(() => { client.close(); first.stop(); second.stop(); });
  const watch = client.resource(core_v1.ConfigMap).watch({ bookmarks: true });
  await take(watch, 1);
  (first.calls.length > 0 ? first : second).stop();
  assert.deepEqual(await take(watch, 1), ["ADDED a 6"]);
  watch.close();
});

test("close, a signal and leaving a loop end a watch", async (t) => {
  const [s, r] = await script(t, ...Array(3).fill([event("ADDED", configMap("a", 3)), bookmark(5, true), HANG]));
  const watch = r.watch();
  await take(watch, 1);
  const waiting = watch.next();
  watch.close();
  assert.equal((await waiting).done, true);
  const stop = new AbortController();
  const second = r.watch({ signal: stop.signal });
  await take(second, 1);
  stop.abort();
  assert.equal((await second.next()).done, true);
  for await (const e of r.watch()) {
    assert.equal(e.type, "ADDED");
    break;
  }
  assert.equal(s.count("watch"), 3);
});
