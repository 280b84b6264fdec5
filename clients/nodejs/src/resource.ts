import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import type { Any } from "@bufbuild/protobuf/wkt";
import { AnySchema } from "@bufbuild/protobuf/wkt";
import { parse } from "yaml";
import { decodeObject, encodeObject } from "./codec.js";
import { Again, sleep, type CallOptions, type Connection, type Method } from "./connection.js";
import { ApiError, fromRpc } from "./errors.js";
import * as rpc from "./gen/keelson/resource/v1/resource_pb.js";
import type { ObjectMeta } from "./gen/meta_v1.js";
import type { Kind } from "./kind.js";
import { State, Watch, type Change, type Event } from "./watch.js";

const SERVICE = "/keelson.resource.v1.ResourceService/";
const PREFIX = "type.googleapis.com/";

const methods = {
  get: { path: SERVICE + "Get", input: rpc.GetRequestSchema, output: rpc.GetResponseSchema, safe: true },
  list: { path: SERVICE + "List", input: rpc.ListRequestSchema, output: rpc.ListResponseSchema, safe: true },
  watch: { path: SERVICE + "Watch", input: rpc.WatchRequestSchema, output: rpc.WatchResponseSchema },
  create: { path: SERVICE + "Create", input: rpc.CreateRequestSchema, output: rpc.CreateResponseSchema },
  update: { path: SERVICE + "Update", input: rpc.UpdateRequestSchema, output: rpc.UpdateResponseSchema },
  patch: { path: SERVICE + "Patch", input: rpc.PatchRequestSchema, output: rpc.PatchResponseSchema },
  apply: { path: SERVICE + "Apply", input: rpc.ApplyRequestSchema, output: rpc.ApplyResponseSchema },
  delete: { path: SERVICE + "Delete", input: rpc.DeleteRequestSchema, output: rpc.DeleteResponseSchema },
  deleteCollection: { path: SERVICE + "DeleteCollection", input: rpc.DeleteCollectionRequestSchema, output: rpc.DeleteCollectionResponseSchema },
} satisfies Record<string, Method<never, never> | object>;

const patches = { json: rpc.PatchRequest_Kind.JSON, merge: rpc.PatchRequest_Kind.MERGE, strategic: rpc.PatchRequest_Kind.STRATEGIC_MERGE };

/** Options of a call that names an object or a collection. */
export interface Options extends CallOptions {
  /** Replaces that of the resource. */
  namespace?: string;
}

export interface Selectors {
  /** For instance "app=web,tier!=test". */
  labelSelector?: string;
  /** For instance "spec.nodeName=node-0". */
  fieldSelector?: string;
}

export interface ListOptions extends Options, Selectors {
  /** The state to read: by default the newest, "0" any, otherwise one at least as new. */
  resourceVersion?: string;
  resourceVersionMatch?: "Exact" | "NotOlderThan";
  /** Ends the list after so many objects, with continueToken set. */
  limit?: number;
  /** Resumes a list that limit ended. */
  continueToken?: string;
  /** The most objects in one message; by default the server chooses. */
  pageSize?: number;
}

export interface WatchOptions<T> extends Selectors {
  /** Replaces that of the resource. */
  namespace?: string;
  /** Restricts the watch to one object. */
  name?: string;
  /** The revision, or the list, after which to start. By default the present objects come first, as ADDED. */
  from?: string | List<T>;
  /** All objects of the revision `from`. With them, the watch can continue after an Expired. */
  items?: Iterable<T>;
  /** Yields bookmarks too; the first ends the present objects. */
  bookmarks?: boolean;
  traceparent?: string;
  /** Closes the watch. */
  signal?: AbortSignal;
}

export interface WriteOptions extends Options {
  /** Validates the write and returns its result, without storing it. */
  dryRun?: boolean;
  /** By default the part of the client's userAgent before the slash. */
  fieldManager?: string;
  /** For instance "status". */
  subresource?: string;
}

export interface DeleteOptions extends Options {
  dryRun?: boolean;
  gracePeriodSeconds?: number;
  propagationPolicy?: "Orphan" | "Background" | "Foreground";
}

interface HasMetadata {
  metadata?: ObjectMeta;
}

