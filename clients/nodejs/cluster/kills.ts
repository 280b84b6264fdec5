// Writes and watches while apiservers are killed, and checks that no event is lost or repeated
// and that no write is repeated. clients/python/cluster/kills.py is its twin, and says how it
// knows.
//
//     node kills.js HOST:PORT,HOST:PORT,... PKI-DIRECTORY NAMESPACE
//
// It prints "ready" once it writes, runs until its standard input ends, and prints a summary.
import { ApiError, connect, core_v1, type Change, type Watch } from "@keelson/client";

const [addresses, pki, namespace] = process.argv.slice(2);
const labelSelector = "client=nodejs";
const MOST_LIVES = 3000, WRITERS = 4;

const client = connect({ addresses, ca: `${pki}/ca.crt`, cert: `${pki}/tls.crt`, key: `${pki}/tls.key`, userAgent: "kills-nodejs" });
const maps = client.resource(core_v1.ConfigMap, namespace);
const accounts = client.resource(core_v1.ServiceAccount, namespace);

const events: string[] = []; // type, name and revision
const written = new Map<string, number>(); // token → how often
const seen = new Set<string>(); // revisions
const state = new Map<string, string>(); // name → type of the last event
const acknowledged = new Map<string, string>(); // revision → what was written
const appended = new Set<string>(["first"]), unsure = new Set<string>();
const failures: string[] = [];
let unknown = 0, reached = 0n, stopped = false;

const stdinEnded = new Promise<void>((resolve) => process.stdin.resume().on("end", () => { stopped = true; resolve(); }));

function map(name: string, token: string): core_v1.ConfigMap {
  return { metadata: { name, labels: { client: "nodejs" } }, data: { token } };
}

function text(e: Change<core_v1.ConfigMap>): string {
  return `${e.type} ${e.object.metadata?.name} ${e.resourceVersion}`;
}

async function follow(watch: Watch<core_v1.ConfigMap, Change<core_v1.ConfigMap>>): Promise<void> {
  for await (const e of watch) {
    const rv = BigInt(e.resourceVersion), name = e.object.metadata?.name ?? "";
    if (rv <= reached) failures.push(`repeated or out of order: ${text(e)}`);
    reached = rv;
    events.push(text(e));
    seen.add(e.resourceVersion);
    state.set(name, e.type);
    if (e.type === "DELETED") continue;
    const key = `the token ${e.object.data?.token}`;
    written.set(key, (written.get(key) ?? 0) + 1);
  }
}

/** Performs a write once. undefined: it has no answer, or was refused for lack of one. */
async function write<T extends { metadata?: { resourceVersion?: string } }>(what: string, call: () => Promise<T | undefined>): Promise<T | undefined> {
  try {
    const object = await call();
    if (object?.metadata?.resourceVersion) acknowledged.set(object.metadata.resourceVersion, what);
    return object;
  } catch (err) {
    if (!(err instanceof ApiError)) throw err;
    if (err.mayHaveHappened) unknown++;
    else if (!err.nothingDone) failures.push(`${what}: ${err.code} ${err.reason}: ${err.message}`);
    return undefined;
  }
}

/** Creates an object, changes it, appends to the list of the account, and deletes every other object. */
async function life(number: number): Promise<void> {
  let name = `nodejs-${number}`;
  const fresh = map(name, `${number}.0`);
  if (number % 3 === 0) fresh.metadata = { ...fresh.metadata, name: undefined, generateName: `${name}-` };
  let object = await write(`create ${name}`, () => maps.create(fresh));
  name = object?.metadata?.name ?? name;
  for (const i of [1, 2]) {
    const resourceVersion = object?.metadata?.resourceVersion;
    if (resourceVersion === undefined) return;
    const changed = map(name, `${number}.${i}`);
    object = await write(`update ${name}`, () => maps.update({ ...changed, metadata: { ...changed.metadata, resourceVersion } }));
  }
  if (number % 10 === 0) await append(`t${number}`);
  if (number % 2 === 1 && object !== undefined) await write(`delete ${name}`, () => maps.delete(name, { uid: object?.metadata?.uid }));
}

async function append(token: string): Promise<void> {
  try {
    await accounts.patch("nodejs", [{ op: "add", path: "/secrets/-", value: { name: token } }], { kind: "json" });
    appended.add(token);
  } catch (err) {
    if (!(err instanceof ApiError)) throw err;
    if (err.mayHaveHappened) {
      unknown++;
      unsure.add(token);
    } else if (!err.nothingDone) failures.push(`patch: ${err.message}`);
  }
}

/** Creates the last object, however often it takes, and returns its revision. */
async function last(): Promise<string> {
  for (;;) {
    try {
      return (await maps.create(map("last-nodejs", "last"))).metadata?.resourceVersion ?? "";
    } catch (err) {
      if (!(err instanceof ApiError)) throw err;
      if (err.reason === "AlreadyExists") return (await maps.get("last-nodejs")).metadata?.resourceVersion ?? "";
      if (!err.mayHaveHappened && !err.nothingDone) throw err;
    }
  }
}

await accounts.create({ metadata: { name: "nodejs" }, secrets: [{ name: "first" }] });
const list = maps.list({ labelSelector });
await list.all();
const watch = maps.watch({ from: list, labelSelector });
const following = follow(watch).catch((err: unknown) => failures.push(`the watch ended: ${String(err)}`));
console.log("ready");
const work = async (first: number) => {
  for (let number = first; !stopped && number < MOST_LIVES && failures.length === 0; number += WRITERS) await life(number);
};
await Promise.all([stdinEnded, ...Array.from({ length: WRITERS }, (_, i) => work(i))]);

const end = await last();
for (const deadline = Date.now() + 60_000; !seen.has(end) && Date.now() < deadline && failures.length === 0; ) await new Promise((r) => setTimeout(r, 20));
watch.close();
await following;

if (watch.relists > 0) failures.push(`the server forgot the state of the watch ${watch.relists} times`);
for (const [rv, what] of acknowledged) if (!seen.has(rv)) failures.push(`lost: ${what} at revision ${rv}`);
for (const [what, times] of written) if (times > 1) failures.push(`${what} was written ${times} times`);
const again: string[] = [];
for await (const e of maps.watch({ from: list, labelSelector })) {
  again.push(text(e));
  if (e.resourceVersion === end) break;
}
if (again.join() !== events.join()) failures.push(`a watch after the kills shows ${again.length} events, the watch during them ${events.length}`);
const secrets = ((await accounts.get("nodejs")).secrets ?? []).map((s) => s.name ?? "");
if (new Set(secrets).size !== secrets.length) failures.push("a patch was repeated");
for (const token of appended) if (!secrets.includes(token)) failures.push(`lost: the patch ${token}`);
for (const token of secrets) if (!appended.has(token) && !unsure.has(token)) failures.push(`unexpected: the patch ${token}`);
const present = (await maps.list({ labelSelector, pageSize: 50 }).all()).map((o) => o.metadata?.name ?? "").sort();
const left = [...state].filter(([, type]) => type !== "DELETED").map(([name]) => name).sort();
if (present.join() !== left.join()) failures.push("the objects are not those that the events leave");
if (acknowledged.size < 20) failures.push(`only ${acknowledged.size} writes were acknowledged`);

client.close();
console.log(`${acknowledged.size} writes acknowledged, ${unknown} unanswered, ${events.length} events, last break: ${watch.lastError?.message}`);
for (const f of failures.slice(0, 20)) console.log("FAIL:", f);
process.exitCode = failures.length > 0 ? 1 : 0;
