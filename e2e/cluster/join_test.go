package cluster_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// machine is a second computer: a network namespace on the cluster's link.
type machine struct{ netns, home, stdin string }

// newMachine plugs a machine into the link that the address's subnet is on.
func newMachine(t *testing.T, name string, addr netip.Prefix) machine {
	t.Helper()
	gateway := addr.Masked().Addr().Next()
	var link string
	for line := range strings.Lines(run1(t, "ip", "-br", "-4", "addr")) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], gateway.String()+"/") {
			link = f[0]
		}
	}
	if link == "" {
		t.Fatalf("no link of this host has the address %s", gateway)
	}
	m := machine{netns: "keelson-e2e-" + name, home: filepath.Join(t.TempDir(), "home")}
	veth := "kse2e" + name
	run1(t, "ip", "netns", "add", m.netns)
	t.Cleanup(func() { run1(t, "ip", "netns", "delete", m.netns) })
	run1(t, "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", m.netns)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", veth).Run() })
	run1(t, "ip", "link", "set", veth, "master", link, "up")
	run1(t, "ip", "-n", m.netns, "addr", "add", addr.String(), "dev", "eth0")
	run1(t, "ip", "-n", m.netns, "link", "set", "lo", "up")
	run1(t, "ip", "-n", m.netns, "link", "set", "eth0", "up")
	run1(t, "ip", "-n", m.netns, "route", "add", "default", "via", gateway.String())
	return m
}

// keel runs keel there: same files and cgroups, its own network.
func (m machine) keel(args ...string) (string, error) {
	cmd := shared.command("keel", append(args, "--home", m.home)...)
	cmd.Path, cmd.Args = "/usr/bin/nsenter", append([]string{"nsenter", "--net=/run/netns/" + m.netns}, cmd.Args...)
	cmd.Args[2] = filepath.Join(shared.bin, "keel")
	cmd.Stdin = strings.NewReader(m.stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// run1 runs a program of the host.
func run1(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestJoin: a second machine becomes a node by one command, runs pods that the
// rest of the cluster reaches and uses, and leaves without a trace.
func TestJoin(t *testing.T) {
	ns := namespace(t)
	nodes := strings.Fields(kubectl(t, "get", "nodes", "-o", `jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}`))
	first := netip.MustParseAddr(nodes[0]).As4()
	first[3] = 200
	m := newMachine(t, "join", netip.PrefixFrom(netip.AddrFrom4(first), 24))

	fields := strings.Fields(must(t, "keel", "node", "token", "--home", shared.home))
	if len(fields) < 3 || strings.Join(fields[:3], " ") != "keel node join" {
		t.Fatalf("`keel node token` printed %q, want a command", fields)
	}
	// The token comes by standard input: keel node join … <<'END' TOKEN END.
	here := slices.Index(fields, "<<'END'")
	if here < 0 || len(fields) != here+3 {
		t.Fatalf("`keel node token` printed %q, want the token as standard input", fields)
	}
	m.stdin = fields[here+1]
	if slices.Contains(fields[:here], m.stdin) {
		t.Errorf("the token stands in the command line: %q", fields)
	}
	join := append(slices.Clone(fields[1:here]), "--name", "joiner")

	wrong := append([]string{}, join...)
	for i := range wrong {
		if strings.HasPrefix(wrong[i], "sha256:") {
			wrong[i] = "sha256:" + strings.Repeat("0", 64)
		}
	}
	if out, err := m.keel(wrong...); err == nil || !strings.Contains(out, "--ca-hash") {
		t.Errorf("a wrong --ca-hash: %v, %s", err, out)
	}
	if _, err := os.Stat(m.home); err == nil {
		t.Errorf("a refused join left %s behind", m.home)
	}

	if out, err := m.keel(join...); err != nil {
		t.Fatalf("keel node join: %v\n%s", err, out)
	}
	left := false
	leave := func() {
		if left {
			return
		}
		left = true
		if out, err := m.keel("delete"); err != nil {
			t.Errorf("keel delete: %v\n%s", err, out)
		}
		_, _ = try("kubectl", "delete", "node", "joiner")
	}
	t.Cleanup(leave)
	kubectl(t, "wait", "--for=condition=Ready", "node/joiner", "--timeout=60s")
	if out, err := m.keel("image", "load", filepath.Join(shared.images, "busybox.tar")); err != nil {
		t.Fatalf("keel image load: %v\n%s", err, out)
	}
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: there, namespace: %[1]s, labels: {app: there}}
spec:
  nodeName: joiner
  containers:
  - {name: c, image: keelson.dev/demo/busybox:1, command: [sh, -c, "busybox mkdir /www && echo from the joiner >/www/index.html && busybox httpd -f -p 80 -h /www"]}
---
apiVersion: v1
kind: Service
metadata: {name: there, namespace: %[1]s}
spec: {selector: {app: there}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: here, namespace: %[1]s}
spec:
  nodeName: node-0
  containers: [{name: c, image: keelson.dev/demo/busybox:1, command: [sleep, "1000"]}]
`, ns))
	kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
	eventually(t, time.Minute, "the Service of a pod on the joined machine", func() error {
		out, err := try("kubectl", "-n", ns, "exec", "here", "--", "wget", "-qO-", "http://there."+ns+".svc.cluster.local")
		if err == nil && out != "from the joiner\n" {
			err = fmt.Errorf("answered %q", out)
		}
		return err
	})
	// It follows Services by watches of its own.
	eventually(t, time.Minute, "DNS on the joined machine", func() error {
		out, err := try("kubectl", "-n", ns, "exec", "there", "--", "busybox", "nslookup", "there."+ns+".svc.cluster.local")
		if err == nil && !strings.Contains(out, "10.96.") {
			err = fmt.Errorf("it says %s", out)
		}
		return err
	})
	kubectl(t, "-n", ns, "delete", "pod", "there", "--grace-period=1")

	leave()
	if _, err := os.Stat(m.home); err == nil {
		t.Errorf("`keel delete` left %s behind", m.home)
	}
	if out := run1(t, "nsenter", "--net=/run/netns/"+m.netns, "nft", "list", "tables"); strings.Contains(out, "keelson") {
		t.Errorf("`keel delete` left rules behind: %s", out)
	}
	if out := run1(t, "ip", "-n", m.netns, "-br", "link"); strings.Count(out, "\n") != 2 {
		t.Errorf("`keel delete` left links behind, want lo and eth0:\n%s", out)
	}
	if out := run1(t, "ip", "-n", m.netns, "route"); strings.Count(out, "\n") != 2 {
		t.Errorf("`keel delete` left routes behind, want the default and the link's:\n%s", out)
	}
}
