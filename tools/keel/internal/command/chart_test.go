package command

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	memberv1 "keelson.dev/proto/keelson/member/v1"

	"keelson.dev/tools/keel/internal/chart"
)

func chartCertificates() *certificateOptions {
	return &certificateOptions{
		Name: "a", Hosts: []string{"a.ns.svc", "*.a-members.ns.svc"}, Server: "https://a.ns.svc:6443", Outside: "https://a.example.com:443",
		Services: "10.96.0.0/16", Domain: "cluster.local", Simulated: true,
		Users: []chartUser{{Name: "viewer", ClusterRole: "view"}}, Nodes: []string{"a-node-0"},
	}
}

// The certificates are for the names by which clients and members reach the apiservers, each
// Secret has what its pod needs and no more, and a second call changes nothing.
func TestChartCertificates(t *testing.T) {
	dir, o := t.TempDir(), chartCertificates()
	if err := o.write(dir); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"authority":          "ca.crt ca.key peer-authority.ca.crt peer-authority.ca.key sa.key tokens.a-node-0",
		"apiserver":          "ca.crt peer.ca.crt peer.tls.crt peer.tls.key sa.key tls.crt tls.key",
		"scheduler":          "ca.crt tls.crt tls.key",
		"controller-manager": "ca.crt ca.key sa.key tls.crt tls.key",
		"cloud-controller":   "ca.crt tls.crt tls.key",
		"admin":              "ca.crt kubeconfig tls.crt tls.key tokens.a-node-0",
		"kubeconfig":         "config outside",
		"simulator":          "ca.crt tls.crt tls.key",
		"nodes":              "a-node-0 ca.crt",
		"kubeconfig-viewer":  "ca.crt config outside tls.crt tls.key",
	}
	first := map[string]map[string][]byte{}
	for _, p := range o.parts() {
		data, err := p.read(dir)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for k := range data {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		if got := strings.Join(keys, " "); got != want[p.secret] {
			t.Errorf("%s has %s, want %s", p.secret, got, want[p.secret])
		}
		delete(want, p.secret)
		first[p.secret] = data
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	block, _ := pem.Decode(first["apiserver"]["tls.crt"])
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"a.ns.svc", "a-2.a-members.ns.svc", "a.example.com", "localhost", "10.96.0.1"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	config, err := clientcmd.Load(first["kubeconfig-viewer"]["outside"])
	if err != nil {
		t.Fatal(err)
	}
	if config.Clusters["a"].Server != o.Outside || config.AuthInfos["keelson:viewer"] == nil || config.Contexts["a"].AuthInfo != "keelson:viewer" {
		t.Errorf("the viewer's kubeconfig: %+v", config)
	}

	// What a later call gets is what the Secrets contain.
	again := t.TempDir()
	for _, p := range o.parts() {
		for k, data := range first[p.secret] {
			path := filepath.Join(again, p.dir, k)
			for _, sub := range []string{"peer-authority", "peer", "tokens"} {
				if name, ok := strings.CutPrefix(k, sub+"."); ok {
					path = filepath.Join(again, p.dir, sub, name)
				}
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := o.write(again); err != nil {
		t.Fatal(err)
	}
	for _, p := range o.parts() {
		data, err := p.read(again)
		if err != nil {
			t.Fatal(err)
		}
		for k := range data {
			if string(data[k]) != string(first[p.secret][k]) {
				t.Errorf("%s: %s has changed", p.secret, k)
			}
		}
	}
}

func TestChartMemberFlags(t *testing.T) {
	m := &chartMember{name: "a-1", host: "a-1.a-members", identity: "/pki", data: "/data", apiservers: []string{"a:6444"}}
	for origin, want := range map[chart.Origin]string{
		chart.Founded: "--name=a-1 --data-dir=/data --identity=/pki --members=a-1=a-1.a-members:6445 --etcd-members=a-1=a-1.a-members:2380",
		chart.Joined:  "--name=a-1 --data-dir=/data --identity=/pki --peer-host=a-1.a-members --join=a:6444",
	} {
		if got := strings.Join(m.apiserverFlags(origin), " "); got != want {
			t.Errorf("%s: %s, want %s", origin, got, want)
		}
	}
}

func TestChartSettleCompares(t *testing.T) {
	voter := memberv1.Role_ROLE_VOTER
	o := &settleOptions{Name: "a", Members: 3}
	gone, missing := o.compare([]*memberv1.Member{
		{Name: "a-0", Etcd: voter, Raft: voter, Healthy: true},
		{Name: "a-1", Etcd: memberv1.Role_ROLE_LEARNER, Raft: voter, Healthy: true},
		{Name: "a-3", Etcd: voter, Raft: voter},
		{Name: "a-4", Etcd: voter, Raft: voter, Healthy: true},
	})
	if !slices.Equal(gone, []string{"a-3"}) {
		t.Errorf("gone: %v", gone)
	}
	if len(missing) != 3 || !strings.Contains(missing[0], "a-1") || missing[1] != "a-2 (has not joined)" || missing[2] != "a-4 (has not left)" {
		t.Errorf("missing: %q", missing)
	}
}

func TestChartSnapshotsArePruned(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"20260101T000000Z.snapshot", "20260102T000000Z.snapshot", "20260103T000000Z.snapshot", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := &env{out: t.Output(), err: t.Output()}
	if err := e.pruneSnapshots(dir, 2); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 || entries[0].Name() != "20260102T000000Z.snapshot" {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestChartFaultFindsItsTarget(t *testing.T) {
	proc := t.TempDir()
	for pid, line := range map[string]string{"1": "/pause\x00", "7": "/apiserver\x00--name=a\x00", "self": "/apiserver\x00", "9": "/keel\x00/apiserver\x00"} {
		if err := os.MkdirAll(filepath.Join(proc, pid), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "cmdline"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pid, err := pidOf(proc, "/apiserver"); pid != 7 || err != nil {
		t.Errorf("%d, %v", pid, err)
	}
	if _, err := pidOf(proc, "/scheduler"); err == nil {
		t.Error("found a process that does not exist")
	}
}
