// A watch that does not end: it resumes where a broken stream ended.
//
// States:
//
// - initial: there is no revision to resume from. The server sends all objects as ADDED and
//   ends them with a bookmark. Objects that the caller has seen in the same revision are not
//   repeated, and those that are missing at the bookmark are reported as DELETED.
// - live: each event has a revision greater than the last one. A stream that breaks is resumed
//   after that revision, at the next apiserver; an event that is not newer is dropped.
//
// An Expired (410) in live, or a revision that the server has not reached after a restore, leads
// back to initial. A break in initial starts initial again.
//
// A watch that started from a revision knows the collection only in part. It cannot report the
// difference, so it throws Expired instead of going back to initial.
//
// Invariants: each change is yielded once and in order. The last object of each name is held,
// so that the difference can be told; that is the memory of a watch.
import type * as grpc from "@grpc/grpc-js";
import type { Any } from "@bufbuild/protobuf/wkt";
import { sleep } from "./connection.js";
import { ApiError, fromRpc } from "./errors.js";
import { WatchResponse_Type as Type, type WatchResponse } from "./gen/keelson/resource/v1/resource_pb.js";
import type { ObjectMeta } from "./gen/meta_v1.js";

const LEAST_DELAY = 50, MOST_DELAY = 5000;

/** A change of one object. */
export interface Change<T> {
  type: "ADDED" | "MODIFIED" | "DELETED";
  /** The object as it is now, or its last state if it was deleted. The watch holds it: do not change it. */
  object: T;
  /** The object before the change, if the watch knows it. */
  old?: T;
  /** The revision of the event. A watch from there continues after it. */
  resourceVersion: string;
  /** The W3C trace context of the write, if it had one. */
  traceparent?: string;
}

/** Says that nothing else happened up to a revision. */
export interface Bookmark {
  type: "BOOKMARK";
  resourceVersion: string;
  /** True for the bookmark that ends the initial state. */
  initialEventsEnd: boolean;
}

export type Event<T> = Change<T> | Bookmark;

interface HasMetadata {
  metadata?: ObjectMeta;
}

/** Returns a resource version as a number. */
export function revision(text: string): bigint {
  if (!/^\d+$/.test(text)) throw new TypeError(`resource version ${JSON.stringify(text)} is not a number`);
  return BigInt(text);
}

/** What a watch has seen. It makes no calls. */
export class State<T> {
  resume: string;
  /** Whether held is the whole collection. */
  readonly complete: boolean;
  private readonly held = new Map<string, T>();
  private reached: bigint;
  private seen: Set<string> | undefined;

  constructor(private readonly decode: (a: Any | undefined) => T, start = "", items?: Iterable<T>) {
    this.resume = start;
    this.reached = start === "" ? 0n : revision(start);
    this.complete = start === "" || items !== undefined;
    for (const o of items ?? []) this.held.set(keyOf(o), o);
  }

  /** A stream is about to be opened. */
  begin(): void {
    this.seen = this.resume === "" ? new Set() : undefined;
  }

  /** The server no longer has the state to resume from. */
  restart(): void {
    this.resume = "";
  }

  /** Yields the events that a message of the stream means to the caller. */
  *receive(m: WatchResponse): Generator<Event<T>> {
    const rv = m.resourceVersion;
    const number = revision(rv);
    if (m.type < Type.ADDED || m.type > Type.BOOKMARK) throw new TypeError(`the server sent an event of type ${m.type}`);
    if (this.seen !== undefined) {
      yield* this.receiveInitial(m, number, this.seen);
      return;
    }
    // A server that resumes too early repeats itself.
    if (m.type !== Type.BOOKMARK && number <= this.reached) return;
    const event = m.type === Type.BOOKMARK ? bookmark(rv, false) : this.change(m, this.decode(m.object));
    this.resume = rv;
    this.reached = number;
    if (event !== undefined) yield event;
  }

  private *receiveInitial(m: WatchResponse, number: bigint, seen: Set<string>): Generator<Event<T>> {
    const rv = m.resourceVersion;
    if (m.type === Type.BOOKMARK) {
      if (!m.initialEventsEnd) return;
      for (const [key, old] of this.held) {
        if (seen.has(key)) continue;
        this.held.delete(key);
        yield { type: "DELETED", object: old, old, resourceVersion: rv };
      }
      this.seen = undefined;
      this.resume = rv;
      this.reached = number;
      yield bookmark(rv, true);
      return;
    }
    const object = this.decode(m.object);
    const key = keyOf(object);
    if (m.type === Type.DELETED) {
      seen.delete(key);
    } else {
      seen.add(key);
      const old = this.held.get(key);
      if (old !== undefined) {
        const was = meta(old), now = meta(object);
        if (was.uid === now.uid && was.resourceVersion === now.resourceVersion) return;
        if (was.uid !== now.uid) {
          this.held.delete(key);
          yield { type: "DELETED", object: old, old, resourceVersion: rv };
        }
      }
    }
    const event = this.change(m, object);
    if (event !== undefined) yield event;
  }

