package machine

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestClaim checks that a node's directory has one holder at a time and keeps its contents.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	first, err := Claim(dir, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(first.dir, "data", "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir, "node-1"); err == nil || !strings.Contains(err.Error(), "another container") {
		t.Errorf("a second holder: %v", err)
	}
	other, err := Claim(dir, "node-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Close(), other.Close()); err != nil {
		t.Fatal(err)
	}
	again, err := Claim(dir, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := os.Stat(filepath.Join(again.dir, "data", "kept")); err != nil {
		t.Errorf("node-1 lost its contents: %v", err)
	}
	if _, err := Claim(filepath.Join(dir, "node-1", "lock"), "node-0"); err == nil {
		t.Error("Claim created a directory below a file")
	}
}

// A range that overlaps a network of the machine, or another range, is rejected with an error
// that names the flag to change.
func TestRanges(t *testing.T) {
	own := []netip.Prefix{netip.MustParsePrefix("172.18.0.5/16")}
	for _, c := range []struct{ pods, services, want string }{
		{"10.244.0.0/16", "10.96.0.0/16", ""},
		{"172.16.0.0/12", "10.96.0.0/16", "--cluster-cidr 172.16.0.0/12 overlaps the network 172.18.0.0/16"},
		{"10.244.0.0/16", "172.18.7.0/24", "--service-cluster-ip-range 172.18.7.0/24 overlaps the network"},
		{"10.0.0.0/8", "10.96.0.0/16", "overlaps --cluster-cidr"},
		{"10.244.0.0", "10.96.0.0/16", "--cluster-cidr"},
	} {
		err := checkRanges(map[string]string{"--cluster-cidr": c.pods, "--service-cluster-ip-range": c.services}, own)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s and %s: %v, want %q", c.pods, c.services, err, c.want)
		}
	}
}

func TestHierarchies(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"v2", "0::/system.slice/docker-1234.scope\n", ""},
		{"v1", "5:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n", "memory[memory] cpu,cpuacct[cpu,cpuacct cpu cpuacct] name=systemd[systemd]"},
		{"hybrid", "3:pids:/a:b\n0::/\n", "pids[pids]"},
		{"torn", "nonsense\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, h := range hierarchiesOf(c.text) {
				got = append(got, h.options+"["+strings.Join(h.names, " ")+"]")
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"v2", map[string]string{"cpu.max": "150000 100000", "memory.max": "2147483648"}, []string{"cpu=1500m", "memory=2147483648"}},
		{"v2 without limits", map[string]string{"cpu.max": "max 100000", "memory.max": "max"}, nil},
		{"v1", map[string]string{"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": "1073741824"}, []string{"cpu=500m", "memory=1073741824"}},
		{"v1 without limits", map[string]string{"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": "9223372036854771712"}, nil},
		{"no cgroups", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range c.files {
				path := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text+"\n"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if got := capacity(root); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestImages checks that archives are imported once, small ones first; that files that still
// grow wait; that changed files are imported again; that unreadable files are not tried again
// until they change; and that a restart does not import anything again.
func TestImages(t *testing.T) {
	dir, marks := t.TempDir(), t.TempDir()
	var imported []string
	bad := ""
	open := func() *Images {
		return &Images{Dir: dir, Marks: marks, Import: func(_ context.Context, file string) ([]string, error) {
			imported = append(imported, filepath.Base(file))
			if filepath.Base(file) == bad {
				return nil, errors.New("unexpected end of the archive")
			}
			return []string{"image"}, nil
		}}
	}
	age := 0
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		age++
		at := time.Unix(1_000_000+int64(age), 0)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(imported, want) {
			t.Errorf("%s: imported %q, want %q", what, imported, want)
		}
		imported = nil
	}
	images := open()
	write("a-large.tar", "large archive")
	write("b.tar", "small")
	write("notes.txt", "no archive")
	images.look(t.Context(), true)
	expect("at the start", "b.tar", "a-large.tar")
	images.look(t.Context(), false)
	expect("again")

	write("new.tar", "ha")
	images.look(t.Context(), false)
	write("new.tar", "half")
	images.look(t.Context(), false)
	expect("while it is being written")
	images.look(t.Context(), false)
	expect("once it is complete", "new.tar")

	bad = "bad.tar"
	write("bad.tar", "torn")
	for range 4 {
		images.look(t.Context(), false)
	}
	expect("an unreadable archive", "bad.tar")
	bad = ""
	write("bad.tar", "complete now")
	for range 2 {
		images.look(t.Context(), false)
	}
	expect("once it is readable", "bad.tar")

	open().look(t.Context(), true)
	expect("after a restart")
	write("b.tar", "another version")
	open().look(t.Context(), true)
	expect("a new version", "b.tar")
}

// TestReap checks that reap returns the child's exit code, and does not confuse the child with
// orphans that end before it.
func TestReap(t *testing.T) {
	// It runs in its own process, because wait4 would also reap the children of other tests.
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestReapChild$", "-test.v")
	cmd.Env = append(os.Environ(), "MACHINE_TEST_REAP=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "reap returned the expected codes") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestReapChild(t *testing.T) {
	if os.Getenv("MACHINE_TEST_REAP") == "" {
		return
	}
	for _, c := range []struct {
		script string
		want   int
	}{{"exit 7", 7}, {"kill -KILL $$", 128 + int(syscall.SIGKILL)}, {"exit 0", 0}} {
		other, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "exit 3"}, &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		child, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "while kill -0 " + strconv.Itoa(other.Pid) + " 2>/dev/null; do :; done; " + c.script}, &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := reap(child.Pid); err != nil || code != c.want {
			t.Fatalf("%s: code %d, %v; want %d", c.script, code, err, c.want)
		}
	}
	t.Log("reap returned the expected codes")
}
