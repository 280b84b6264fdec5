// Kubeconfigs: what is read, and what is refused by name.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { connect, ConfigError } from "@keelson/client";
import { inCluster, load } from "#internal/kubeconfig.js";

function kubeconfig(o: { cluster?: object; user?: object; context?: object } = {}) {
  return {
    "current-context": "c",
    contexts: [{ name: "c", context: { cluster: "k", user: "u", ...o.context } }],
    clusters: [{ name: "k", cluster: { server: "https://10.0.0.1:6443", ...o.cluster } }],
    users: [{ name: "u", user: o.user ?? {} }],
  };
}

function directory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), "keelson-client-test-"));
  t.after(() => rmSync(dir, { recursive: true }));
  return dir;
}

function environment(t: TestContext, values: Record<string, string>): void {
  for (const [name, value] of Object.entries(values)) {
    const before = process.env[name];
    process.env[name] = value;
    t.after(() => { if (before === undefined) delete process.env[name]; else process.env[name] = before; });
  }
}

test("data and files", (t) => {
  const dir = directory(t), pem = Buffer.from("PEM").toString("base64");
  writeFileSync(join(dir, "ca.crt"), "CA");
  writeFileSync(join(dir, "config"), JSON.stringify(kubeconfig({
    cluster: { "certificate-authority": "ca.crt", "tls-server-name": "kubernetes" }, user: { "client-certificate-data": pem, "client-key-data": pem }, context: { namespace: "shop" },
  })));
  const got = load(join(dir, "config"));
  assert.deepEqual([got.addresses, String(got.ca), String(got.cert), String(got.key)], [["10.0.0.1:6443"], "CA", "PEM", "PEM"]);
  assert.deepEqual([got.serverName, got.namespace, got.token], ["kubernetes", "shop", undefined]);
});

test("tokens", async (t) => {
  const dir = directory(t);
  assert.equal(await load(kubeconfig({ user: { token: "t" } })).token?.(), "t");
  writeFileSync(join(dir, "token"), "from-file\n");
  assert.equal(await load(kubeconfig({ user: { tokenFile: join(dir, "token") } })).token?.(), "from-file");
});

test("several files of which the first counts", (t) => {
  const dir = directory(t);
  const { users: _, ...first } = kubeconfig();
  writeFileSync(join(dir, "1"), JSON.stringify(first));
  writeFileSync(join(dir, "2"), JSON.stringify(kubeconfig({ cluster: { server: "https://second:1" } })));
  environment(t, { KUBECONFIG: `${dir}/1:${dir}/none:${dir}/2` });
  assert.deepEqual(load(undefined).addresses, ["10.0.0.1:6443"]);
});

for (const [section, field, value] of [
  ["cluster", "insecure-skip-tls-verify", true], ["cluster", "proxy-url", "http://proxy"], ["user", "exec", { command: "aws" }], ["user", "auth-provider", { name: "gcp" }],
  ["user", "username", "admin"], ["user", "password", "secret"], ["user", "as", "admin"], ["user", "as-groups", ["g"]],
] as const) {
  test(`${field} is refused by name`, () => {
    assert.throws(() => load(kubeconfig({ [section]: { [field]: value } })), (err) => err instanceof ConfigError && err.message.includes(`${field} is not supported`) && !err.message.includes("secret"));
  });
}

test("servers that are refused", () => {
  for (const server of ["http://a:1", "https://a:1/path", "a:1", "https://u:p@a:1", "https://a:x", ""]) {
    assert.throws(() => load(kubeconfig({ cluster: { server } })), (err) => err instanceof ConfigError && err.message.includes("server"), server);
  }
});

test("what is missing is named", (t) => {
  const dir = directory(t);
  assert.throws(() => load(kubeconfig(), "x"), /no 'x' in contexts/);
  assert.throws(() => load(kubeconfig({ user: { "client-key-data": "aaaa" } })), /belong together/);
  assert.throws(() => load(kubeconfig({ user: { "client-key-data": "?" } })), /client-key-data is not base64/);
  assert.throws(() => load(join(dir, "none")), /no such file/);
  writeFileSync(join(dir, "bad"), "users: [{token: secret");
  assert.throws(() => load(join(dir, "bad")), (err) => err instanceof ConfigError && err.message.includes("not YAML") && !err.message.includes("secret"));
});

test("connect refuses wrong arguments", () => {
  assert.throws(() => connect({ addresses: "a:1", token: "t", insecure: true }), /needs TLS/);
  assert.throws(() => connect({ addresses: "a" }), /not HOST:PORT/);
  assert.throws(() => connect({ addresses: "a:1", cert: Buffer.from("x") }), /belong together/);
  assert.throws(() => connect({ addresses: [] }), /no addresses/);
});

test("a pod finds its service account", (t) => {
  const dir = directory(t);
  for (const name of ["token", "ca.crt", "namespace"]) writeFileSync(join(dir, name), name);
  environment(t, { KUBERNETES_SERVICE_HOST: "fd00::1", KUBERNETES_SERVICE_PORT: "6443" });
  const got = inCluster(dir);
  assert.deepEqual([got?.addresses, String(got?.ca), got?.token?.(), got?.namespace], [["[fd00::1]:6443"], "ca.crt", "token", "namespace"]);
});
