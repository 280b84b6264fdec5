package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Files that other users can change are not trusted.
func TestTrust(t *testing.T) {
	at := t.TempDir()
	dir := func(mode os.FileMode, names ...string) string {
		t.Helper()
		path := filepath.Join(append([]string{at}, names...)...)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := func(to string, names ...string) string {
		t.Helper()
		path := filepath.Join(append([]string{at}, names...)...)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	foreign := func(path string) string {
		t.Helper()
		if err := os.Lchown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := filepath.Join(at, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good, open, sticky := dir(0o700, "good"), dir(0o777, "open"), dir(os.ModeSticky|0o777, "sticky")
	bobs := foreign(dir(0o755, "bobs"))
	for _, row := range []struct{ name, home, says string }{
		{"a directory of the caller's", good, ""},
		{"a directory that does not exist", filepath.Join(good, "new", "er"), ""},
		{"below a sticky directory", dir(0o700, "sticky", "own"), ""},
		{"below a link of the caller's", filepath.Join(link(good, "way"), "new"), ""},
		{"a link", link(good, "link"), "symbolic link"},
		{"a file", plain, "not a directory"},
		{"another user's directory", foreign(dir(0o700, "sticky", "bobs")), "belongs to user 12345"},
		{"a directory that its group may write to", dir(0o770, "group"), "chmod go-w"},
		{"below a directory that other users may write to", dir(0o700, "open", "own"), "other users may write to " + open},
		{"a new directory below one that others may write to", filepath.Join(open, "new"), "other users may write"},
		{"a new directory below another user's", filepath.Join(bobs, "new"), "belongs to user 12345"},
		{"through another user's link", filepath.Join(foreign(link(good, "sticky", "link")), "new"), "belongs to user 12345"},
		{"through a link to a directory that others may write to", filepath.Join(link(open, "detour"), "new"), "other users may write"},
		{"through a loop of links", filepath.Join(link(filepath.Join(at, "round"), "round"), "new"), "too many"},
	} {
		err := Trust(row.home)
		if (err == nil) != (row.says == "") || err != nil && (!strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), "--home")) {
			t.Errorf("%s: %v, want %q", row.name, err, row.says)
		}
		if row.says == "" || row.home == plain {
			continue
		}
		if _, err := Load(row.home); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("load %s: %v", row.name, err)
		}
		if _, err := Open(Options{Home: row.home}); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("open %s: %v", row.name, err)
		}
	}
	_ = sticky
}

