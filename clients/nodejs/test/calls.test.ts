// Reads, writes, errors, and what is repeated, against a scripted server.
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { create } from "@bufbuild/protobuf";
import { status as Code } from "@grpc/grpc-js";
import { ApiError, authorization_v1, core_v1, policy_v1, type Client, type ConnectOptions, type Resource } from "@keelson/client";
import { AGAIN, Again } from "#internal/connection.js";
import * as rpc from "#internal/gen/keelson/resource/v1/resource_pb.js";
import { GetTraceResponseSchema } from "#internal/gen/keelson/trace/v1/trace_pb.js";
import { Break, configMap, dial, packed, Refused, Server, unusedAddress, type Handler } from "./fake.js";

async function serve(t: TestContext, handlers: Record<string, Handler>): Promise<Server> {
  const s = await Server.start(handlers);
  t.after(() => s.stop());
  return s;
}

function maps(t: TestContext, servers: Server[] | string[], o: ConnectOptions = {}): [Resource<core_v1.ConfigMap>, Client] {
  const client = dial(servers, o);
  t.after(() => client.close());
  return [client.resource(core_v1.ConfigMap, "default"), client];
}

const found = () => create(rpc.GetResponseSchema, { object: packed(configMap("a", 7)) });

async function failureOf(p: Promise<unknown>): Promise<ApiError> {
  const err = await p.then(() => assert.fail("the call succeeded"), (e: unknown) => e);
  assert.ok(err instanceof ApiError, String(err));
  return err;
}

test("get sends the reference and decodes the object", async (t) => {
  const s = await serve(t, { get: found });
  const [r] = maps(t, [s]);
  const got = await r.get("a", { traceparent: "00-1-2-01" });
  assert.deepEqual(got, { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "a", namespace: "default", uid: "uid-a", resourceVersion: "7" } });
  const { ref } = s.calls[0]?.request as rpc.GetRequest;
  assert.deepEqual([ref?.group, ref?.version, ref?.resource, ref?.namespace, ref?.name], ["", "v1", "configmaps", "default", "a"]);
  assert.deepEqual(s.calls[0]?.metadata.get("traceparent"), ["00-1-2-01"]);
  assert.match(String(s.calls[0]?.metadata.get("user-agent")), /^keelson-nodejs/);
});

test("an error carries the Status", async (t) => {
  const s = await serve(t, { get: () => { throw new Refused(404, "NotFound", Code.NOT_FOUND, { cause: "Because" }); } });
  const err = await failureOf(maps(t, [s])[0].get("a"));
  assert.deepEqual([err.code, err.reason, err.message, err.answered, err.grpcCode], [404, "NotFound", "get configmaps default/a: the test says NotFound", true, Code.NOT_FOUND]);
  assert.deepEqual(err.details.causes, [{ reason: "Because" }]);
  assert.ok(err.hasCause("Because") && !err.mayHaveHappened);
});

test("a read is repeated when the connection breaks, a bounded number of times", async (t) => {
  const s = await serve(t, { get: (_, n) => { if (n !== 3 ) throw new Break(); return found(); } });
  const [r] = maps(t, [s]);
  await r.get("a");
  assert.equal(s.count("get"), 4);
  const err = await failureOf(r.get("a"));
  assert.deepEqual([err.code, err.answered, s.count("get")], [503, false, 8]);
});

for (const [name, failure] of Object.entries({
  "a broken connection": new Break(),
  "a 503 without a time": new Refused(503, "ServiceUnavailable", Code.UNAVAILABLE),
  "a verdict": new Refused(409, "Conflict", Code.ABORTED, { retryAfter: 1 }),
})) {
  test(`no write is repeated after ${name}`, async (t) => {
    const fail = () => { throw failure; };
    const s = await serve(t, { create: fail, update: fail, patch: fail, apply: fail, delete: fail, deleteCollection: fail });
    const [r, client] = maps(t, [s]);
    const reviews = client.resource(authorization_v1.SelfSubjectAccessReview);
    for (const write of [
      () => reviews.create({ spec: {} }), () => r.update(configMap("a")), () => r.patch("a", {}), () => r.apply(configMap("a")),
      () => r.delete("a", { resourceVersion: "1" }), () => r.deleteCollection(), () => r.post("a", "eviction", policy_v1.Eviction, {}),
    ]) {
      const err = await failureOf(write());
      assert.equal(err.mayHaveHappened, err.code === 503);
    }
    assert.equal(s.calls.length, 7);
  });
}

