/**
 * A client of Keelson, a Kubernetes control plane, over gRPC.
 *
 *     import { connect, core_v1 } from "@keelson/client";
 *
 *     const client = connect({ kubeconfig: "~/.kube/config" });
 *     for await (const pod of client.resource(core_v1.Pod, "default").list()) console.log(pod.metadata?.name);
 *     client.close();
 *
 * Objects are plain, in Kubernetes' JSON form. A failed call throws ApiError, which carries
 * Kubernetes' Status.
 */
export { Client, connect, type ConnectOptions, type TraceOf } from "./client.js";
export { decodeObject, encodeObject } from "./codec.js";
export type { CallOptions } from "./connection.js";
export { ApiError } from "./errors.js";
export * from "./gen/index.js";
export type { GetTraceResponse, Span } from "./gen/keelson/trace/v1/trace_pb.js";
export { apiVersion, kinds, type Kind } from "./kind.js";
export { ConfigError } from "./kubeconfig.js";
export { List, Resource, type DeleteOptions, type ListOptions, type Options, type Selectors, type WatchOptions, type WriteOptions } from "./resource.js";
export { PortForward, Session, type Chunk, type Completed, type LogOptions, type PodName, type SessionOptions } from "./streams.js";
export { Watch, type Bookmark, type Change, type Event } from "./watch.js";
