package cluster_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// machine stands for a second computer: it is a network namespace on the cluster's link.
type machine struct{ netns, home, stdin string }

// newMachine connects a machine to the link that has the address's subnet.
func newMachine(t *testing.T, name string, addr netip.Prefix) machine {
	t.Helper()
	gateway := addr.Masked().Addr().Next()
	var link string
	for line := range strings.Lines(onHost(t, "ip", "-br", "-4", "addr")) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], gateway.String()+"/") {
			link = f[0]
		}
	}
	if link == "" {
		t.Fatalf("no link of this host has the address %s", gateway)
	}
	m := machine{netns: "keelson-e2e-" + name, home: filepath.Join(t.TempDir(), "home")}
	veth := "kse2e" + name
	onHost(t, "ip", "netns", "add", m.netns)
	t.Cleanup(func() { onHost(t, "ip", "netns", "delete", m.netns) })
	onHost(t, "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", m.netns)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", veth).Run() })
	onHost(t, "ip", "link", "set", veth, "master", link, "up")
	onHost(t, "ip", "-n", m.netns, "addr", "add", addr.String(), "dev", "eth0")
	onHost(t, "ip", "-n", m.netns, "link", "set", "lo", "up")
	onHost(t, "ip", "-n", m.netns, "link", "set", "eth0", "up")
	onHost(t, "ip", "-n", m.netns, "route", "add", "default", "via", gateway.String())
	return m
}

// keel runs keel on the machine: it shares files and cgroups with the host, not the network.
func (m machine) keel(args ...string) (string, error) {
	cmd := shared.Command(context.Background(), "keel", append(args, "--home", m.home)...)
	cmd.Path, cmd.Args = "/usr/bin/nsenter", append([]string{"nsenter", "--net=/run/netns/" + m.netns}, cmd.Args...)
	cmd.Stdin = strings.NewReader(m.stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// onHost runs a program of the host that has to succeed.
func onHost(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestJoin: a second machine becomes a node by one command, runs pods that the rest of
// the cluster reaches, and leaves nothing behind when its node is deleted.
func TestJoin(t *testing.T) {
	ns := namespace(t)
	nodes := strings.Fields(shared.Kubectl(t, "get", "nodes", "-o", `jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}`))
	first := netip.MustParseAddr(nodes[0]).As4()
	first[3] = 200
	m := newMachine(t, "join", netip.PrefixFrom(netip.AddrFrom4(first), 24))

	fields := strings.Fields(shared.Must(t, "keel", "node", "token", "--home", shared.Home))
	if len(fields) < 3 || strings.Join(fields[:3], " ") != "keel node join" {
		t.Fatalf("`keel node token` printed %q, want a command", fields)
	}
	// The token is passed on standard input: keel node join … <<'END' TOKEN END.
	here := slices.Index(fields, "<<'END'")
	if here < 0 || len(fields) != here+3 {
		t.Fatalf("`keel node token` printed %q, want the token as standard input", fields)
	}
	m.stdin = fields[here+1]
	if slices.Contains(fields[:here], m.stdin) {
		t.Errorf("the token is part of the command line: %q", fields)
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
	leave := sync.OnceFunc(func() {
		if out, err := m.keel("delete"); err != nil {
			t.Errorf("keel delete: %v\n%s", err, out)
		}
		_, _ = shared.Run(context.Background(), "kubectl", "delete", "node", "joiner")
	})
	t.Cleanup(leave)
	shared.Kubectl(t, "wait", "--for=condition=Ready", "node/joiner", "--timeout=60s")
	if out, err := m.keel("image", "load", cluster.Image("busybox")); err != nil {
		t.Fatalf("keel image load: %v\n%s", err, out)
	}
	shared.Apply(t, fmt.Sprintf(`
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
	shared.Kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
	wait.For(t, time.Minute, "the Service of a pod on the joined machine answers", func(ctx context.Context) error {
		out, err := shared.Run(ctx, "kubectl", "-n", ns, "exec", "here", "--", "wget", "-qO-", "http://there."+ns+".svc.cluster.local")
		if err == nil && out != "from the joiner\n" {
			err = fmt.Errorf("answered %q", out)
		}
		return err
	})
	// The machine answers DNS itself, from watches of its own.
	shared.Shows(t, time.Minute, "10.96.", "-n", ns, "exec", "there", "--", "busybox", "nslookup", "there."+ns+".svc.cluster.local")
	shared.Kubectl(t, "-n", ns, "delete", "pod", "there", "--grace-period=1")

	leave()
	if _, err := os.Stat(m.home); err == nil {
		t.Errorf("`keel delete` left %s behind", m.home)
	}
	if out := onHost(t, "nsenter", "--net=/run/netns/"+m.netns, "nft", "list", "tables"); strings.Contains(out, "keelson") {
		t.Errorf("`keel delete` left rules behind: %s", out)
	}
	if out := onHost(t, "ip", "-n", m.netns, "-br", "link"); strings.Count(out, "\n") != 2 {
		t.Errorf("`keel delete` left links behind, want lo and eth0:\n%s", out)
	}
	if out := onHost(t, "ip", "-n", m.netns, "route"); strings.Count(out, "\n") != 2 {
		t.Errorf("`keel delete` left routes behind, want the default and the link's:\n%s", out)
	}
}
