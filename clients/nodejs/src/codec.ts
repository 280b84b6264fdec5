// Kubernetes' objects between their JSON form, which this client uses, and their protobuf
// encoding, which the API speaks. A table made from Kubernetes' descriptors drives both
// directions. A field that the table does not know is refused when an object is sent.
import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { apiVersion, schema, type Field, type Kind } from "./kind.js";
import { durationFromText, durationToText, timeFromText, timeToText } from "./text.js";

type Json = Record<string, unknown>;
const DOUBLE = 1, INT64 = 3, UINT64 = 4, INT32 = 5, BOOL = 8, STRING = 9, MESSAGE = 11, BYTES = 12, UINT32 = 13;
const REPEATED = 1, MAP = 2, POINTER = 4, REQUIRED = 8, INLINE = 16;
const META = "k8s.io.apimachinery.pkg.apis.meta.v1.";

interface Message {
  fields: Map<number, Field>;
  /** By JSON name: the way to a field, through the messages that JSON inlines. */
  names: Map<string, Field[]>;
  lists: string[];
}

const cache = new Map<string, Message>();

function message(name: string): Message {
  let m = cache.get(name);
  if (m === undefined) {
    const fields = schema.messages[name];
    if (fields === undefined) throw new TypeError(`there is no message ${name}`);
    m = { fields: new Map(fields.map((f) => [f[0], f])), names: new Map(), lists: [] };
    for (const f of fields) {
      if (f[4] & INLINE) for (const [json, path] of message(f[3] as string).names) m.names.set(json, [f, ...path]);
      else m.names.set(f[1], [f]);
      if (f[4] & REPEATED && f[4] & REQUIRED) m.lists.push(f[1]);
    }
    cache.set(name, m);
  }
  return m;
}

/** Returns the JSON form of an encoded message. Zeros that JSON omits are left out. */
export function decodeMessage(name: string, data: Uint8Array): Json {
  return read(name, new BinaryReader(data), data.length) as Json;
}

/** Returns the JSON form of an encoded object, with apiVersion and kind. */
export function decodeObject<T>(kind: Kind<T>, data: Uint8Array): T {
  return { apiVersion: apiVersion(kind), kind: kind.kind, ...decodeMessage(kind.message, data) } as T;
}

/** Encodes an object. It throws a TypeError for a field that does not exist or has a value of another type. */
export function encodeObject<T>(kind: Kind<T>, object: T): Uint8Array {
  const { apiVersion: v, kind: k, ...rest } = object as Json;
  if (v !== undefined && v !== apiVersion(kind)) throw new TypeError(`apiVersion is ${String(v)}, want ${apiVersion(kind)} for a ${kind.kind}`);
  if (k !== undefined && k !== kind.kind) throw new TypeError(`kind is ${String(k)}, want ${kind.kind}`);
  const writer = new BinaryWriter();
  write(kind.message, rest, writer, kind.kind);
  return writer.finish();
}

function read(name: string, reader: BinaryReader, length: number): unknown {
  const end = reader.pos + length;
  const m = message(name);
  const raw: Json = {};
  while (reader.pos < end) {
    const [no, wire] = reader.tag();
    const field = m.fields.get(no);
    if (field === undefined) {
      reader.skip(wire, no);
      continue;
    }
    const [, json, type, ref, flags] = field;
    if (flags & MAP) {
      const [key, value] = readEntry(reader, type, ref);
      ((raw[json] ??= {}) as Json)[key] = value;
      continue;
    }
    const value = readValue(reader, type, ref);
    if (flags & REPEATED) ((raw[json] ??= []) as unknown[]).push(value);
    else if (flags & INLINE) Object.assign(raw, value);
    else if (flags & (POINTER | REQUIRED) || !isZero(value)) raw[json] = value;
  }
  for (const json of m.lists) raw[json] ??= [];
  return fromRaw(name, raw);
}

function readEntry(reader: BinaryReader, type: number, ref: string | 0): [string, unknown] {
  const end = reader.uint32() + reader.pos;
  let key = "";
  let value: unknown = type === BYTES || type === STRING ? "" : type === BOOL ? false : type === MESSAGE ? fromRaw(ref as string, {}) : 0;
  while (reader.pos < end) {
    const [no, wire] = reader.tag();
    if (no === 1) key = reader.string();
    else if (no === 2) value = readValue(reader, type, ref);
    else reader.skip(wire, no);
  }
  return [key, value];
}

function readValue(reader: BinaryReader, type: number, ref: string | 0): unknown {
  switch (type) {
    case STRING: return reader.string();
    case MESSAGE: return read(ref as string, reader, reader.uint32());
    case BOOL: return reader.bool();
    case INT32: return reader.int32();
    case UINT32: return reader.uint32();
    case INT64: return Number(reader.int64());
    case UINT64: return Number(reader.uint64());
    case DOUBLE: return reader.double();
    case BYTES: return Buffer.from(reader.bytes()).toString("base64");
    default: throw new TypeError(`a field has the descriptor type ${type}`);
  }
}

function isZero(value: unknown): boolean {
  if (value === undefined || value === null || value === "" || value === 0 || value === false) return true;
  return typeof value === "object" && !Array.isArray(value) && Object.keys(value).length === 0;
}

/** Whether JSON writes a message as a list of its items. */
function isList(name: string): boolean {
  return name === META + "Verbs" || name.endsWith(".ExtraValue");
}

