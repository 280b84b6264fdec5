package cni

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{Dir: filepath.Join(dir, "net.d"), DataDir: filepath.Join(dir, "data"), PodCIDR: netip.MustParsePrefix("10.244.3.0/24")}
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.MTU = 1400
	if err := Configure(cfg); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, fileName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		CNIVersion string
		Name       string
		Plugins    []struct {
			Type   string
			MTU    int
			IPMasq bool
			IPAM   struct {
				Type, DataDir string
				Ranges        [][]struct{ Subnet string }
			}
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.CNIVersion != "1.0.0" || got.Name != "keelson" || len(got.Plugins) != 1 {
		t.Fatalf("configuration: %s", b)
	}
	p := got.Plugins[0]
	if p.Type != "ptp" || p.MTU != 1400 || p.IPMasq || p.IPAM.Type != "host-local" || p.IPAM.DataDir != cfg.DataDir || p.IPAM.Ranges[0][0].Subnet != "10.244.3.0/24" {
		t.Errorf("plugin: %+v", p)
	}

	// An unchanged configuration is not written again: the runtime would reload it.
	before, _ := os.Stat(path)
	if err := Configure(cfg); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("an equal configuration was written again")
	}
	cfg.MTU = 1300
	if err := Configure(cfg); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(cfg.Dir)
	if len(entries) != 1 {
		t.Errorf("files left behind: %v", entries)
	}
	if changed, _ := os.ReadFile(path); string(changed) == string(b) {
		t.Error("the change was not written")
	}
}

func TestConfigureRefuses(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*Config){
		"no range":     func(c *Config) { c.PodCIDR = netip.Prefix{} },
		"IPv6":         func(c *Config) { c.PodCIDR = netip.MustParsePrefix("fd00::/64") },
		"no directory": func(c *Config) { c.Dir = "" },
		"a file":       func(c *Config) { c.Dir = "/dev/null/net.d" },
	} {
		cfg := testConfig(t)
		edit(&cfg)
		if err := Configure(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestReclaim(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	if n, err := Reclaim(data, nil); n != 0 || err != nil {
		t.Fatalf("without a directory: %d, %v", n, err)
	}
	dir := filepath.Join(data, NetworkName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		"10.244.3.2": "alive\r\neth0", "10.244.3.3": "dead\r\neth0", "10.244.3.4": "", "last_reserved_ip.0": "10.244.3.4", "lock": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n, err := Reclaim(data, map[string]bool{"alive": true})
	if n != 2 || err != nil {
		t.Fatalf("freed %d, %v; want 2", n, err)
	}
	for file, want := range map[string]bool{"10.244.3.2": true, "10.244.3.3": false, "10.244.3.4": false, "last_reserved_ip.0": true, "lock": true} {
		if _, err := os.Stat(filepath.Join(dir, file)); (err == nil) != want {
			t.Errorf("%s: exists %v, want %v", file, err == nil, want)
		}
	}
}
