// Connections to apiservers, and which calls are repeated.
//
// Each apiserver has a channel of its own, which reconnects by itself. A call goes to the next
// channel that is connected; if none is, it waits for one, at most connectTimeout.
//
// What is repeated:
//
// - any call that a server refused without doing anything (503 with retryAfterSeconds): for
//   AGAIN milliseconds, first at once and then with growing pauses, each time at the next
//   apiserver;
// - a call that is safe to repeat and failed with UNAVAILABLE: up to ATTEMPTS times in all. These
//   are reads, creates of objects (with a request id, by which the server knows the repetition),
//   and deletes with the uid as a precondition (with a request id too).
//
// Nothing else is: another write whose connection broke may have happened.
import { fromBinary, toBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { ApiError, fromRpc } from "./errors.js";

export const AGAIN = 2000;
const LEAST_PAUSE = 20, MOST_PAUSE = 250;
const ATTEMPTS = 4, SAFE_PAUSE = 100, MOST_SAFE_PAUSE = 1000;
const MAX_MESSAGE = 64 << 20;

/** Options of every call. */
export interface CallOptions {
  /** Milliseconds that the call may take with its repetitions; by default the client's. */
  timeout?: number;
  /** Makes the call part of a W3C trace. */
  traceparent?: string;
  /** Ends the call. */
  signal?: AbortSignal;
}

export interface Method<I extends DescMessage, O extends DescMessage> {
  path: string;
  input: I;
  output: O;
  /** Whether it is safe to repeat after any UNAVAILABLE. */
  safe?: boolean;
}

export interface Target {
  addresses: string[];
  credentials: grpc.ChannelCredentials;
  token: (() => string | Promise<string>) | undefined;
  userAgent: string;
  serverName: string | undefined;
  connectTimeout: number;
  timeout: number;
}

class Endpoint {
  readonly client: grpc.Client;
  ready = false;
  private closed = false;

  constructor(address: string, credentials: grpc.ChannelCredentials, options: grpc.ChannelOptions, private readonly changed: () => void) {
    this.client = new grpc.Client(address, credentials, options);
    this.follow();
  }

  /** Follows the state of the channel, and keeps it connected. */
  private follow(): void {
    if (this.closed) return;
    const channel = this.client.getChannel();
    const state = channel.getConnectivityState(true);
    const ready = state === grpc.connectivityState.READY;
    if (ready !== this.ready) {
      this.ready = ready;
      this.changed();
    }
    channel.watchConnectivityState(state, Infinity, () => this.follow());
  }

  close(): void {
    this.closed = true;
    this.ready = false;
    this.client.close();
  }
}

/** Calls to any of several apiservers. */
export class Connection {
  private readonly endpoints: Endpoint[];
  private next: number;
  private readonly waiting = new Set<() => void>();
  private closed = false;

  constructor(private readonly target: Target) {
    const options: grpc.ChannelOptions = {
      "grpc.primary_user_agent": target.userAgent,
      "grpc.use_local_subchannel_pool": 1,
      "grpc.service_config_disable_resolution": 1,
      "grpc.max_receive_message_length": MAX_MESSAGE,
      "grpc.max_send_message_length": MAX_MESSAGE,
      "grpc.keepalive_time_ms": 10_000,
      "grpc.keepalive_timeout_ms": 5_000,
      "grpc.initial_reconnect_backoff_ms": 50,
      "grpc.max_reconnect_backoff_ms": 2_000,
      // A proxy of the environment is not for the cluster.
      "grpc.enable_http_proxy": 0,
    };
    if (target.serverName !== undefined) options["grpc.ssl_target_name_override"] = target.serverName;
    this.next = Math.floor(Math.random() * target.addresses.length);
    this.endpoints = target.addresses.map((a) => new Endpoint(a, target.credentials, options, () => this.wake()));
  }

  close(): void {
    this.closed = true;
    for (const e of this.endpoints) e.close();
    this.wake();
  }

  private wake(): void {
    for (const f of [...this.waiting]) f();
  }

  /** Returns the next connected channel. If none becomes so in time, it returns one that is
   * not, whose calls fail with the reason. */
  async pick(deadline: number, signal?: AbortSignal): Promise<grpc.Client> {
    const giveUp = Math.min(Date.now() + this.target.connectTimeout, deadline);
    for (;;) {
      signal?.throwIfAborted();
      if (this.closed) throw new Error("the client is closed");
      const count = this.endpoints.length;
      for (let i = 0; i < count; i++) {
        const e = this.endpoints[(this.next + i) % count] as Endpoint;
        if (e.ready) {
          this.next = (this.next + i + 1) % count;
          return e.client;
        }
      }
      const left = giveUp - Date.now();
      if (left <= 0) {
        this.next = (this.next + 1) % count;
        return (this.endpoints[this.next] as Endpoint).client;
      }
      await new Promise<void>((resolve) => {
        const done = () => {
          clearTimeout(timer);
          this.waiting.delete(done);
          signal?.removeEventListener("abort", done);
          resolve();
        };
        const timer = setTimeout(done, left);
        this.waiting.add(done);
        signal?.addEventListener("abort", done);
      });
    }
  }

  async metadata(traceparent?: string): Promise<grpc.Metadata> {
    const md = new grpc.Metadata();
    if (this.target.token !== undefined) md.set("authorization", "Bearer " + (await this.target.token()));
    if (traceparent !== undefined && traceparent !== "") md.set("traceparent", traceparent);
    return md;
  }

  /** Calls a method with one answer, and repeats it as the comment above says. It throws ApiError. */
  async unary<I extends DescMessage, O extends DescMessage>(what: string, method: Method<I, O>, request: MessageShape<I>, options: CallOptions = {}): Promise<MessageShape<O>> {
    const deadline = Date.now() + (options.timeout ?? this.target.timeout);
    const again = new Again(method.safe ?? false);
    for (;;) {
      const client = await this.pick(deadline, options.signal);
      const md = await this.metadata(options.traceparent);
      try {
        return await once(client, method, request, md, deadline, options.signal);
      } catch (err) {
        const failure = fromRpc(what, err);
        const pause = failure instanceof ApiError && options.signal?.aborted !== true ? again.pause(failure) : undefined;
        if (pause === undefined || Date.now() + pause >= deadline) throw failure;
        await sleep(pause, options.signal);
      }
    }
  }

  /** Starts a call with a stream of answers, once. Iterating throws grpc's errors. */
  async stream<I extends DescMessage, O extends DescMessage>(method: Method<I, O>, request: MessageShape<I>, options: CallOptions = {}): Promise<grpc.ClientReadableStream<MessageShape<O>>> {
    const deadline = options.timeout === undefined ? Infinity : Date.now() + options.timeout;
    const client = await this.pick(deadline, options.signal);
    const md = await this.metadata(options.traceparent);
    return client.makeServerStreamRequest(method.path, encoder(method.input), decoder(method.output), request, md, { deadline });
  }

  /** Starts a call with streams in both directions, once. */
  async both<I extends DescMessage, O extends DescMessage>(method: Method<I, O>, options: CallOptions = {}): Promise<grpc.ClientDuplexStream<MessageShape<I>, MessageShape<O>>> {
    const client = await this.pick(Infinity, options.signal);
    return client.makeBidiStreamRequest(method.path, encoder(method.input), decoder(method.output), await this.metadata(options.traceparent), {});
  }
}

function encoder<I extends DescMessage>(desc: I): (m: MessageShape<I>) => Buffer {
  return (m) => Buffer.from(toBinary(desc, m));
}

function decoder<O extends DescMessage>(desc: O): (data: Buffer) => MessageShape<O> {
  return (data) => fromBinary(desc, data);
}

function once<I extends DescMessage, O extends DescMessage>(
  client: grpc.Client, method: Method<I, O>, request: MessageShape<I>, md: grpc.Metadata, deadline: number, signal?: AbortSignal,
): Promise<MessageShape<O>> {
  return new Promise((resolve, reject) => {
    const call = client.makeUnaryRequest(method.path, encoder(method.input), decoder(method.output), request, md, { deadline }, (err, answer) => {
      signal?.removeEventListener("abort", abort);
      if (err !== null) reject(err);
      else resolve(answer as MessageShape<O>);
    });
    const abort = () => call.cancel();
    signal?.addEventListener("abort", abort);
  });
}

/** Waits; an abort ends the wait early. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  if (ms <= 0 || signal?.aborted === true) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
}

/** Decides, for one call, whether and when to repeat it. */
export class Again {
  private attempts = 1;
  private wait = 0;
  private until: number | undefined;

  constructor(private readonly safe: boolean, private readonly now: () => number = Date.now) {}

  /** Returns the milliseconds before the next attempt, or undefined for no other. */
  pause(failure: ApiError): number | undefined {
    if (failure.nothingDone) {
      const now = this.now();
      this.until ??= now + AGAIN;
      const pause = this.wait;
      this.wait = Math.min(Math.max(2 * pause, LEAST_PAUSE), MOST_PAUSE);
      return now + pause <= this.until ? pause : undefined;
    }
    if (!this.safe || failure.grpcCode !== grpc.status.UNAVAILABLE || this.attempts >= ATTEMPTS) return undefined;
    const pause = Math.min(SAFE_PAUSE * 2 ** (this.attempts - 1), MOST_SAFE_PAUSE);
    this.attempts++;
    return pause * (0.5 + Math.random() / 2);
  }
}
