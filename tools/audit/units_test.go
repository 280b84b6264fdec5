package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const units = "../../deploy/systemd"

// systemd must accept the units as they are, without a warning.
func TestUnits(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("this test needs systemd-analyze (apt-get install systemd): ", err)
	}
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(units, "keelson*.*"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		name := filepath.Base(file)
		if !strings.HasSuffix(name, ".service") && !strings.HasSuffix(name, ".target") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// The programs and their settings are installed elsewhere.
		text := regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAllString(string(data), "ExecStart=/bin/true")
		text = regexp.MustCompile(`(?m)^EnvironmentFile=`).ReplaceAllString(text, "EnvironmentFile=-")
		// Units of other packages.
		text = strings.ReplaceAll(text, " containerd.service", "")
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, path)
	}
	if len(names) != 6 {
		t.Fatalf("units: %v", names)
	}
	cmd := exec.CommandContext(t.Context(), verify, append([]string{"verify", "--man=no", "--recursive-errors=no"}, names...)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "keelson") {
			t.Error(strings.TrimSpace(line))
		}
	}
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// What each unit must have: a service that dies or hangs is started again, the node's
// containers outlive it, and the others have no rights that they do not need.
func TestUnitsHaveWhatTheyNeed(t *testing.T) {
	all := []string{"Type=notify", "WatchdogSec=30", "Restart=always", "StartLimitIntervalSec=0", "NoNewPrivileges=yes", "LockPersonality=yes", "SystemCallArchitectures=native", "WantedBy=keelson.target"}
	confined := []string{"User=keelson", "ProtectSystem=strict", "ProtectHome=yes", "PrivateDevices=yes", "PrivateTmp=yes", "RestrictNamespaces=yes", "MemoryDenyWriteExecute=yes", "SystemCallFilter=@system-service"}
	for service, want := range map[string][]string{
		"apiserver":          append(slices.Clone(confined), "CapabilityBoundingSet="),
		"scheduler":          append(slices.Clone(confined), "CapabilityBoundingSet="),
		"controller-manager": append(slices.Clone(confined), "CapabilityBoundingSet="),
		"cloud-controller":   append(slices.Clone(confined), "CapabilityBoundingSet=CAP_NET_ADMIN"),
		"node":               {"KillMode=process", "Delegate=yes"},
	} {
		data, err := os.ReadFile(filepath.Join(units, "keelson-"+service+".service"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(data), "\n")
		for _, line := range append(slices.Clone(all), want...) {
			if !slices.Contains(lines, line) {
				t.Errorf("keelson-%s.service has no %s", service, line)
			}
		}
		env, err := os.ReadFile(filepath.Join(units, service+".env"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(env), "\nARGS=--identity ") {
			t.Errorf("%s.env sets no ARGS", service)
		}
	}
}
