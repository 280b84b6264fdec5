// Logs, exec and port-forward against a scripted server.
import assert from "node:assert/strict";
import { connect as dialTCP } from "node:net";
import { test, type TestContext } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { status as Code } from "@grpc/grpc-js";
import { ApiError, type Client } from "@keelson/client";
import * as rpc from "#internal/gen/keelson/pod/v1/pod_pb.js";
import { dial, Refused, Server, type Handler } from "./fake.js";

const pod = { namespace: "ns", name: "p" };

async function serve(t: TestContext, handlers: Record<string, Handler>): Promise<[Server, Client]> {
  const s = await Server.start(handlers);
  const client = dial([s]);
  t.after(() => { client.close(); s.stop(); });
  return [s, client];
}

const logged = (text: string) => create(rpc.LogsResponseSchema, { data: Buffer.from(text) });
const answer = (message: MessageInitShape<typeof rpc.ExecResponseSchema>["message"]) => create(rpc.ExecResponseSchema, { message });

test("logs come in lines", async (t) => {
  const [s, client] = await serve(t, { logs: function* () { yield* ["on", "e\ntwo\nth", "ree"].map(logged); } });
  const lines: string[] = [];
  for await (const line of client.logs(pod, { container: "c", tailLines: 0, follow: true })) lines.push(line.toString());
  assert.deepEqual(lines, ["one\n", "two\n", "three"]);
  const q = s.calls[0]?.request as rpc.LogsRequest;
  assert.deepEqual([q.container?.pod, q.container?.container, q.follow, q.tailLines, q.limitBytes], ["p", "c", true, 0n, undefined]);
});

test("an error of a log carries the Status", async (t) => {
  const [, client] = await serve(t, { logs: function* () { yield logged("a\n"); throw new Refused(404, "NotFound", Code.NOT_FOUND); } });
  const log = client.logs(pod);
  assert.equal((await log.next()).value?.toString(), "a\n");
  await assert.rejects(log.next(), (err) => err instanceof ApiError && err.reason === "NotFound");
});

async function* cat(requests: AsyncIterable<rpc.ExecRequest>): AsyncGenerator<unknown> {
  for await (const { message } of requests) {
    if (message.case === "start") yield answer({ case: "started", value: {} });
    else if (message.case === "stdin") yield answer({ case: "stdout", value: message.value });
  }
  yield answer({ case: "stderr", value: Buffer.from("done") });
  yield answer({ case: "exit", value: { code: 3 } });
}

test("run returns exit code and output", async (t) => {
  const [, client] = await serve(t, { exec: cat });
  const input = Buffer.alloc(300_000, "0123456789"); // more than one message
  const done = await client.run(pod, ["cat"], { input });
  assert.deepEqual([done.exitCode, done.stdout.equals(input), done.stderr.toString()], [3, true, "done"]);
});

test("exec that is refused", async (t) => {
  const [, client] = await serve(t, { exec: () => { throw new Refused(403, "Forbidden", Code.PERMISSION_DENIED); } });
  await assert.rejects(client.exec(pod, ["cat"]), (err) => err instanceof ApiError && err.code === 403);
});

test("a write after the end fails", async (t) => {
  const [, client] = await serve(t, {
    exec: function* () { yield answer({ case: "started", value: {} }); yield answer({ case: "exit", value: { code: 0 } }); },
  });
  const session = await client.exec(pod, ["true"], { stdin: true });
  for await (const chunk of session) assert.fail(String(chunk.stream));
  assert.equal(session.exitCode, 0);
  await assert.rejects(session.write("x"), /the stream has ended/);
});

test("port-forward carries both directions", async (t) => {
  const [, client] = await serve(t, {
    portForward: async function* (requests: AsyncIterable<rpc.PortForwardRequest>) {
      const reply = (message: MessageInitShape<typeof rpc.PortForwardResponseSchema>["message"]) => create(rpc.PortForwardResponseSchema, { message });
      for await (const { message } of requests) {
        if (message.case === "start") yield reply({ case: "started", value: {} });
        else if (message.case === "data") yield reply({ case: "data", value: message.value });
      }
      yield reply({ case: "data", value: Buffer.from("!") });
      yield reply({ case: "dataEnd", value: {} });
    },
  });
  const forward = await client.portForward(pod, 80);
  for (let i = 0; i < 2; i++) {
    const socket = dialTCP({ ...forward.address, allowHalfOpen: true });
    socket.end("hello");
    const got: Buffer[] = [];
    for await (const data of socket) got.push(data as Buffer);
    assert.equal(Buffer.concat(got).toString(), "hello!");
  }
  await forward.close();
  assert.equal(forward.lastError, undefined);
});