  private change(m: WatchResponse, object: T): Change<T> | undefined {
    const key = keyOf(object);
    const old = this.held.get(key);
    const event: Change<T> = { type: "DELETED", object, resourceVersion: m.resourceVersion };
    if (old !== undefined) event.old = old;
    if (m.traceparent !== "") event.traceparent = m.traceparent;
    if (m.type === Type.DELETED) {
      this.held.delete(key);
      return old === undefined && this.complete ? undefined : event;
    }
    event.type = old !== undefined ? "MODIFIED" : this.complete || m.type === Type.ADDED ? "ADDED" : "MODIFIED";
    this.held.set(key, object);
    return event;
  }
}

function bookmark(resourceVersion: string, initialEventsEnd: boolean): Bookmark {
  return { type: "BOOKMARK", resourceVersion, initialEventsEnd };
}

function meta(o: unknown): ObjectMeta {
  return (o as HasMetadata).metadata ?? {};
}

function keyOf(o: unknown): string {
  return `${meta(o).namespace ?? ""}/${meta(o).name ?? ""}`;
}

/** An iterator over changes, which ends when it is closed: by close, by its signal, or by leaving a
 * `for await`. It throws ApiError only for a verdict that will not change by itself: the caller has
 * no permission, the request is wrong, or Expired if the watch started from a revision. */
export class Watch<T, E extends Event<T> = Event<T>> implements AsyncIterableIterator<E> {
  /** Why the last stream ended, if it broke. */
  lastError: ApiError | undefined;
  /** How often the server had forgotten the state to resume from. */
  relists = 0;
  private readonly closing = new AbortController();
  private readonly events: AsyncGenerator<E>;
  private call: grpc.ClientReadableStream<WatchResponse> | undefined;

  constructor(
    private readonly what: string,
    private readonly open: (resume: string, signal: AbortSignal) => Promise<grpc.ClientReadableStream<WatchResponse>>,
    private readonly state: State<T>,
    private readonly bookmarks: boolean,
    signal?: AbortSignal,
  ) {
    this.events = this.run();
    if (signal?.aborted === true) this.close();
    signal?.addEventListener("abort", () => this.close(), { signal: this.closing.signal });
  }

  /** The revision up to which events have been received; empty before the initial state is complete. */
  get resourceVersion(): string {
    return this.state.resume;
  }

  next(): Promise<IteratorResult<E>> {
    return this.events.next();
  }

  async return(): Promise<IteratorResult<E>> {
    this.close();
    await this.events.return(undefined);
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Ends the watch. Who waits for an event sees the end of the iteration. */
  close(): void {
    this.closing.abort();
    this.call?.cancel();
  }

  private get closed(): boolean {
    return this.closing.signal.aborted;
  }

  private async *run(): AsyncGenerator<E> {
    for (let delay = 0; !this.closed; ) {
      let progress = false;
      this.state.begin();
      try {
        this.call = await this.open(this.state.resume, this.closing.signal);
        if (this.closed) return;
        for await (const message of this.call) {
          progress = true;
          for (const event of this.state.receive(message as WatchResponse)) {
            if (event.type !== "BOOKMARK" || this.bookmarks) yield event as E;
            if (this.closed) return;
          }
        }
      } catch (err) {
        if (this.closed) return;
        const failure = fromRpc(this.what, err);
        if (!(failure instanceof ApiError)) throw failure;
        this.lastError = failure;
        if (failure.code === 410 || failure.hasCause("ResourceVersionTooLarge")) {
          if (!this.state.complete) throw failure;
          this.state.restart();
          this.relists++;
        } else if (!progress && isVerdict(failure)) {
          throw failure;
        }
      } finally {
        this.call?.cancel();
        this.call = undefined;
      }
      delay = progress ? 0 : Math.min(Math.max(2 * delay, LEAST_DELAY), MOST_DELAY);
      await sleep(delay * (0.5 + Math.random() / 2), this.closing.signal);
    }
  }
}

/** Whether a server's refusal is one that repeating the request will not change. */
function isVerdict(failure: ApiError): boolean {
  return [400, 401, 403, 404, 405, 406, 422].includes(failure.code);
}
