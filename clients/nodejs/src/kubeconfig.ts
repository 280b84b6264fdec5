// Where a cluster is and who the caller is: kubeconfig files and pods' service accounts. A
// field that this client cannot honour is refused by name; none is ignored.
import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, dirname, isAbsolute, join, resolve } from "node:path";
import { parse } from "yaml";

/** The configuration does not say how to reach a cluster. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

export interface Config {
  addresses: string[];
  ca?: Buffer | undefined;
  cert?: Buffer | undefined;
  key?: Buffer | undefined;
  token?: (() => string | Promise<string>) | undefined;
  serverName?: string | undefined;
  /** The context's. */
  namespace?: string | undefined;
}

type Entry = Record<string, unknown>;

const known = {
  clusters: ["server", "certificate-authority", "certificate-authority-data", "tls-server-name", "disable-compression", "extensions"],
  users: ["client-certificate", "client-certificate-data", "client-key", "client-key-data", "token", "tokenFile", "extensions"],
  contexts: ["cluster", "user", "namespace", "extensions"],
};
type Section = keyof typeof known;
const members: Record<Section, string> = { clusters: "cluster", users: "user", contexts: "context" };

const SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";

/** Reads a kubeconfig: a file, an object, or for undefined the files of $KUBECONFIG or ~/.kube/config. */
export function load(source: string | object | undefined, context?: string): Config {
  const merged = new Merged();
  if (typeof source === "object") {
    merged.add(source as Entry, process.cwd());
    return config(merged, context);
  }
  const paths = source !== undefined ? [home(source)] : defaultPaths();
  let found = false;
  for (const path of paths) {
    let text: string;
    try {
      text = readFileSync(path, "utf8");
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== "ENOENT") throw err;
      if (source !== undefined) throw new ConfigError(`kubeconfig ${path}: there is no such file`);
      continue;
    }
    let data: unknown;
    try {
      data = parse(text, { prettyErrors: false }) ?? {};
    } catch {
      throw new ConfigError(`kubeconfig ${path}: not YAML`); // the error's own text may quote a credential
    }
    if (typeof data !== "object" || data === null || Array.isArray(data)) throw new ConfigError(`kubeconfig ${path}: want an object`);
    merged.add(data as Entry, dirname(resolve(path)));
    found = true;
  }
  if (!found) throw new ConfigError(`no kubeconfig: ${paths.join(", ")} do not exist`);
  return config(merged, context);
}

/** Returns the configuration of a pod with a service account, or undefined outside of a cluster. */
export function inCluster(directory = SERVICE_ACCOUNT): Config | undefined {
  const host = process.env.KUBERNETES_SERVICE_HOST, port = process.env.KUBERNETES_SERVICE_PORT ?? "443";
  if (!host || !existsSync(join(directory, "token"))) return undefined;
  return {
    addresses: [`${host.includes(":") ? `[${host}]` : host}:${port}`],
    ca: readFileSync(join(directory, "ca.crt")),
    token: fileToken(join(directory, "token")),
    namespace: readFileSync(join(directory, "namespace"), "utf8").trim() || undefined,
  };
}

/** Returns a source that reads the file again after 10 seconds, since tokens of pods are renewed. */
function fileToken(path: string): () => string {
  let text = "", at = -Infinity;
  return () => {
    if (Date.now() - at > 10_000) {
      text = readFileSync(path, "utf8").trim();
      at = Date.now();
    }
    return text;
  };
}

/** Returns PEM data, given as such or as the path of a file. */
export function pem(value: string | Buffer | undefined): Buffer | undefined {
  if (value === undefined || typeof value !== "string") return value;
  return value.trimStart().startsWith("-----BEGIN ") ? Buffer.from(value) : readFileSync(home(value));
}

function home(path: string): string {
  return path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path;
}

function defaultPaths(): string[] {
  const listed = process.env.KUBECONFIG;
  return listed ? listed.split(delimiter).filter((p) => p !== "").map(home) : [join(homedir(), ".kube/config")];
}

