import { readFileSync } from "node:fs";

/** A built-in kind. T is the type of its objects in their JSON form. */
export interface Kind<T> {
  /** The full name of the protobuf message. */
  readonly message: string;
  /** Empty for the core group. */
  readonly group: string;
  readonly version: string;
  readonly kind: string;
  /** The plural; empty for kinds that only travel as the body of a subresource. */
  readonly resource: string;
  readonly namespaced: boolean;
  /** Whether its objects can be listed and watched. */
  readonly stored: boolean;
  /** Not a property: it ties the kind to the type of its objects. */
  readonly __type?: T;
}

/** A field: number, JSON name, descriptor type, message or 0, flags. */
export type Field = readonly [number, string, number, string | 0, number];

interface Schema {
  kinds: Kind<unknown>[];
  messages: Record<string, Field[]>;
}

export const schema = JSON.parse(readFileSync(new URL("./gen/schema.json", import.meta.url), "utf8")) as Schema;

const byMessage = new Map(schema.kinds.map((k) => [k.message, k]));

/** Returns the kind of a protobuf message. */
export function kindOf<T>(message: string): Kind<T> {
  const kind = byMessage.get(message);
  if (kind === undefined) throw new TypeError(`${message} is not a kind of Kubernetes' API`);
  return kind as Kind<T>;
}

/** All built-in kinds. */
export function kinds(): readonly Kind<unknown>[] {
  return schema.kinds;
}

/** Group and version as manifests name them. */
export function apiVersion(kind: Kind<unknown>): string {
  return kind.group === "" ? kind.version : `${kind.group}/${kind.version}`;
}
