package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func write(t *testing.T, mode os.FileMode, content string, names ...string) string {
	t.Helper()
	path := filepath.Join(names...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// one checks that there is exactly one fault, and that it contains words.
func one(t *testing.T, faults []string, words ...string) {
	t.Helper()
	if len(faults) != 1 {
		t.Fatalf("%d faults, want one: %q", len(faults), faults)
	}
	for _, w := range words {
		if !strings.Contains(faults[0], w) {
			t.Errorf("%q does not contain %q", faults[0], w)
		}
	}
}

const entry = `{"id":"GO-1-1","aliases":["CVE-1"],"affected":[{"package":{"name":"example.com/a"},
 "ranges":[{"type":"SEMVER","events":[{"introduced":"0"},{"fixed":"1.2.3"}]}],
 "ecosystem_specific":{"imports":[{"path":"example.com/a/used"}]}}]}`

func TestDatabaseIsIndexedByModule(t *testing.T) {
	osv, out := t.TempDir(), t.TempDir()
	write(t, 0o644, entry, osv, "GO-1-1.json")
	write(t, 0o644, `{"id":"GO-1-2","withdrawn":"2026-01-01T00:00:00Z","affected":[{"package":{"name":"example.com/a"}}]}`, osv, "GO-1-2.json")
	if n, err := writeDatabase(osv, out, time.Unix(0, 0).UTC()); err != nil || n != 1 {
		t.Fatalf("%d entries, %v", n, err)
	}
	data, err := os.ReadFile(filepath.Join(out, "index", "modules.json"))
	if err != nil {
		t.Fatal(err)
	}
	if want := `[{"path":"example.com/a","vulns":[{"id":"GO-1-1","modified":"1970-01-01T00:00:00Z","fixed":"1.2.3"}]}]`; string(data) != want {
		t.Errorf("index %s, want %s", data, want)
	}
	if _, err := os.Stat(filepath.Join(out, "ID", "GO-1-1.json")); err != nil {
		t.Error(err)
	}
	if _, err := writeDatabase(t.TempDir(), t.TempDir(), time.Now()); err == nil {
		t.Error("an empty directory was accepted as a database")
	}
}

// govulncheck writes a program that prints the same output for each scan level, and returns its
// path.
func govulncheck(t *testing.T, levels map[string]string) string {
	t.Helper()
	var script strings.Builder
	script.WriteString("#!/bin/sh\necho '{\"config\":{}}'\ncase \"$*\" in\n")
	for level, out := range levels {
		fmt.Fprintf(&script, "*'-scan %s'*) echo '%s' ;;\n", level, out)
	}
	script.WriteString("esac\n")
	return write(t, 0o755, script.String(), t.TempDir(), "govulncheck")
}

// aModule creates a module of one package that links only the standard library, and returns the
// root of its repository.
func aModule(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, 0o644, "module example.com/m\n\ngo 1.26\n", dir, "proto", "go.mod")
	write(t, 0o644, "package m\n\nimport _ \"net/url\"\n", dir, "proto", "m.go")
	return dir
}

func TestVulnerabilities(t *testing.T) {
	osv, database := t.TempDir(), t.TempDir()
	write(t, 0o644, strings.ReplaceAll(entry, "example.com/a/used", "net/url"), osv, "GO-1-1.json")
	write(t, 0o644, strings.ReplaceAll(strings.ReplaceAll(entry, "GO-1-1", "GO-1-2"), "example.com/a/used", "example.com/unused"), osv, "GO-1-2.json")
	if _, err := writeDatabase(osv, database, time.Now()); err != nil {
		t.Fatal(err)
	}
	found := func(id, module, function string) string {
		return fmt.Sprintf(`{"finding":{"osv":%q,"fixed_version":"v1.2.3","trace":[{"module":%q,"version":"v1.0.0","function":%q}]}}`, id, module, function)
	}
	const other = "example.com/a"
	for name, c := range map[string]struct {
		levels   map[string]string
		accepted map[string]string
		faults   int
	}{
		"nothing":                 {levels: map[string]string{}},
		"called":                  {levels: map[string]string{"module": found("GO-1-1", other, ""), "symbol": found("GO-1-1", other, "F")}, faults: 1},
		"linked, but not called":  {levels: map[string]string{"module": found("GO-1-1", other, ""), "symbol": found("GO-1-1", other, "")}},
		"not linked":              {levels: map[string]string{"module": found("GO-1-2", other, ""), "symbol": found("GO-1-2", other, "F")}},
		"in the standard library": {levels: map[string]string{"module": found("GO-1-1", "stdlib", "")}, faults: 1},
		"accepted":                {levels: map[string]string{"module": found("GO-1-1", "stdlib", "")}, accepted: map[string]string{"GO-1-1": "why"}},
		"another one is accepted": {levels: map[string]string{"module": found("GO-1-1", "stdlib", "")}, accepted: map[string]string{"GO-1-9": "why"}, faults: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &scanner{options: &options{root: aModule(t), govulncheck: govulncheck(t, c.levels)}, database: database, accepted: c.accepted, used: map[string]bool{}}
			if err := s.module(t.Context(), "proto"); err != nil {
				t.Fatal(err)
			}
			if len(s.faults) != c.faults {
				t.Errorf("%d faults, want %d: %q", len(s.faults), c.faults, s.faults)
			}
		})
	}
	t.Run("no govulncheck", func(t *testing.T) {
		s := &scanner{options: &options{root: aModule(t), govulncheck: "/bin/true"}, database: database, used: map[string]bool{}}
		if err := s.module(t.Context(), "proto"); err == nil {
			t.Error("a program without output was accepted as govulncheck")
		}
	})
}

