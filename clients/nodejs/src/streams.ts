// Logs, exec, attach and port-forward: streams with the containers of pods.
import { once } from "node:events";
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { create, type DescMessage, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type * as grpc from "@grpc/grpc-js";
import type { CallOptions, Connection, Method } from "./connection.js";
import { fromRpc } from "./errors.js";
import * as rpc from "./gen/keelson/pod/v1/pod_pb.js";

const SERVICE = "/keelson.pod.v1.PodService/";
const CHUNK = 32 << 10;
const MOST_CONNECTIONS = 64;

const methods = {
  logs: { path: SERVICE + "Logs", input: rpc.LogsRequestSchema, output: rpc.LogsResponseSchema },
  exec: { path: SERVICE + "Exec", input: rpc.ExecRequestSchema, output: rpc.ExecResponseSchema },
  attach: { path: SERVICE + "Attach", input: rpc.AttachRequestSchema, output: rpc.AttachResponseSchema },
  portForward: { path: SERVICE + "PortForward", input: rpc.PortForwardRequestSchema, output: rpc.PortForwardResponseSchema },
};

/** Names a pod. */
export interface PodName {
  namespace: string;
  name: string;
}

export interface LogOptions extends CallOptions {
  container?: string;
  /** Continues with what the container writes, until it ends. */
  follow?: boolean;
  /** The log of the previous instance of the container. */
  previous?: boolean;
  sinceSeconds?: number;
  sinceTime?: Date;
  timestamps?: boolean;
  tailLines?: number;
  limitBytes?: number;
}

export interface SessionOptions extends CallOptions {
  container?: string;
  stdin?: boolean;
  tty?: boolean;
}

/** What a command did. */
export interface Completed {
  exitCode: number;
  stdout: Buffer;
  stderr: Buffer;
}

function ref(pod: PodName, container: string | undefined): rpc.ContainerRef {
  return create(rpc.ContainerRefSchema, { namespace: pod.namespace, pod: pod.name, container: container ?? "" });
}

function big(n: number | undefined): bigint | undefined {
  return n === undefined ? undefined : BigInt(n);
}

/** Yields the log of a container, line by line, each with its newline. */
export async function* logs(connection: Connection, pod: PodName, o: LogOptions): AsyncGenerator<Buffer> {
  const request = create(rpc.LogsRequestSchema, {
    container: ref(pod, o.container), follow: o.follow ?? false, previous: o.previous ?? false, timestamps: o.timestamps ?? false,
    sinceSeconds: big(o.sinceSeconds), sinceTime: o.sinceTime && timestampFromDate(o.sinceTime), tailLines: big(o.tailLines), limitBytes: big(o.limitBytes),
  });
  const call = await connection.stream(methods.logs, request, o);
  const abort = () => call.cancel();
  o.signal?.addEventListener("abort", abort);
  let rest: Buffer[] = [];
  try {
    for await (const message of call) {
      let data = Buffer.from((message as rpc.LogsResponse).data);
      for (let end = data.indexOf(10); end >= 0; end = data.indexOf(10)) {
        yield Buffer.concat([...rest, data.subarray(0, end + 1)]);
        rest = [];
        data = data.subarray(end + 1);
      }
      if (data.length > 0) rest.push(data);
    }
    if (rest.length > 0) yield Buffer.concat(rest);
  } catch (err) {
    throw fromRpc(`logs of ${pod.namespace}/${pod.name}`, err);
  } finally {
    o.signal?.removeEventListener("abort", abort);
    call.cancel();
  }
}

export function exec(connection: Connection, pod: PodName, command: string[], o: SessionOptions): Promise<Session> {
  const start = { container: ref(pod, o.container), command, stdin: o.stdin ?? false, tty: o.tty ?? false };
  return Session.open(connection, `exec in ${pod.namespace}/${pod.name}`, methods.exec, { message: { case: "start", value: start } }, "stdin", o);
}

export function attach(connection: Connection, pod: PodName, o: SessionOptions): Promise<Session> {
  const start = { container: ref(pod, o.container), stdin: o.stdin ?? false, tty: o.tty ?? false };
  return Session.open(connection, `attach to ${pod.namespace}/${pod.name}`, methods.attach, { message: { case: "start", value: start } }, "stdin", o);
}

export function dial(connection: Connection, pod: PodName, port: number, o: CallOptions = {}): Promise<Session> {
  const start = { namespace: pod.namespace, pod: pod.name, port };
  return Session.open(connection, `connect to port ${port} of ${pod.namespace}/${pod.name}`, methods.portForward, { message: { case: "start", value: start } }, "data", o);
}

/** Runs a command to its end. */
export async function run(connection: Connection, pod: PodName, command: string[], o: CallOptions & { container?: string; input?: Uint8Array | string }): Promise<Completed> {
  const session = await exec(connection, pod, command, { ...o, stdin: o.input !== undefined });
  // The command may write before it has read all, and end before it has.
  if (o.input !== undefined) session.write(o.input).then(() => session.closeStdin()).catch(() => undefined);
  const out: Record<string, Buffer[]> = { stdout: [], stderr: [] };
  for await (const { stream, data } of session) out[stream]?.push(data);
  return { exitCode: session.exitCode ?? 0, stdout: Buffer.concat(out.stdout ?? []), stderr: Buffer.concat(out.stderr ?? []) };
}

/** A part of a stream with a container. */
export interface Chunk {
  stream: "stdout" | "stderr" | "data";
  data: Buffer;
}

interface Answer {
  message: { case: string | undefined; value?: unknown };
}

/** A stream with a container: iterate over it for its output. Leaving the iteration early, or
 * close, ends the stream and kills a command of exec. */
export class Session implements AsyncIterable<Chunk> {
  /** Of an exec, once the iteration has ended. */
  exitCode: number | undefined;
  private ended = false;

  private constructor(
    private readonly what: string, private readonly call: grpc.ClientDuplexStream<unknown, unknown>, private readonly messages: AsyncIterator<unknown>,
    private readonly make: (message: { case: string; value: unknown }) => unknown, private readonly input: "stdin" | "data",
  ) {}

  /** Sends the start and waits for started. */
  static async open<I extends DescMessage, O extends DescMessage>(
    connection: Connection, what: string, method: Method<I, O>, start: MessageInitShape<I>, input: "stdin" | "data", o: CallOptions,
  ): Promise<Session> {
    const call = await connection.both(method, o);
    o.signal?.addEventListener("abort", () => call.cancel());
    const make = (message: { case: string; value: unknown }) => create(method.input, { message } as unknown as MessageInitShape<I>);
    const session = new Session(what, call as grpc.ClientDuplexStream<unknown, unknown>, call[Symbol.asyncIterator](), make, input);
    call.on("error", () => (session.ended = true));
    call.on("end", () => (session.ended = true));
    call.write(create(method.input, start) as MessageShape<I>);
    const first = await session.receive();
    if (first?.case !== "started") {
      call.cancel();
      throw new TypeError(`${what}: the server's first message is not started`);
    }
    return session;
  }

  private async receive(): Promise<Answer["message"] | undefined> {
    try {
      const { value, done } = await this.messages.next();
      return done === true ? undefined : (value as Answer).message;
    } catch (err) {
      throw fromRpc(this.what, err);
    }
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Chunk> {
    try {
      for (let m = await this.receive(); m !== undefined; m = await this.receive()) {
        if (m.case === "exit") this.exitCode = (m.value as rpc.Exit).code;
        else if (m.case === "dataEnd") return;
        else if (m.case === "stdout" || m.case === "stderr" || m.case === "data") yield { stream: m.case, data: Buffer.from(m.value as Uint8Array) };
      }
    } finally {
      // After the pod's end of a connection, the caller may still send.
      if (this.input === "stdin") this.close();
    }
  }

  /** Sends data, and waits while the receiver does not read. It fails after the end. */
  async write(data: Uint8Array | string): Promise<void> {
    const bytes = Buffer.from(data as Uint8Array);
    for (let i = 0; i < bytes.length; i += CHUNK) await this.send({ case: this.input, value: bytes.subarray(i, i + CHUNK) });
  }

  /** Changes the size of the terminal. */
  resize(columns: number, rows: number): Promise<void> {
    return this.send({ case: "resize", value: create(rpc.TerminalSizeSchema, { columns, rows }) });
  }

  /** Ends the input. Output continues. */
  closeStdin(): void {
    this.call.end();
  }

  /** Ends the stream. */
  close(): void {
    this.ended = true;
    this.call.cancel();
  }

  private async send(message: { case: string; value: unknown }): Promise<void> {
    if (this.ended) throw new Error(`${this.what}: the stream has ended`);
    if (this.call.write(this.make(message))) return;
    const waiting = new AbortController();
    try {
      await Promise.race(["drain", "error", "end", "close"].map((e) => once(this.call, e, { signal: waiting.signal })));
    } catch (err) {
      throw fromRpc(this.what, err);
    } finally {
      waiting.abort();
    }
  }
}

/** A listener on 127.0.0.1 whose connections go to a port of a pod, at most 64 at once. */
export class PortForward {
  /** Why the last connection failed. */
  lastError: unknown;
  private readonly sockets = new Set<Socket>();

  private constructor(private readonly server: Server, /** Where to connect. */ readonly address: { host: string; port: number }) {}

  static async listen(connection: Connection, pod: PodName, port: number, localPort: number): Promise<PortForward> {
    const server = createServer({ allowHalfOpen: true });
    server.maxConnections = MOST_CONNECTIONS;
    server.listen(localPort, "127.0.0.1");
    await once(server, "listening");
    const forward = new PortForward(server, { host: "127.0.0.1", port: (server.address() as AddressInfo).port });
    server.on("connection", (socket) => {
      forward.sockets.add(socket);
      socket.on("close", () => forward.sockets.delete(socket));
      socket.on("error", (err) => (forward.lastError = err));
      serve(connection, pod, port, socket).catch((err: unknown) => {
        forward.lastError = err;
        socket.destroy();
      });
    });
    return forward;
  }

  /** Stops listening and ends all connections. */
  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const s of this.sockets) s.destroy();
    await closed;
  }
}

async function serve(connection: Connection, pod: PodName, port: number, socket: Socket): Promise<void> {
  const session = await dial(connection, pod, port);
  socket.on("close", () => session.close());
  const sending = (async () => {
    // The end of one direction must not destroy the other.
    for await (const data of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) await session.write(data);
    session.closeStdin();
  })();
  const receiving = (async () => {
    for await (const { data } of session) if (!socket.write(data)) await Promise.race([once(socket, "drain"), once(socket, "close")]);
    socket.end();
  })();
  await Promise.all([sending, receiving]);
}