/** What a resource needs of its client. */
export interface Caller {
  readonly connection: Connection;
  readonly fieldManager: string;
}

/** Access to one kind, and by default to one namespace. All methods throw ApiError. */
export class Resource<T> {
  constructor(private readonly caller: Caller, readonly kind: Kind<T>, private readonly namespace = "") {
    if (kind.resource === "") throw new TypeError(`a ${kind.kind} has no collection: it is the body of a subresource; see post`);
    if (namespace !== "" && !kind.namespaced) throw new TypeError(`a ${kind.kind} has no namespace`);
  }

  // Reads.

  /** Returns an object, by default in its newest state. */
  async get(name: string, o: Options & { resourceVersion?: string } = {}): Promise<T> {
    const request = create(rpc.GetRequestSchema, { ref: this.ref(name, o), resourceVersion: o.resourceVersion ?? "" });
    return this.decode((await this.caller.connection.unary(this.what("get", name, o), methods.get, request, o)).object);
  }

  /** Returns an iterator over a collection, all of one revision, which holds one page at a time.
   * Without a namespace it is that of all namespaces. If a connection breaks, it continues at
   * another apiserver with the same revision. There is no time limit by default, since the caller
   * sets the pace. */
  list(o: ListOptions = {}): List<T> {
    const request = create(rpc.ListRequestSchema, {
      ref: this.ref("", o, true), labelSelector: o.labelSelector ?? "", fieldSelector: o.fieldSelector ?? "",
      resourceVersion: o.resourceVersion ?? "", resourceVersionMatch: o.resourceVersionMatch ?? "",
      limit: BigInt(o.limit ?? 0), continue: o.continueToken ?? "", pageSize: o.pageSize ?? 0,
    });
    return new List(this.caller.connection, this.what("list", "", o), request, (a) => this.decode(a), o);
  }

  /** Returns an iterator over changes, which resumes by itself; see Watch. With `from` and
   * without `items`, it throws Expired if the server has forgotten that state. */
  watch(o: WatchOptions<T> & { bookmarks: true }): Watch<T, Event<T>>;
  watch(o?: WatchOptions<T>): Watch<T, Change<T>>;
  watch(o: WatchOptions<T> = {}): Watch<T, Event<T>> {
    const start = o.from instanceof List ? o.from.resourceVersion : o.from ?? "";
    if (o.from instanceof List && start === "") throw new TypeError("the list has no revision yet: read its first page");
    if (o.items !== undefined && start === "") throw new TypeError("items need from, the revision that they are of");
    const request = create(rpc.WatchRequestSchema, {
      ref: this.ref(o.name ?? "", o, true), labelSelector: o.labelSelector ?? "", fieldSelector: o.fieldSelector ?? "", allowBookmarks: true,
    });
    const open = (resume: string, signal: AbortSignal) => {
      request.resourceVersion = resume;
      request.sendInitialEvents = resume === "";
      return this.caller.connection.stream(methods.watch, request, { traceparent: o.traceparent, signal });
    };
    return new Watch<T, Event<T>>(this.what("watch", o.name ?? "", o), open, new State<T>((a) => this.decode(a), start, o.items), o.bookmarks ?? false, o.signal);
  }

  // Writes. A create, and a delete with a uid, is repeated after a broken connection, which its
  // request id makes safe. Others are repeated only if the server says that it did nothing.

  /** Stores a new object and returns it. */
  async create(object: T, o: WriteOptions = {}): Promise<T> {
    const m = meta(object);
    const request = create(rpc.CreateRequestSchema, { ref: this.ref("", this.of(m, o)), object: this.encode(object), options: this.options(o, this.kind.stored) });
    const method = { ...methods.create, safe: this.kind.stored };
    return this.decode((await this.caller.connection.unary(this.what("create", m.name ?? m.generateName ?? "", this.of(m, o)), method, request, o)).object);
  }

  /** Replaces an object, or its subresource. If its resourceVersion is set, it must be the present one (Conflict). */
  async update(object: T, o: WriteOptions = {}): Promise<T> {
    const m = meta(object);
    const request = create(rpc.UpdateRequestSchema, { ref: this.ref(m.name ?? "", this.of(m, o)), object: this.encode(object), options: this.options(o) });
    return this.decode((await this.caller.connection.unary(this.what("update", m.name ?? "", this.of(m, o)), methods.update, request, o)).object);
  }

