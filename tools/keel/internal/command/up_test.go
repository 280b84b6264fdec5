package command

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Ports of the members are rejected before anything is created.
func TestPortsOfMembersAreRefused(t *testing.T) {
	for _, port := range []string{"7442", "7443", "2379", "2380"} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), []string{"up", "--home", t.TempDir() + "/none", "--port", port}, &out, &errs); code != 2 || !strings.Contains(errs.String(), "members serve each other") {
			t.Errorf("%s: %d %q", port, code, errs.String())
		}
	}
}

// Two calls at once would both write keys, and one of them would serve with a key that the
// other had replaced.
func TestOneUpAtATime(t *testing.T) {
	var said bytes.Buffer
	e := &env{home: t.TempDir(), err: &said}
	unlock, err := e.alone(t.Context(), e.home)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.alone(ended, e.home); !errors.Is(err, context.Canceled) {
		t.Fatalf("a second call: %v", err)
	}
	if !strings.Contains(said.String(), "waiting for another") {
		t.Errorf("the output is %q", said.String())
	}
	unlock()
	again, err := e.alone(t.Context(), e.home)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestOTLPEndpointIsChecked(t *testing.T) {
	for _, endpoint := range []string{"collector", "http://collector:4317", "collector:", "collector:0", "collector:70000", ":4317"} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), []string{"up", "--home", t.TempDir() + "/none", "--otlp-endpoint", endpoint}, &out, &errs); code != 2 || !strings.Contains(errs.String(), "--otlp-endpoint") {
			t.Errorf("%s: %d %q", endpoint, code, errs.String())
		}
	}
	for _, endpoint := range []string{"", "collector.example:4317", "[::1]:4317"} {
		if err := checkEndpoint(endpoint); err != nil {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

// keel neither uses a directory with other files as a home nor deletes it.
func TestFilesOfOthersStay(t *testing.T) {
	checkout := t.TempDir()
	canary := filepath.Join(checkout, "main.go")
	if err := os.WriteFile(canary, []byte("package main"), 0o600); err != nil {
		t.Fatal(err)
	}
	for verb, says := range map[string]string{"up": "main.go", "delete": "nothing to delete"} {
		var out bytes.Buffer
		code := Run(t.Context(), []string{verb, "--home", checkout}, &out, &out)
		if (code == 0) != (verb == "delete") || !strings.Contains(out.String(), says) {
			t.Errorf("%s: %d %q", verb, code, out.String())
		}
	}
	files, err := os.ReadDir(checkout)
	if err != nil || len(files) != 1 || files[0].Name() != "main.go" {
		t.Errorf("the directory contains %v, %v", files, err)
	}
}

func TestDeleteByID(t *testing.T) {
	for _, args := range [][]string{{"--id", "../etc"}, {"--id", "abc123", "--home", t.TempDir()}} {
		var out bytes.Buffer
		if code := Run(t.Context(), append([]string{"delete"}, args...), &out, &out); code != 2 {
			t.Errorf("%v: %d %q", args, code, out.String())
		}
	}
}
