package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestVersion: the newest version of the changelog is that of the file VERSION.
func TestVersion(t *testing.T) {
	version := strings.TrimSpace(read(t, "VERSION"))
	if !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(version) {
		t.Errorf("VERSION is %q", version)
	}
	var headings []string
	for _, m := range regexp.MustCompile(`(?m)^## (.+)$`).FindAllStringSubmatch(read(t, "CHANGELOG.md"), -1) {
		headings = append(headings, m[1])
	}
	if len(headings) < 2 || headings[0] != "Unreleased" || headings[1] != version {
		t.Errorf("CHANGELOG.md has the sections %q, want Unreleased and then %s", headings, version)
	}
}

// TestDevcontainer: it has the Go toolchain that versions.env pins.
func TestDevcontainer(t *testing.T) {
	pinned := regexp.MustCompile(`(?m)^GO_TOOLCHAIN=go(.+)$`).FindStringSubmatch(read(t, "scripts/versions.env"))
	if pinned == nil {
		t.Fatal("versions.env pins no Go toolchain")
	}
	if want := `"golang:` + pinned[1] + `-`; !strings.Contains(read(t, ".devcontainer/devcontainer.json"), want) {
		t.Errorf("devcontainer.json has no image %s…", want)
	}
}