func TestAcceptedAdvisoriesHaveReasons(t *testing.T) {
	for text, ok := range map[string]bool{"# x\n\nGO-1-1 because\n": true, "GO-1-1\n": false, "because GO-1-1\n": false} {
		if _, err := readAccepted(write(t, 0o644, text, t.TempDir(), "accepted")); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := readAccepted("../../scripts/vulnerabilities.txt"); err != nil {
		t.Error(err)
	}
}

func TestLicences(t *testing.T) {
	for name, text := range map[string]string{
		"Apache-2.0":   "                              Apache License\n                        Version 2.0, January 2004\n",
		"MIT":          "Permission is hereby granted, free of charge, to any\nperson obtaining a copy of this software",
		"BSD-2-Clause": "> Redistribution and use in source and binary forms, with or without\n> modification, are permitted provided",
		"BSD-3-Clause": "Redistribution and use in source and binary forms, with or without modification, are permitted …\nNeither the name of X",
		"MPL-2.0":      "Mozilla Public License, version 2.0\n… the GNU General Public License",
		"ISC":          "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted",
		"GPL":          "GNU GENERAL PUBLIC LICENSE\nVersion 3",
		"BUSL":         "Business Source License 1.1",
		"":             "All rights reserved.",
	} {
		if got := licenceOf(text); got != name {
			t.Errorf("%q is recognized as %q", text, got)
		}
	}
	good, foreign, none := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, 0o644, "Apache License, Version 2.0", good, "LICENSE")
	write(t, 0o644, "GNU Affero General Public License", good, "NOTICE.md") // names another project's licence
	write(t, 0o644, "Apache License, Version 2.0", foreign, "LICENSE")
	write(t, 0o644, "GNU Affero General Public License", foreign, "COPYING.lib")
	write(t, 0o644, "Apache License, Version 2.0", none, "README.md")
	faults, err := judgeLicences(map[string]string{"a": good, "b": foreign}, map[string]int{})
	if err != nil {
		t.Fatal(err)
	}
	one(t, faults, "b: licence GPL")
	if faults, err = judgeLicences(map[string]string{"a": good, "c": none}, map[string]int{}); err != nil {
		t.Fatal(err)
	}
	one(t, faults, "c: no known licence")
}

func TestSecretsThatOthersMayRead(t *testing.T) {
	for name, secret := range map[string]string{
		"a key":        "-----BEGIN EC PRIVATE KEY-----\n",
		"a token":      "abcdef.0123456789abcdef\n",
		"a kubeconfig": "users:\n- user:\n    client-key-data: eA==\n",
	} {
		dir := t.TempDir()
		write(t, 0o600, secret, dir, "kept")
		write(t, 0o644, "-----BEGIN CERTIFICATE-----\n", dir, "public")
		if found, faults, err := readableSecrets(dir); err != nil || found != 1 || len(faults) != 0 {
			t.Errorf("%s: %d secrets, %q, %v", name, found, faults, err)
		}
		write(t, 0o640, secret, dir, "shown")
		_, faults, err := readableSecrets(dir)
		if err != nil {
			t.Fatal(err)
		}
		one(t, faults, "shown", "0640")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, faults, err := readableSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	one(t, faults, "others may write")
}

func TestModesOfTrackedFiles(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v: %s", args[0], err, out)
		}
	}
	git("init", "-q")
	write(t, 0o755, "#!/bin/sh\n", dir, "script.sh")
	write(t, 0o644, "text\n", dir, "text")
	git("add", ".")
	count, faults, err := trackedModes(t.Context(), dir)
	if err != nil || count != 2 || len(faults) != 0 {
		t.Fatalf("%d files, %q, %v", count, faults, err)
	}
	write(t, 0o755, "text\n", dir, "text")
	git("add", ".")
	if _, faults, err = trackedModes(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	one(t, faults, "text has git mode 100755")
}