  /** Changes part of an object. patch is what JSON holds: an object for "merge" (RFC 7386) and "strategic", a list for "json" (RFC 6902). */
  async patch(name: string, patch: unknown, o: WriteOptions & { kind?: keyof typeof patches } = {}): Promise<T> {
    const kind = patches[o.kind ?? "merge"];
    if (kind === undefined) throw new TypeError(`patch kind ${String(o.kind)}: want one of ${Object.keys(patches).join(", ")}`);
    const request = create(rpc.PatchRequestSchema, { ref: this.ref(name, o), kind, patch: Buffer.from(JSON.stringify(patch)), options: this.options(o) });
    return this.decode((await this.caller.connection.unary(this.what("patch", name, o), methods.patch, request, o)).object);
  }

  /** Performs server-side apply, and creates the object if it does not exist. configuration
   * holds the fields that the caller wants, as an object or as JSON or YAML. */
  async apply(configuration: Partial<T> | string, o: WriteOptions & { name?: string; force?: boolean } = {}): Promise<T> {
    const text = typeof configuration === "string" ? configuration : JSON.stringify({ apiVersion: this.kind.group === "" ? this.kind.version : `${this.kind.group}/${this.kind.version}`, kind: this.kind.kind, ...configuration });
    const m = meta(typeof configuration === "string" ? parse(configuration) : configuration);
    const where = this.of(m, o), name = o.name ?? m.name ?? "";
    const request = create(rpc.ApplyRequestSchema, { ref: this.ref(name, where), configuration: Buffer.from(text), force: o.force ?? false, options: this.options(o) });
    return this.decode((await this.caller.connection.unary(this.what("apply", name, where), methods.apply, request, o)).object);
  }

  /** Removes an object, or begins its graceful termination. It returns the object if it still
   * exists, or undefined if it is gone. uid and resourceVersion are preconditions (Conflict). */
  async delete(name: string, o: DeleteOptions & { uid?: string; resourceVersion?: string } = {}): Promise<T | undefined> {
    const safe = o.uid !== undefined && o.uid !== "";
    const request = create(rpc.DeleteRequestSchema, { ref: this.ref(name, o), propagationPolicy: o.propagationPolicy ?? "", options: this.options(o, safe) });
    if (o.uid !== undefined || o.resourceVersion !== undefined) {
      request.preconditions = create(rpc.PreconditionsSchema, { uid: o.uid ?? "", resourceVersion: o.resourceVersion ?? "" });
    }
    if (o.gracePeriodSeconds !== undefined) request.gracePeriodSeconds = BigInt(o.gracePeriodSeconds);
    const answer = await this.caller.connection.unary(this.what("delete", name, o), { ...methods.delete, safe }, request, o);
    return answer.gone ? undefined : this.decode(answer.object);
  }

  /** Removes what a list with the same selectors returns, and returns how many objects that were. */
  async deleteCollection(o: DeleteOptions & Selectors = {}): Promise<number> {
    const request = create(rpc.DeleteCollectionRequestSchema, {
      ref: this.ref("", o, true), labelSelector: o.labelSelector ?? "", fieldSelector: o.fieldSelector ?? "",
      propagationPolicy: o.propagationPolicy ?? "", options: this.options(o),
    });
    if (o.gracePeriodSeconds !== undefined) request.gracePeriodSeconds = BigInt(o.gracePeriodSeconds);
    return Number((await this.caller.connection.unary(this.what("delete all", "", o), methods.deleteCollection, request, o)).count);
  }

  /** Performs the action of a subresource ("binding", "eviction", "token") and returns the server's answer, of the body's kind. */
  async post<B>(name: string, subresource: string, kind: Kind<B>, body: B, o: Options = {}): Promise<B> {
    const request = create(rpc.CreateRequestSchema, { ref: this.ref(name, { ...o, subresource }), object: pack(kind, body), options: this.options(o) });
    return unpack(kind, (await this.caller.connection.unary(this.what(`create ${subresource} of`, name, o), methods.create, request, o)).object);
  }

  // Parts.

  private what(verb: string, name: string, o: Options): string {
    const where = o.namespace ?? this.namespace;
    return `${verb} ${this.kind.resource} ${where === "" ? "" : where + "/"}${name}`.trimEnd();
  }

