#!/usr/bin/env node
// Generates the package's types from the repository's descriptors: an interface for each of
// Kubernetes' messages in its JSON form, the table by which the codec converts between JSON
// and protobuf, and the messages of Keelson's own services. The output is not checked in; the
// npm package contains it.
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";

const here = fileURLToPath(new URL(".", import.meta.url));
const root = join(here, "../..");
const out = join(here, "src/gen");

// Messages whose JSON is not an object, and its TypeScript type.
const text = {
  "k8s.io.apimachinery.pkg.api.resource.Quantity": "string",
  "k8s.io.apimachinery.pkg.util.intstr.IntOrString": "number | string",
  "k8s.io.apimachinery.pkg.apis.meta.v1.Time": "string",
  "k8s.io.apimachinery.pkg.apis.meta.v1.MicroTime": "string",
  "k8s.io.apimachinery.pkg.apis.meta.v1.Duration": "string",
  "k8s.io.apimachinery.pkg.apis.meta.v1.FieldsV1": "unknown",
  "k8s.io.apimachinery.pkg.runtime.RawExtension": "unknown",
  "k8s.io.apimachinery.pkg.apis.meta.v1.Verbs": "string[]",
};
const isText = (name) => name in text || name.endsWith(".ExtraValue");
const textType = (name) => text[name] ?? "string[]";

// Descriptor types.
const [DOUBLE, INT64, UINT64, INT32, BOOL, STRING, MESSAGE, BYTES, UINT32] = [1, 3, 4, 5, 8, 9, 11, 12, 13];
const scalars = { [DOUBLE]: "number", [INT64]: "number", [UINT64]: "number", [INT32]: "number", [UINT32]: "number", [BOOL]: "boolean", [STRING]: "string", [BYTES]: "string" };
// The flags of a field in the table; src/codec.ts has the same.
const REPEATED = 1, MAP = 2, POINTER = 4, REQUIRED = 8, INLINE = 16;

function moduleName(path) {
  const parts = path.split("/").slice(0, -1);
  const last = parts[parts.length - 1];
  return /^v\d+((alpha|beta)\d+)?$/.test(last) ? `${parts[parts.length - 2]}_${last}` : last;
}

const descriptors = gunzipSync(readFileSync(join(root, "services/apiserver/internal/front/grpc/descriptor/kubernetes.binpb.gz")));
const files = fromBinary(FileDescriptorSetSchema, descriptors).file;
const schema = JSON.parse(readFileSync(join(root, "clients/kubernetes.json"), "utf8"));
const kinds = new Map(schema.kinds.map((k) => [k.message, k]));
const home = new Map(); // message → module
const messages = new Map();
for (const f of files) {
  for (const m of f.messageType) {
    home.set(`${f.package}.${m.name}`, moduleName(f.name));
    messages.set(`${f.package}.${m.name}`, m);
  }
}

const table = {};
for (const [name, m] of messages) {
  const rules = { inline: [], pointer: [], required: [], names: {}, ...schema.messages[name] };
  table[name] = m.field.map((f) => {
    let { type, typeName } = f;
    let flags = f.label === 3 ? REPEATED : 0;
    const entry = m.nestedType.find((n) => n.options?.mapEntry && typeName === `.${name}.${n.name}`);
    if (entry) {
      ({ type, typeName } = entry.field.find((v) => v.name === "value"));
      flags = MAP;
    }
    if (rules.pointer.includes(f.name)) flags |= POINTER;
    if (rules.required.includes(f.name)) flags |= REQUIRED;
    if (rules.inline.includes(f.name)) flags |= INLINE;
    return [f.number, rules.names[f.name] ?? f.name, type, type === MESSAGE ? typeName.slice(1) : 0, flags];
  });
}

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
writeFileSync(join(out, "schema.json"), JSON.stringify({ kinds: schema.kinds, messages: table }));

const modules = [];
for (const f of files) {
  const module = moduleName(f.name);
  const body = [];
  const used = new Set();
  let hasKinds = false;
  const property = ([, json, type, ref, flags]) => {
    let t = type === MESSAGE ? (isText(ref) ? textType(ref) : reference(ref)) : scalars[type];
    if (flags & MAP) t = `Record<string, ${t}>`;
    if (flags & REPEATED) t = t.includes(" ") ? `(${t})[]` : `${t}[]`;
    return `  ${/^[A-Za-z_$][\w$]*$/.test(json) ? json : JSON.stringify(json)}${flags & REQUIRED ? "" : "?"}: ${t};`;
  };
  const reference = (name) => {
    const where = home.get(name);
    const short = name.slice(name.lastIndexOf(".") + 1);
    if (where === module) return short;
    used.add(where);
    return `${where}.${short}`;
  };
  const properties = (name) => table[name].flatMap((field) => (field[4] & INLINE ? properties(field[3]) : [property(field)]));
  for (const m of f.messageType) {
    const name = `${f.package}.${m.name}`;
    if (isText(name)) continue;
    const kind = kinds.get(name);
    const head = kind ? [`  apiVersion?: string;`, `  kind?: string;`] : [];
    body.push(`export interface ${m.name} {`, ...head, ...properties(name), "}", "");
    if (kind) {
      hasKinds = true;
      body.push(`export const ${m.name}: Kind<${m.name}> = kindOf(${JSON.stringify(name)});`, "");
    }
  }
  if (body.length === 0) continue;
  modules.push(module);
  const imports = [...used].sort().map((u) => `import type * as ${u} from "./${u}.js";`);
  if (hasKinds) imports.push(`import { kindOf, type Kind } from "../kind.js";`);
  writeFileSync(join(out, `${module}.ts`), ["// Generated. Kubernetes' messages in their JSON form.", ...imports, "", ...body].join("\n"));
}
writeFileSync(join(out, "index.ts"), modules.sort().map((m) => `export * as ${m} from "./${m}.js";`).join("\n") + "\n");

const scratch = mkdtempSync(join(tmpdir(), "keelson-client-"));
try {
  mkdirSync(join(scratch, "keelson/client/v1"), { recursive: true });
  cpSync(join(root, "clients/status.proto"), join(scratch, "keelson/client/v1/status.proto"));
  const protos = ["keelson/client/v1/status.proto"];
  for (const area of ["resource", "trace", "pod"]) {
    cpSync(join(root, `proto/keelson/${area}/v1/${area}.proto`), join(scratch, `keelson/${area}/v1/${area}.proto`));
    protos.push(`keelson/${area}/v1/${area}.proto`);
  }
  execFileSync("protoc", [
    `-I${scratch}`, `--plugin=protoc-gen-es=${join(here, "node_modules/.bin/protoc-gen-es")}`,
    `--es_out=${out}`, "--es_opt=target=ts,import_extension=js", ...protos,
  ], { stdio: "inherit" });
} finally {
  rmSync(scratch, { recursive: true });
}
