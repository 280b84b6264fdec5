import { create } from "@bufbuild/protobuf";
import { credentials as grpcCredentials } from "@grpc/grpc-js";
import { Connection, type CallOptions } from "./connection.js";
import { GetTraceRequestSchema, GetTraceResponseSchema, type GetTraceResponse } from "./gen/keelson/trace/v1/trace_pb.js";
import type { Kind } from "./kind.js";
import { ConfigError, inCluster, load, pem, type Config } from "./kubeconfig.js";
import { Resource, type Caller } from "./resource.js";
import * as streams from "./streams.js";

/** How to reach a cluster. Without kubeconfig and addresses: $KUBECONFIG, ~/.kube/config, or a pod's service account. */
export interface ConnectOptions {
  /** A file, or its content as an object. */
  kubeconfig?: string | object;
  /** The kubeconfig's context, by default the current one. */
  context?: string;
  /** HOST:PORT of the apiservers' gRPC or HTTPS ports. Calls are balanced over those that answer. With a kubeconfig, they replace its server. */
  addresses?: string | string[];
  /** PEM, or the path of a file. Without it, the machine's authorities. */
  ca?: string | Buffer;
  cert?: string | Buffer;
  key?: string | Buffer;
  /** A bearer token, or a function that is called for each call. */
  token?: string | (() => string | Promise<string>);
  /** The name in the apiservers' certificates, by default that of each address. */
  serverName?: string;
  /** The program, for instance "shop/1.2". The part before the slash is the field manager of writes. */
  userAgent?: string;
  /** Milliseconds that a call may take with its repetitions, by default 30,000. Lists, watches and streams have no limit. */
  timeout?: number;
  /** Milliseconds that a call waits while no apiserver is connected, by default 10,000. */
  connectTimeout?: number;
  /** Clear text, for tests only. A token is refused with it. */
  insecure?: boolean;
}

/** Returns a client. It does not wait for a connection. An open client keeps the process alive: close it. */
export function connect(o: ConnectOptions = {}): Client {
  let config: Config | undefined;
  if (o.kubeconfig === undefined && o.addresses === undefined && !process.env.KUBECONFIG) config = inCluster();
  if (config === undefined && (o.kubeconfig !== undefined || o.addresses === undefined)) config = load(o.kubeconfig, o.context);
  config ??= { addresses: [] };
  if (o.addresses !== undefined) config.addresses = typeof o.addresses === "string" ? o.addresses.split(",").map((a) => a.trim()) : o.addresses;
  for (const a of config.addresses) if (!/^.+:\d+$/.test(a)) throw new ConfigError(`address '${a}' is not HOST:PORT`);
  if (config.addresses.length === 0) throw new ConfigError("no addresses");
  const ca = pem(o.ca) ?? config.ca, cert = pem(o.cert) ?? config.cert, key = pem(o.key) ?? config.key;
  if ((cert === undefined) !== (key === undefined)) throw new ConfigError("cert and key belong together");
  const given = o.token;
  const token = typeof given === "string" ? () => given : given ?? config.token;
  if (o.insecure === true && token !== undefined) throw new ConfigError("a token needs TLS");
  const userAgent = o.userAgent ?? "keelson-nodejs";
  const connection = new Connection({
    addresses: config.addresses,
    credentials: o.insecure === true ? grpcCredentials.createInsecure() : grpcCredentials.createSsl(ca ?? null, key ?? null, cert ?? null),
    token,
    userAgent,
    serverName: o.serverName ?? config.serverName,
    connectTimeout: o.connectTimeout ?? 10_000,
    timeout: o.timeout ?? 30_000,
  });
  return new Client(connection, userAgent.split("/", 1)[0] as string, config.namespace);
}

/** Names an object for trace. */
export interface TraceOf {
  name: string;
  namespace?: string;
}

/** A connection to a cluster, made by connect. */
export class Client implements Caller {
  constructor(
    readonly connection: Connection,
    /** The default field manager of writes. */
    readonly fieldManager: string,
    /** The kubeconfig's; resource does not use it by itself. */
    readonly namespace: string | undefined,
  ) {}

  /** Closes the connections. Calls in progress fail. */
  close(): void {
    this.connection.close();
  }

  /** Returns access to a kind, for instance resource(core_v1.Pod, "default"). Without a
   * namespace, list, watch and deleteCollection cover all, and other methods need one. */
  resource<T>(kind: Kind<T>, namespace?: string): Resource<T> {
    return new Resource(this, kind, namespace);
  }

  /** Returns what the last write of an object caused: the spans of its trace, parents first.
   * earlier selects the trace of an earlier write. */
  async trace(kind: Kind<unknown>, object: TraceOf, o: CallOptions & { earlier?: number } = {}): Promise<GetTraceResponse> {
    const request = create(GetTraceRequestSchema, {
      group: kind.group, resource: kind.resource, namespace: object.namespace ?? "", name: object.name, earlier: o.earlier ?? 0,
    });
    return this.getTrace(`trace ${kind.resource} ${object.namespace ? object.namespace + "/" : ""}${object.name}`, request, o);
  }

  /** Returns the trace of an id, 32 hexadecimal digits. */
  async traceById(traceId: string, o: CallOptions = {}): Promise<GetTraceResponse> {
    return this.getTrace(`trace ${traceId}`, create(GetTraceRequestSchema, { traceId }), o);
  }

  private getTrace(what: string, request: ReturnType<typeof create<typeof GetTraceRequestSchema>>, o: CallOptions): Promise<GetTraceResponse> {
    const method = { path: "/keelson.trace.v1.TraceService/GetTrace", input: GetTraceRequestSchema, output: GetTraceResponseSchema, safe: true };
    return this.connection.unary(what, method, request, o);
  }

  /** Yields the log of a container, line by line, each with its newline. */
  logs(pod: streams.PodName, o: streams.LogOptions = {}): AsyncGenerator<Buffer> {
    return streams.logs(this.connection, pod, o);
  }

  /** Runs a command in a container. See run for commands without a dialogue. */
  exec(pod: streams.PodName, command: string[], o: streams.SessionOptions = {}): Promise<streams.Session> {
    return streams.exec(this.connection, pod, command, o);
  }

  /** Connects to the first process of a container. */
  attach(pod: streams.PodName, o: streams.SessionOptions = {}): Promise<streams.Session> {
    return streams.attach(this.connection, pod, o);
  }

  /** Runs a command to its end and returns its exit code and output. */
  run(pod: streams.PodName, command: string[], o: CallOptions & { container?: string; input?: Uint8Array | string } = {}): Promise<streams.Completed> {
    return streams.run(this.connection, pod, command, o);
  }

  /** Opens one TCP connection to a port of a pod. */
  dial(pod: streams.PodName, port: number, o: CallOptions = {}): Promise<streams.Session> {
    return streams.dial(this.connection, pod, port, o);
  }

  /** Listens on a port of 127.0.0.1, by default a free one, and connects whoever connects there to a port of the pod. */
  portForward(pod: streams.PodName, port: number, o: { localPort?: number } = {}): Promise<streams.PortForward> {
    return streams.PortForward.listen(this.connection, pod, port, o.localPort ?? 0);
  }
}
