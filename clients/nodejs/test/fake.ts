// A server for tests, whose answers each test scripts.
import { createServer } from "node:net";
import { once } from "node:events";
import { create, fromBinary, toBinary, type DescMessage, type DescService, type MessageShape } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { connect, core_v1, encodeObject, type Client, type ConnectOptions } from "@keelson/client";
import { pack } from "#internal/resource.js";
import { StatusSchema } from "#internal/gen/keelson/client/v1/status_pb.js";
import { PodService } from "#internal/gen/keelson/pod/v1/pod_pb.js";
import { ResourceService, WatchResponseSchema, WatchResponse_Type, type WatchResponse } from "#internal/gen/keelson/resource/v1/resource_pb.js";
import { TraceService } from "#internal/gen/keelson/trace/v1/trace_pb.js";
import type * as meta_v1 from "#internal/gen/meta_v1.js";

const STATUS = "k8s.io.apimachinery.pkg.apis.meta.v1.Status";

/** Ends a call with UNAVAILABLE and no Status, as a broken connection does. */
export class Break extends Error {}

/** Ends a call with a Kubernetes Status. */
export class Refused extends Error {
  readonly status: meta_v1.Status;
  constructor(code: number, readonly reason: string, readonly grpcCode: grpc.status, o: { retryAfter?: number; cause?: string } = {}) {
    super(reason);
    this.status = { status: "Failure", code, reason, message: `the test says ${reason}` };
    if (o.retryAfter !== undefined || o.cause !== undefined) {
      this.status.details = { ...(o.retryAfter && { retryAfterSeconds: o.retryAfter }), ...(o.cause && { causes: [{ reason: o.cause }] }) };
    }
  }
}

export const expired = () => new Refused(410, "Expired", grpc.status.OUT_OF_RANGE);

/** A stream that yields this stays open until the client ends it. */
export const HANG = Symbol("hang");

export type Handler = (request: any, number: number) => any;

/** Serves on a free port of loopback. handlers maps a method ("get", "watch") to a function of the request and the call's number. */
export class Server {
  readonly calls: { method: string; request: any; metadata: grpc.Metadata }[] = [];
  address = "";
  private readonly server = new grpc.Server();

  static async start(handlers: Record<string, Handler>): Promise<Server> {
    const s = new Server();
    for (const service of [ResourceService, PodService, TraceService]) s.serve(service, handlers);
    const port = await new Promise<number>((resolve, reject) => {
      s.server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (err, p) => (err ? reject(err) : resolve(p)));
    });
    s.address = `127.0.0.1:${port}`;
    return s;
  }

  count(method: string): number {
    return this.calls.filter((c) => c.method === method).length;
  }

  stop(): void {
    this.server.forceShutdown();
  }

  private serve(service: DescService, handlers: Record<string, Handler>): void {
    const definition: Record<string, grpc.MethodDefinition<unknown, unknown>> = {};
    const implementation: grpc.UntypedServiceImplementation = {};
    for (const m of service.methods) {
      definition[m.localName] = {
        path: `/${service.typeName}/${m.name}`,
        requestStream: m.methodKind === "bidi_streaming",
        responseStream: m.methodKind !== "unary",
        requestSerialize: encoder(m.input), requestDeserialize: decoder(m.input), responseSerialize: encoder(m.output), responseDeserialize: decoder(m.output),
      };
      const handler = handlers[m.localName] ?? (() => { throw new Refused(405, "MethodNotAllowed", grpc.status.UNIMPLEMENTED); });
      const record = (request: unknown, metadata: grpc.Metadata) => {
        const number = this.count(m.localName);
        this.calls.push({ method: m.localName, request, metadata });
        return number;
      };
      implementation[m.localName] =
        m.methodKind === "unary"
          ? (call: any, done: any) => {
              const number = record(call.request, call.metadata);
              (async () => handler(call.request, number))().then((answer) => done(null, answer), (err: unknown) => done(failure(err)));
            }
          : (call: any) => {
              const request = m.methodKind === "bidi_streaming" ? call.iterator({ destroyOnReturn: false }) : call.request;
              const number = record(request, call.metadata);
              void (async () => {
                try {
                  for await (const message of handler(request, number)) {
                    if (message === HANG) {
                      await once(call, "cancelled");
                      return;
                    }
                    call.write(message);
                  }
                  call.end();
                } catch (err) {
                  call.emit("error", failure(err));
                }
              })();
            };
    }
    this.server.addService(definition, implementation);
  }
}

function encoder(desc: DescMessage): (m: unknown) => Buffer {
  return (m) => Buffer.from(toBinary(desc, m as MessageShape<DescMessage>));
}

function decoder(desc: DescMessage): (data: Buffer) => MessageShape<DescMessage> {
  return (data) => fromBinary(desc, data);
}

function failure(err: unknown): Partial<grpc.StatusObject> {
  if (!(err instanceof Refused)) return { code: grpc.status.UNAVAILABLE, details: err instanceof Break ? "the connection broke" : String(err) };
  const metadata = new grpc.Metadata();
  const value = encodeObject({ message: STATUS, group: "", version: "v1", kind: "Status", resource: "", namespaced: false, stored: false }, err.status);
  const status = create(StatusSchema, { code: err.grpcCode, message: err.status.message ?? "", details: [{ typeUrl: "type.googleapis.com/" + STATUS, value }] });
  metadata.set("grpc-status-details-bin", Buffer.from(toBinary(StatusSchema, status)));
  return { code: err.grpcCode, details: err.status.message ?? "", metadata };
}

export function dial(servers: Server[] | string[], o: ConnectOptions = {}): Client {
  return connect({ addresses: servers.map((s) => (typeof s === "string" ? s : s.address)), insecure: true, connectTimeout: 30_000, ...o });
}

export function configMap(name: string, rv?: number, uid?: string): core_v1.ConfigMap {
  const metadata: meta_v1.ObjectMeta = { namespace: "default", name };
  if (rv !== undefined) Object.assign(metadata, { uid: uid ?? `uid-${name}`, resourceVersion: String(rv) });
  return { metadata };
}

export function packed(o: core_v1.ConfigMap): ReturnType<typeof pack> {
  return pack(core_v1.ConfigMap, o);
}

export function event(type: "ADDED" | "MODIFIED" | "DELETED", o: core_v1.ConfigMap): WatchResponse {
  return create(WatchResponseSchema, { type: WatchResponse_Type[type], object: packed(o), resourceVersion: o.metadata?.resourceVersion ?? "" });
}

export function bookmark(rv: number, end = false): WatchResponse {
  return create(WatchResponseSchema, { type: WatchResponse_Type.BOOKMARK, resourceVersion: String(rv), initialEventsEnd: end });
}

/** An address on which nothing listens. */
export async function unusedAddress(): Promise<string> {
  const s = createServer().listen(0, "127.0.0.1");
  await once(s, "listening");
  const { port } = s.address() as { port: number };
  s.close();
  await once(s, "close");
  return `127.0.0.1:${port}`;
}