  private ref(name: string, o: WriteOptions, collection = false): rpc.Ref {
    const namespace = this.kind.namespaced ? o.namespace ?? this.namespace : "";
    if (this.kind.namespaced && namespace === "" && !collection) throw new TypeError(`a ${this.kind.kind} has a namespace: give one to resource() or to the call`);
    const { group, version, resource } = this.kind;
    return create(rpc.RefSchema, { group, version, resource, namespace, name, subresource: o.subresource ?? "" });
  }

  /** The options with the object's own namespace, if it has one. */
  private of<O extends Options>(m: ObjectMeta, o: O): O {
    return m.namespace ? { ...o, namespace: m.namespace } : o;
  }

  /** With an id, servers know a repetition of the write. */
  private options(o: WriteOptions, id = false): rpc.WriteOptions {
    return create(rpc.WriteOptionsSchema, { dryRun: o.dryRun ?? false, fieldManager: o.fieldManager ?? this.caller.fieldManager, requestId: id ? randomUUID() : "" });
  }

  private encode(object: T): Any {
    return pack(this.kind, object);
  }

  private decode(a: Any | undefined): T {
    return unpack(this.kind, a);
  }
}

/** An iterator over a collection; see Resource.list. It is consumed once. */
export class List<T> implements AsyncIterable<T> {
  /** The revision of the list, from which a watch can start; set once the first page is here. */
  resourceVersion = "";
  /** Set at the end if limit ended the list. */
  continueToken = "";
  /** The number of objects after those returned, if it is known. */
  remainingItemCount = 0;

  constructor(
    private readonly connection: Connection, private readonly what: string, private readonly request: rpc.ListRequest,
    private readonly decode: (a: Any) => T, private readonly options: CallOptions,
  ) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    for await (const page of this.pages()) yield* page;
  }

  /** All objects. */
  async all(): Promise<T[]> {
    const out: T[] = [];
    for await (const page of this.pages()) out.push(...page);
    return out;
  }

  /** Yields the objects page by page. */
  async *pages(): AsyncGenerator<T[]> {
    let received = 0, skip = 0;
    for (let again = new Again(true); ; ) {
      let pause: number | undefined;
      const call = await this.connection.stream(methods.list, this.request, this.options);
      const abort = () => call.cancel();
      this.options.signal?.addEventListener("abort", abort);
      try {
        for await (const message of call) {
          const page = message as rpc.ListResponse;
          again = new Again(true);
          this.resourceVersion = page.resourceVersion;
          this.continueToken = page.continue;
          this.remainingItemCount = Number(page.remainingItemCount);
          const drop = Math.min(skip, page.items.length);
          skip -= drop;
          const items = page.items.slice(drop).map(this.decode);
          received += items.length;
          if (items.length > 0 || drop === 0) yield items;
        }
        return;
      } catch (err) {
        const failure = fromRpc(this.what, err);
        pause = failure instanceof ApiError ? again.pause(failure) : undefined;
        if (pause === undefined) throw failure;
      } finally {
        this.options.signal?.removeEventListener("abort", abort);
        call.cancel();
      }
      await sleep(pause, this.options.signal);
      // The rest is read from the same revision; a continue token names it already.
      skip = received;
      if (this.resourceVersion !== "" && this.request.continue === "") {
        this.request.resourceVersion = this.resourceVersion;
        this.request.resourceVersionMatch = "Exact";
      }
    }
  }
}

function meta(object: unknown): ObjectMeta {
  return (object as HasMetadata | null | undefined)?.metadata ?? {};
}

/** Packs an object as the protocol does. */
export function pack<T>(kind: Kind<T>, object: T): Any {
  return create(AnySchema, { typeUrl: PREFIX + kind.message, value: encodeObject(kind, object) });
}

/** Unpacks an object, which must be of the kind. */
export function unpack<T>(kind: Kind<T>, a: Any | undefined): T {
  if (a === undefined || !a.typeUrl.endsWith("/" + kind.message)) throw new TypeError(`the server sent ${a === undefined ? "nothing" : a.typeUrl} where a ${kind.message} was expected`);
  return decodeObject(kind, a.value);
}