/** Turns the fields of a message into its JSON, which is text for some. */
function fromRaw(name: string, raw: Json): unknown {
  switch (name) {
    case "k8s.io.apimachinery.pkg.api.resource.Quantity": return raw.string ?? "";
    case "k8s.io.apimachinery.pkg.util.intstr.IntOrString": return raw.type === 1 ? raw.strVal ?? "" : raw.intVal ?? 0;
    case META + "Time": return raw.seconds === undefined ? undefined : timeToText(raw.seconds as number, 0, 0);
    case META + "MicroTime": return raw.seconds === undefined ? undefined : timeToText(raw.seconds as number, Number(raw.nanos ?? 0), 6);
    case META + "Duration": return durationToText(BigInt((raw.duration as number | undefined) ?? 0));
    case META + "FieldsV1": return raw.Raw === undefined ? undefined : JSON.parse(Buffer.from(raw.Raw as string, "base64").toString());
    case "k8s.io.apimachinery.pkg.runtime.RawExtension": return raw.raw === undefined ? undefined : JSON.parse(Buffer.from(raw.raw as string, "base64").toString());
    default: return isList(name) ? raw.items ?? [] : raw;
  }
}

/** The reverse of fromRaw. */
function toRaw(name: string, json: unknown, path: string): Json {
  switch (name) {
    case "k8s.io.apimachinery.pkg.api.resource.Quantity":
      if (typeof json !== "string" && typeof json !== "number") throw wrong(path, "a quantity", json);
      return { string: String(json) };
    case "k8s.io.apimachinery.pkg.util.intstr.IntOrString":
      if (typeof json === "number") return { type: 0, intVal: json };
      if (typeof json === "string") return { type: 1, strVal: json };
      throw wrong(path, "a number or a string", json);
    case META + "Time": return timeFromText(json, path, false);
    case META + "MicroTime": return timeFromText(json, path, true);
    case META + "Duration": return { duration: Number(durationFromText(json, path)) };
    case META + "FieldsV1": return { Raw: Buffer.from(JSON.stringify(json)).toString("base64") };
    case "k8s.io.apimachinery.pkg.runtime.RawExtension": return { raw: Buffer.from(JSON.stringify(json)).toString("base64") };
  }
  if (isList(name)) return { items: json };
  if (typeof json !== "object" || json === null || Array.isArray(json)) throw wrong(path, "an object", json);
  return json as Json;
}

function wrong(path: string, want: string, got: unknown): TypeError {
  return new TypeError(`${path}: want ${want}, got ${got === null ? "null" : Array.isArray(got) ? "a list" : typeof got}`);
}

function write(name: string, json: unknown, writer: BinaryWriter, path: string): void {
  const raw = toRaw(name, json, path);
  const m = message(name);
  const inline = new Map<Field, Json>();
  for (const [key, value] of Object.entries(raw)) {
    const way = m.names.get(key);
    if (way === undefined) throw new TypeError(`${path}: unknown field ${key}`);
    if (value === undefined || value === null) continue;
    const field = way[0] as Field;
    if (field[4] & INLINE) {
      let inner = inline.get(field);
      if (inner === undefined) inline.set(field, (inner = {}));
      inner[key] = value;
      continue;
    }
    writeField(field, value, writer, `${path}.${key}`);
  }
  for (const [field, inner] of inline) {
    writer.tag(field[0], WireType.LengthDelimited).fork();
    write(field[3] as string, inner, writer, path);
    writer.join();
  }
}

function writeField([no, , type, ref, flags]: Field, value: unknown, writer: BinaryWriter, path: string): void {
  if (flags & MAP) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(path, "an object", value);
    for (const [k, v] of Object.entries(value)) {
      if (v === undefined || v === null) continue;
      writer.tag(no, WireType.LengthDelimited).fork();
      writer.tag(1, WireType.LengthDelimited).string(k);
      writeValue(2, type, ref, v, writer, `${path}.${k}`);
      writer.join();
    }
  } else if (flags & REPEATED) {
    if (!Array.isArray(value)) throw wrong(path, "a list", value);
    value.forEach((v, i) => writeValue(no, type, ref, v, writer, `${path}[${i}]`));
  } else {
    writeValue(no, type, ref, value, writer, path);
  }
}

function writeValue(no: number, type: number, ref: string | 0, value: unknown, writer: BinaryWriter, path: string): void {
  switch (type) {
    case STRING:
      if (typeof value !== "string") throw wrong(path, "a string", value);
      writer.tag(no, WireType.LengthDelimited).string(value);
      return;
    case MESSAGE:
      writer.tag(no, WireType.LengthDelimited).fork();
      write(ref as string, value, writer, path);
      writer.join();
      return;
    case BYTES:
      if (value instanceof Uint8Array) writer.tag(no, WireType.LengthDelimited).bytes(value);
      else if (typeof value === "string" && /^[A-Za-z0-9+/]*={0,2}$/.test(value)) writer.tag(no, WireType.LengthDelimited).bytes(Buffer.from(value, "base64"));
      else throw wrong(path, "base64 or a Uint8Array", value);
      return;
    case BOOL:
      if (typeof value !== "boolean") throw wrong(path, "a boolean", value);
      writer.tag(no, WireType.Varint).bool(value);
      return;
    case DOUBLE:
      if (typeof value !== "number") throw wrong(path, "a number", value);
      writer.tag(no, WireType.Bit64).double(value);
      return;
  }
  if (typeof value !== "number" || !Number.isInteger(value)) throw wrong(path, "an integer", value);
  writer.tag(no, WireType.Varint);
  if (type === INT64) writer.int64(BigInt(value));
  else if (type === UINT64) writer.uint64(BigInt(value));
  else if (type === UINT32) writer.uint32(value);
  else if (value < -(2 ** 31) || value >= 2 ** 31) throw new TypeError(`${path}: ${value} has more than 32 bits`);
  else writer.int32(value);
}
