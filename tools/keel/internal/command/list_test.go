package command

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.dev/tools/keel/internal/cluster"
)

// home creates the directory of a cluster that is not running.
func home(t *testing.T, id string, change func(*cluster.Cluster)) *cluster.Cluster {
	t.Helper()
	c := &cluster.Cluster{Home: t.TempDir(), ID: id, HTTPSPort: 6443, GRPCPort: 6444}
	if change != nil {
		change(c)
	}
	if err := os.MkdirAll(c.Path("run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLook(t *testing.T) {
	ha := home(t, "00000a", func(c *cluster.Cluster) {
		c.Members = []cluster.Member{{Name: "apiserver-0"}, {Name: "apiserver-1"}, {Name: "apiserver-2"}}
		c.Nodes, c.Simulated = []cluster.Node{{Name: "node-0"}}, 7
	})
	alone := home(t, "00000b", nil)
	joined := home(t, "00000c", func(c *cluster.Cluster) {
		c.Joined = &cluster.Joined{GRPC: "10.0.0.1:6444"}
		c.Nodes = []cluster.Node{{Name: "far"}}
	})
	broken := home(t, "00000d", nil)
	if err := os.WriteFile(broken.Path("cluster.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := filepath.Join(t.TempDir(), "gone")
	for _, row := range []struct {
		entry  cluster.Entry
		want   listed
		reason string
	}{
		{cluster.Entry{ID: ha.ID, Home: ha.Home}, listed{State: stopped, APIServers: 3, Nodes: 1, SimulatedNodes: 7, Address: "127.0.0.1:6443"}, ""},
		{cluster.Entry{ID: alone.ID, Home: alone.Home}, listed{State: stopped, APIServers: 1, Address: "127.0.0.1:6443"}, ""},
		{cluster.Entry{ID: joined.ID, Home: joined.Home}, listed{State: stopped, Nodes: 1, Address: "10.0.0.1:6444"}, ""},
		{cluster.Entry{ID: "00000e", Home: ha.Home}, listed{State: leftOver}, "another cluster, 00000a; `keel delete --id 00000e`"},
		{cluster.Entry{ID: "00000f", Home: gone}, listed{State: leftOver}, "its directory is gone; `keel delete --id 00000f`"},
		{cluster.Entry{ID: "000010", Home: t.TempDir()}, listed{State: leftOver}, "no cluster any more"},
		{cluster.Entry{ID: broken.ID, Home: broken.Home}, listed{State: unknown}, "does not describe a cluster"},
	} {
		got := look(t.Context(), row.entry)
		reason := got.Reason
		got.Reason = ""
		row.want.ID, row.want.Home = row.entry.ID, row.entry.Home
		if got != row.want || !strings.Contains(reason, row.reason) || (reason == "") != (row.reason == "") {
			t.Errorf("%v, %q; want %v, %q", got, reason, row.want, row.reason)
		}
	}
}

func TestList(t *testing.T) {
	c := home(t, "00000a", func(c *cluster.Cluster) { c.Simulated = 2 })
	var out, errs bytes.Buffer
	e := &env{out: &out, err: &errs}
	entries := []cluster.Entry{{ID: c.ID, Home: c.Home}}
	if err := e.showClusters(t.Context(), entries, "json"); err != nil {
		t.Fatal(err)
	}
	var got struct{ Clusters []listed }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got.Clusters) != 1 || got.Clusters[0].SimulatedNodes != 2 {
		t.Errorf("%v in %s", err, out.String())
	}
	out.Reset()
	if err := e.showClusters(t.Context(), entries, ""); err != nil || !strings.Contains(out.String(), "down") || !strings.Contains(out.String(), "0+2 simulated") {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	if err := e.showClusters(t.Context(), nil, ""); err != nil || out.Len() > 0 || !strings.Contains(errs.String(), "no clusters") {
		t.Errorf("%v: %s%s", err, out.String(), errs.String())
	}
	if code := Run(t.Context(), []string{"list", "-o", "yaml"}, &out, &errs); code != 2 || !strings.Contains(errs.String(), "the only output format is json") {
		t.Errorf("exit %d, %s", code, errs.String())
	}
}
