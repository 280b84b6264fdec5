// Runs a command in a pod, prints its log, and fetches a page through a forwarded port:
// node shell.js KUBECONFIG NAMESPACE POD PORT COMMAND...
import { connect } from "@keelson/client";

const [kubeconfig, namespace = "", name = "", port, ...command] = process.argv.slice(2);
const client = connect({ kubeconfig });
const pod = { namespace, name };
try {
  const done = await client.run(pod, command);
  console.log("exit code", done.exitCode);
  process.stdout.write(done.stdout);
  for await (const line of client.logs(pod, { tailLines: 5 })) process.stdout.write(line);
  const forward = await client.portForward(pod, Number(port));
  const page = await fetch(`http://127.0.0.1:${forward.address.port}/`, { headers: { connection: "close" } });
  console.log(page.status, (await page.text()).length, "characters");
  await forward.close();
} finally {
  client.close();
}