// A directory with other files is not accepted as a home.
func TestFilledDirectoriesAreRefused(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(LockFile(home), nil, 0o600); err != nil { // left by an interrupted up
		t.Fatal(err)
	}
	if err := Vacant(home); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(home, "README.md"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Home: home}); err == nil || !strings.Contains(err.Error(), "README.md") {
		t.Errorf("opened: %v", err)
	}
	for content, says := range map[string]string{"[]": "does not describe a cluster", "{}": "id of a cluster", `{"id":"../../etc"}`: "id of a cluster"} {
		if err := os.WriteFile(filepath.Join(home, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Home: home}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestEraseLeavesWhatIsNotKeels(t *testing.T) {
	home := t.TempDir()
	c := &Cluster{Home: home, ID: "abc123"}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pki/sa.key", "apiserver-0/etcd/x", "apiserver-12.lost-1700000000/x", "volumes/x", "mine/apiserver-0/x", "apiserver-0.bak", "up.lock", ".new-1"} {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := c.Erase()
	if err != nil || !slices.Equal(kept, []string{"apiserver-0.bak", "mine"}) {
		t.Fatalf("kept %v, %v", kept, err)
	}
	if _, err := os.Stat(filepath.Join(home, "mine/apiserver-0/x")); err != nil {
		t.Error(err)
	}
	for _, name := range kept {
		if err := os.RemoveAll(filepath.Join(home, name)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if kept, err := c.Erase(); err != nil || len(kept) > 0 {
			t.Fatal(kept, err)
		}
	}
	if _, err := os.Stat(home); err == nil {
		t.Error("the empty home still exists")
	}
}

// ownRegistry gives a test its own registry.
func ownRegistry(t *testing.T) {
	t.Helper()
	before := registry
	registry = filepath.Join(t.TempDir(), "keelson.d")
	t.Cleanup(func() { registry = before })
}

// A new cluster must not take the ports or the subnet of one that is down, which could not be
// started again otherwise.
func TestNewClustersAvoidPortsAndSubnetsOfOthers(t *testing.T) {
	ownRegistry(t)
	dir := t.TempDir()
	open := func(name string, port int) (*Cluster, error) {
		return Open(Options{Home: filepath.Join(dir, name), Nodes: 0, Port: port})
	}
	var wg sync.WaitGroup
	clusters := make([]*Cluster, 4)
	for i := range clusters {
		wg.Go(func() {
			c, err := open(strconv.Itoa(i), 0)
			if err != nil {
				t.Error(err)
				c = &Cluster{}
			}
			clusters[i] = c
		})
	}
	wg.Wait()
	ports, subnets := map[int]bool{}, map[int]bool{}
	for _, c := range clusters {
		ports[c.HTTPSPort], ports[c.GRPCPort], subnets[c.Subnet] = true, true, true
	}
	if len(ports) != 2*len(clusters) || len(subnets) != len(clusters) {
		t.Errorf("%d clusters have the ports %v and the networks %v", len(clusters), ports, subnets)
	}
	first := clusters[0]
	if _, err := open("more", first.GRPCPort); err == nil || !strings.Contains(err.Error(), first.Home) {
		t.Errorf("open with the port of another cluster: %v", err)
	}
	if st, err := os.Stat(filepath.Join(registry, registryLock)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("other users may hold the lock: %v, %v", st, err)
	}
	// A cluster keeps its own ports and subnet.
	if c, err := open("0", first.HTTPSPort); err != nil || c.Subnet != first.Subnet {
		t.Error(c, err)
	}
}

func TestRegistry(t *testing.T) {
	ownRegistry(t)
	if all, err := Registered(); err != nil || len(all) > 0 {
		t.Fatal(all, err)
	}
	for _, c := range []*Cluster{{ID: "abc123", Home: "/x"}, {ID: "def456", Home: "/y"}} {
		if err := c.Register(); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := Registered(); err != nil || !slices.Equal(all, []Entry{{"abc123", "/x"}, {"def456", "/y"}}) {
		t.Fatal(all, err)
	}
	id, err := chooseID("/z")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Cluster{ID: id, Home: "/other"}).Register(); err != nil {
		t.Fatal(err)
	}
	if again, err := chooseID("/z"); err != nil || again == id {
		t.Errorf("the id of another cluster was chosen again: %s, %v", again, err)
	}
	// The unfinished file of a keel that was killed while it wrote.
	if err := os.WriteFile(filepath.Join(registry, unfinished+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"abc123", "abc123", "def456", id} {
		if err := Unregister(id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(registry); err == nil {
		t.Error("the empty registry was kept because of an unfinished file")
	}
	// A process that waited for a lock which was removed with the registry must take a new one.
	for range 200 {
		var wg sync.WaitGroup
		for _, id := range []string{"abc123", "def456"} {
			wg.Go(func() {
				if err := (&Cluster{ID: id, Home: "/x"}).Register(); err != nil {
					t.Error(err)
				}
				if err := Unregister(id); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if _, err := os.Stat(registry); err == nil {
		t.Error("the empty registry still exists")
	}
}

// The ledgers of nodes' logs must survive the loss of the home, and end with the cluster's
// registration.
func TestLedgersOutliveTheHome(t *testing.T) {
	ownRegistry(t)
	c := &Cluster{ID: "abc123", Home: filepath.Join(t.TempDir(), "home"), Nodes: []Node{{Name: "node-0"}, {Name: "node-1"}}}
	old := c.Path("nodes", "node-1", "agent", ledger, "default_a_1")
	if err := errors.Join(c.Register(), os.MkdirAll(old, 0o755)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.KeepLedgers(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(old); err != nil {
		t.Errorf("the ledger of an older keel: %v", err)
	}
	added := filepath.Join(ledger, "default_b_2")
	if err := os.Symlink("/var/log/pods/default_b_2", filepath.Join(c.Path("nodes", "node-0", "agent"), added)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.Home); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(Records(c.ID, "node-0"), added)); err != nil {
		t.Errorf("the ledger was lost with the home: %v", err)
	}
	if all, err := Registered(); err != nil || !slices.Equal(all, []Entry{{c.ID, c.Home}}) {
		t.Errorf("registered are %v, %v", all, err)
	}
	if err := Unregister(c.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(registry); err == nil {
		t.Error("the empty registry still exists")
	}
}