func TestProgramsAndImagesWithPrivileges(t *testing.T) {
	plain := write(t, 0o755, "", t.TempDir(), "program")
	info, err := os.Stat(plain)
	if err != nil {
		t.Fatal(err)
	}
	if faults := privileged(plain, info.Mode()); len(faults) != 0 {
		t.Errorf("%q", faults)
	}
	one(t, privileged(plain, info.Mode()|os.ModeSetuid), "setuid")

	image := func(h *tar.Header) string {
		t.Helper()
		var layer, archive bytes.Buffer
		w := tar.NewWriter(&layer)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		manifest, err := json.Marshal([]map[string]any{{"Layers": []string{"layer.tar"}}})
		if err != nil {
			t.Fatal(err)
		}
		w = tar.NewWriter(&archive)
		for name, data := range map[string][]byte{"layer.tar": layer.Bytes(), "manifest.json": manifest} {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return write(t, 0o644, archive.String(), t.TempDir(), "image.tar")
	}
	for words, h := range map[string]*tar.Header{
		"":                  {Name: "bin/a", Mode: 0o755},
		"setuid":            {Name: "bin/a", Mode: 0o4755},
		"written by others": {Name: "bin/a", Mode: 0o757},
		"file capabilities": {Name: "bin/a", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}},
	} {
		h.Typeflag = tar.TypeReg
		faults, err := imageModes(image(h))
		if err != nil {
			t.Fatal(err)
		}
		if words == "" && len(faults) == 0 {
			continue
		}
		one(t, faults, "/bin/a", words)
	}
	if _, err := imageModes(write(t, 0o644, "", t.TempDir(), "no.tar")); err == nil {
		t.Error("a file that is not an image was accepted")
	}
}

func TestCapabilitiesOfComposeFiles(t *testing.T) {
	const good = "image: x\n    cap_drop: [ALL]\n    security_opt: [\"no-new-privileges:true\"]\n    "
	for words, service := range map[string]string{
		"":                          good,
		"privileged":                good + "privileged: true",
		"SYS_ADMIN":                 good + "cap_add: [SYS_ADMIN]",
		"cap_drop":                  "image: x\n    security_opt: [\"no-new-privileges:true\"]",
		"no-new-privileges":         "image: x\n    cap_drop: [ALL]",
		"devices":                   good + "devices: [/dev/kvm]",
		"host's pid namespace":      good + "pid: host",
		"host's network namespace":  good + "network_mode: host",
		"mounts /var/run/docker.so": good + "volumes: [\"/var/run/docker.sock:/s\"]",
	} {
		count, faults, err := composeFaults([]byte("services:\n  a:\n    " + service + "\n"))
		if err != nil || count != 1 {
			t.Fatalf("%d services, %v", count, err)
		}
		if words == "" && len(faults) == 0 {
			continue
		}
		one(t, faults, words)
	}
	_, faults, err := composeFaults([]byte("services:\n  node-0:\n    image: x\n    cap_drop: [ALL]\n    cap_add: [SYS_ADMIN, SYS_MODULE]\n    security_opt: [\"seccomp:unconfined\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	one(t, faults, "SYS_MODULE")
}

func TestDoorsHaveTests(t *testing.T) {
	root := t.TempDir()
	write(t, 0o644, "package a\n\nfunc TestThere(t *testing.T) {}\n", root, "services/a", "a_test.go")
	const head = "# Security\n\n| door | who may | what is checked first | bounds | test |\n|---|---|---|---|---|\n"
	for row, words := range map[string]string{
		"| port | all | nothing | none | `services/a TestThere` |":                         "",
		"| port | all | nothing | none | `services/a TestGone` |":                          "no TestGone in services/a",
		"| port | all | nothing | none | `services/a TestThere`, `services/b TestThere` |": "no TestThere in services/b",
		"| port | all | nothing | none | |":                                                "no test",
		"| port | all | | none | `services/a TestThere` |":                                 "what is checked",
		"| port | all | nothing | `services/a TestThere` |":                                "columns",
	} {
		_, faults, err := doorFaults(head+row+"\n", root)
		if err != nil {
			t.Fatal(err)
		}
		if words == "" && len(faults) == 0 {
			continue
		}
		one(t, faults, words)
	}
	if _, _, err := doorFaults("# Security\n", root); err == nil {
		t.Error("a page without a table of doors was accepted")
	}
}

// Other services must wait for the services of a compose file that end by themselves. Otherwise
// `up --wait` fails when they end.
func TestComposeWaitsForWhatEnds(t *testing.T) {
	data, err := os.ReadFile("../../deploy/compose/docker-compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Restart   string `json:"restart"`
			DependsOn map[string]struct {
				Condition string `json:"condition"`
			} `json:"depends_on"`
		} `json:"services"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	ends := 0
	for name, s := range file.Services {
		if s.Restart == "always" {
			continue
		}
		ends++
		waited := false
		for _, other := range file.Services {
			waited = waited || other.DependsOn[name].Condition == "service_completed_successfully"
		}
		if !waited {
			t.Errorf("no service waits for %s", name)
		}
	}
	if ends != 2 {
		t.Errorf("%d services end by themselves, want setup and admit", ends)
	}
}

// One fault of any check makes the audit fail.
func TestOneFaultFails(t *testing.T) {
	defer func(all []check) { checks = all }(checks)
	for code, faults := range [][]string{nil, {"a fault"}} {
		checks = []check{
			{"first", func(context.Context, *options) (string, []string, error) { return "all", faults, nil }},
			{"second", func(context.Context, *options) (string, []string, error) { return "all", nil, nil }},
		}
		var out bytes.Buffer
		if got := run(t.Context(), &options{}, &out); got != code {
			t.Errorf("exit code %d with %q", got, faults)
		}
	}
}