test("creates and deletes with a uid are repeated with one request id", async (t) => {
  const broken = (answer: Handler): Handler => (q, n) => { if (n % 2 === 0) throw new Break(); return answer(q, n); };
  const s = await serve(t, {
    create: broken((q: rpc.CreateRequest) => create(rpc.CreateResponseSchema, { object: q.object })),
    delete: broken(() => create(rpc.DeleteResponseSchema, { gone: true })),
  });
  const [r] = maps(t, [s]);
  for (let i = 0; i < 2; i++) {
    await r.create({ metadata: { generateName: "a-" } });
    await r.delete("a", { uid: "u" });
  }
  for (const method of ["create", "delete"]) {
    const ids = s.calls.filter((c) => c.method === method).map((c) => c.request.options.requestId as string);
    assert.ok(ids.length === 4 && ids[0] === ids[1] && ids[1] !== ids[2] && ids[2] === ids[3] && (ids[0] ?? "").length > 0, ids.join());
  }
});

test("a write that was refused undone is repeated elsewhere", async (t) => {
  const cutOff = await serve(t, { create: () => { throw new Refused(503, "ServiceUnavailable", Code.UNAVAILABLE, { retryAfter: 1 }); } });
  const well = await serve(t, { create: (q: rpc.CreateRequest) => create(rpc.CreateResponseSchema, { object: q.object }) });
  const [r] = maps(t, [cutOff, well]);
  for (const name of ["a", "b", "c", "d"]) await r.create(configMap(name));
  assert.equal(well.count("create"), 4);
  assert.equal((well.calls[0]?.request as rpc.CreateRequest).options?.fieldManager, "keelson-nodejs");
});

test("repeating a refused call ends after two seconds", () => {
  const refused = new ApiError("", { code: 503, reason: "ServiceUnavailable", details: { retryAfterSeconds: 1 } }, Code.UNAVAILABLE, true);
  let now = 100_000;
  const again = new Again(false, () => now), waits: number[] = [];
  for (let pause = again.pause(refused); pause !== undefined; pause = again.pause(refused)) {
    waits.push(pause);
    now += pause + 1;
  }
  assert.deepEqual(waits.slice(0, 5), [0, 20, 40, 80, 160]);
  const sum = waits.reduce((a, b) => a + b);
  assert.ok(Math.max(...waits) === 250 && sum > AGAIN - 300 && sum <= AGAIN, String(waits));
});

test("calls go to apiservers that answer", async (t) => {
  const first = await serve(t, { get: found }), second = await serve(t, { get: found });
  const [r] = maps(t, [await unusedAddress(), first.address, second.address]);
  for (let i = 0; i < 1000 && (first.calls.length === 0 || second.calls.length === 0); i++) await r.get("a");
  assert.ok(first.calls.length > 0 && second.calls.length > 0);
  first.stop();
  for (let i = 0; i < 5; i++) await r.get("a");
});

test("without any apiserver a write fails in time", async (t) => {
  const err = await failureOf(maps(t, [await unusedAddress()], { connectTimeout: 50 })[0].create(configMap("a")));
  assert.deepEqual([err.code, err.answered], [503, false]);
});

test("a deadline ends a call, and so does a signal", async (t) => {
  const s = await serve(t, { create: () => new Promise(() => {}) });
  const [r] = maps(t, [s]);
  const err = await failureOf(r.create(configMap("a"), { timeout: 100 }));
  assert.deepEqual([err.code, err.reason, err.mayHaveHappened], [504, "Timeout", true]);
  const stop = new AbortController();
  const call = failureOf(r.create(configMap("b"), { signal: stop.signal }));
  while (s.calls.length < 2) await new Promise(setImmediate);
  stop.abort();
  assert.equal((await call).reason, "Canceled");
});