/** Several files, of which the first that names an entry counts. Paths are relative to their file. */
class Merged {
  current = "";
  private readonly entries = new Map<string, [Entry, string]>();

  add(data: Entry, base: string): void {
    this.current ||= String(data["current-context"] ?? "");
    for (const section of Object.keys(known) as Section[]) {
      for (const entry of (data[section] ?? []) as Entry[]) {
        if (typeof entry?.name !== "string") throw new ConfigError(`kubeconfig: an entry of ${section} has no name`);
        const key = `${section}/${entry.name}`;
        if (!this.entries.has(key)) this.entries.set(key, [(entry[members[section]] ?? {}) as Entry, base]);
      }
    }
  }

  get(section: Section, name: string): [Entry, string] {
    const found = this.entries.get(`${section}/${name}`);
    if (found === undefined) throw new ConfigError(`kubeconfig: there is no '${name}' in ${section}`);
    for (const [field, value] of Object.entries(found[0])) {
      const empty = value === undefined || value === null || value === false || value === "" || (typeof value === "object" && Object.keys(value).length === 0);
      if (!empty && !known[section].includes(field)) throw new ConfigError(`kubeconfig: ${section} '${name}': ${field} is not supported`);
    }
    return found;
  }
}

function config(merged: Merged, context: string | undefined): Config {
  const name = context ?? merged.current;
  if (name === "") throw new ConfigError("kubeconfig: there is no current-context; name a context");
  const [ctx] = merged.get("contexts", name);
  const clusterName = String(ctx.cluster ?? ""), userName = String(ctx.user ?? "");
  const [cluster, clusterBase] = merged.get("clusters", clusterName);
  const out: Config = {
    addresses: [address(clusterName, String(cluster.server ?? ""))],
    ca: data(cluster, "certificate-authority", clusterBase),
    serverName: (cluster["tls-server-name"] as string | undefined) || undefined,
    namespace: (ctx.namespace as string | undefined) || undefined,
  };
  if (userName !== "") {
    const [user, base] = merged.get("users", userName);
    out.cert = data(user, "client-certificate", base);
    out.key = data(user, "client-key", base);
    if ((out.cert === undefined) !== (out.key === undefined)) throw new ConfigError(`kubeconfig: users '${userName}': client-certificate and client-key belong together`);
    if (user.tokenFile) out.token = fileToken(from(base, String(user.tokenFile)));
    else if (user.token) out.token = () => String(user.token);
  }
  return out;
}

function from(base: string, path: string): string {
  return isAbsolute(path) ? path : join(base, path);
}

function address(cluster: string, server: string): string {
  const where = `kubeconfig: clusters '${cluster}': server '${server}'`;
  let url: URL;
  try {
    url = new URL(server);
  } catch {
    throw new ConfigError(`${where} is not https://HOST:PORT`);
  }
  if (url.protocol !== "https:" || url.hostname === "") throw new ConfigError(`${where} is not https://HOST:PORT`);
  if (url.pathname.replaceAll("/", "") !== "" || url.search !== "" || url.hash !== "" || url.username !== "" || url.password !== "") {
    throw new ConfigError(`${where} has more than a host and a port, which gRPC does not support`);
  }
  return `${url.hostname}:${url.port || "443"}`;
}

function data(entry: Entry, field: string, base: string): Buffer | undefined {
  const inline = entry[field + "-data"];
  if (inline) {
    const text = String(inline).replace(/\s/g, "");
    if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]+={0,2}$/.test(text)) throw new ConfigError(`kubeconfig: ${field}-data is not base64`);
    return Buffer.from(text, "base64");
  }
  if (entry[field]) {
    const path = from(base, String(entry[field]));
    try {
      return readFileSync(path);
    } catch (err) {
      throw new ConfigError(`kubeconfig: ${field} ${path}: ${(err as NodeJS.ErrnoException).code ?? ""}`);
    }
  }
  return undefined;
}
