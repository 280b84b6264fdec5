// The npm package, and the examples.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

test("the package contains what it should", () => {
  const [pack] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: root, stdio: ["ignore", "pipe", "ignore"] }).toString());
  const files = new Set((pack.files as { path: string }[]).map((f) => f.path));
  for (const want of ["package.json", "README.md", "dist/index.js", "dist/index.d.ts", "dist/gen/schema.json", "dist/gen/core_v1.d.ts", "dist/gen/keelson/resource/v1/resource_pb.js"]) {
    assert.ok(files.has(want), want);
  }
  assert.deepEqual([...files].filter((f) => !f.startsWith("dist/") && !["package.json", "README.md"].includes(f)), []);
  assert.equal(pack.version, readFileSync(join(root, "../../VERSION"), "utf8").trim());
});

test("the examples are short", () => {
  for (const name of readdirSync(join(root, "examples"))) {
    assert.ok(readFileSync(join(root, "examples", name), "utf8").split("\n").length <= 60, name);
  }
});
