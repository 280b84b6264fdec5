// Prints every change of pods, for as long as it runs, whatever happens to the apiservers:
// node watch.js HOST:PORT,HOST:PORT PKI-DIRECTORY
import { connect, core_v1 } from "@keelson/client";

const [addresses, pki] = process.argv.slice(2);
const client = connect({ addresses, ca: `${pki}/ca.crt`, cert: `${pki}/tls.crt`, key: `${pki}/tls.key` });
const watch = client.resource(core_v1.Pod).watch({ bookmarks: true });
process.once("SIGINT", () => watch.close());
for await (const event of watch) {
  if (event.type === "BOOKMARK") {
    console.log("# up to date at", event.resourceVersion);
    continue;
  }
  const { metadata, status, spec } = event.object;
  console.log(event.type, `${metadata?.namespace}/${metadata?.name}`, status?.phase, spec?.nodeName ?? "");
}
client.close();