const page = (names: string, token = "") =>
  create(rpc.ListResponseSchema, { resourceVersion: "5", continue: token, items: [...names].map((n) => packed(configMap(n, 1))) });

test("a list comes in pages of one revision", async (t) => {
  const s = await serve(t, { list: function* () { yield page("ab"); yield page("c", "more"); } });
  const list = maps(t, [s])[0].list({ namespace: "", pageSize: 2, limit: 3 });
  const got: string[][] = [];
  for await (const p of list.pages()) got.push(p.map((o) => o.metadata?.name ?? ""));
  assert.deepEqual([got, list.resourceVersion, list.continueToken], [[["a", "b"], ["c"]], "5", "more"]);
  const q = s.calls[0]?.request as rpc.ListRequest;
  assert.deepEqual([q.pageSize, q.limit, q.ref?.namespace], [2, 3n, ""]);
});

test("a list that breaks continues with the same revision", async (t) => {
  const s = await serve(t, {
    list: function* (_, n) {
      if (n === 0) yield page("ab");
      if (n < 2) throw new Break();
      yield page("a");
      yield page("bcd");
    },
  });
  assert.deepEqual((await maps(t, [s])[0].list().all()).map((o) => o.metadata?.name), ["a", "b", "c", "d"]);
  for (const { request } of s.calls.slice(1)) assert.deepEqual([request.resourceVersion, request.resourceVersionMatch], ["5", "Exact"]);
});

test("deletes say whether the object is gone", async (t) => {
  const answers = [{ object: packed(configMap("a", 7)) }, { gone: true }];
  const s = await serve(t, { delete: (_, n) => create(rpc.DeleteResponseSchema, answers[n]) });
  const [r] = maps(t, [s]);
  assert.equal((await r.delete("a", { uid: "u", gracePeriodSeconds: 0 }))?.metadata?.name, "a");
  assert.equal(await r.delete("a"), undefined);
  const [first, second] = s.calls.map((c) => c.request as rpc.DeleteRequest);
  assert.deepEqual([first?.preconditions?.uid, first?.gracePeriodSeconds, second?.preconditions, second?.gracePeriodSeconds], ["u", 0n, undefined, undefined]);
});

test("apply takes objects and YAML", async (t) => {
  const s = await serve(t, { apply: () => create(rpc.ApplyResponseSchema, { object: packed(configMap("a", 1)) }) });
  const [r] = maps(t, [s], { userAgent: "shop/1" });
  await r.apply({ metadata: { name: "a" }, data: { k: "v" } });
  await r.apply("metadata: {name: a, namespace: other}\nkind: ConfigMap\n", { force: true });
  const [first, second] = s.calls.map((c) => c.request as rpc.ApplyRequest);
  assert.equal(Buffer.from(first?.configuration ?? []).toString(), '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"v"}}');
  assert.deepEqual([first?.ref?.namespace, first?.ref?.name, first?.options?.fieldManager, first?.force], ["default", "a", "shop", false]);
  assert.deepEqual([second?.ref?.namespace, second?.ref?.name, second?.force], ["other", "a", true]);
});

test("a trace is named by its object", async (t) => {
  const s = await serve(t, { getTrace: () => create(GetTraceResponseSchema, { traceId: "t" }) });
  const [, client] = maps(t, [s]);
  assert.equal((await client.trace(core_v1.ConfigMap, { name: "a", namespace: "default" }, { earlier: 1 })).traceId, "t");
  const q = s.calls[0]?.request;
  assert.deepEqual([q.resource, q.namespace, q.name, q.earlier], ["configmaps", "default", "a", 1]);
});

test("wrong uses are refused before a call", async (t) => {
  const [r, client] = maps(t, [await unusedAddress()]);
  await assert.rejects(client.resource(core_v1.ConfigMap).get("a"), /has a namespace/);
  assert.throws(() => client.resource(core_v1.Node, "default"), /has no namespace/);
  assert.throws(() => client.resource(policy_v1.Eviction), /no collection/);
  await assert.rejects(r.create({ metadata: { nmae: "a" } } as core_v1.ConfigMap), /ConfigMap.metadata: unknown field nmae/);
  await assert.rejects(r.patch("a", {}, { kind: "diff" as "json" }), /patch kind/);
});
