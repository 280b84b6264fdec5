package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// advisory is the part of an OSV entry that the index needs
// (https://go.dev/doc/security/vuln/database).
type advisory struct {
	ID        string     `json:"id"`
	Modified  time.Time  `json:"modified"`
	Withdrawn *time.Time `json:"withdrawn,omitempty"`
	Aliases   []string   `json:"aliases,omitempty"`
	Affected  []struct {
		Package struct {
			Name string `json:"name"`
		} `json:"package"`
		Ranges []struct {
			Type   string `json:"type"`
			Events []struct {
				Fixed string `json:"fixed"`
			} `json:"events"`
		} `json:"ranges"`
	} `json:"affected"`
}

// The index that govulncheck reads: for each module, the advisories that name it.
type (
	moduleIndex struct {
		Path  string           `json:"path"`
		Vulns []moduleAdvisory `json:"vulns"`
	}
	moduleAdvisory struct {
		ID       string    `json:"id"`
		Modified time.Time `json:"modified"`
		Fixed    string    `json:"fixed,omitempty"`
	}
	advisoryIndex struct {
		ID       string    `json:"id"`
		Modified time.Time `json:"modified"`
		Aliases  []string  `json:"aliases,omitempty"`
	}
)

// writeDatabase writes OSV entries as a vulnerability database that `govulncheck -db
// file://OUT` reads: index/{db,modules,vulns}.json and ID/*.json. Entries in the database's
// repository have no times, so they get the repository's.
func writeDatabase(osv, out string, modified time.Time) (entries int, err error) {
	files, err := filepath.Glob(filepath.Join(osv, "*.json"))
	if err != nil {
		return 0, err
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("no advisories in %s", osv)
	}
	modules := map[string][]moduleAdvisory{}
	var vulns []advisoryIndex
	if err := errors.Join(os.MkdirAll(filepath.Join(out, "ID"), 0o755), os.MkdirAll(filepath.Join(out, "index"), 0o755)); err != nil {
		return 0, err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		var a advisory
		if err := json.Unmarshal(data, &a); err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		if a.ID != strings.TrimSuffix(filepath.Base(file), ".json") {
			return 0, fmt.Errorf("%s contains the advisory %q", file, a.ID)
		}
		if a.Withdrawn != nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(out, "ID", a.ID+".json"), data, 0o644); err != nil {
			return 0, err
		}
		vulns = append(vulns, advisoryIndex{ID: a.ID, Modified: modified, Aliases: a.Aliases})
		fixed := map[string]string{}
		for _, module := range a.Affected {
			last := ""
			for _, r := range module.Ranges {
				for _, event := range r.Events {
					last = event.Fixed
				}
			}
			fixed[module.Package.Name] = last
		}
		for path, version := range fixed {
			modules[path] = append(modules[path], moduleAdvisory{ID: a.ID, Modified: modified, Fixed: version})
		}
	}
	index := make([]moduleIndex, 0, len(modules))
	for path, list := range modules {
		index = append(index, moduleIndex{Path: path, Vulns: list})
	}
	slices.SortFunc(index, func(a, b moduleIndex) int { return strings.Compare(a.Path, b.Path) })
	for name, content := range map[string]any{
		"modules": index, "vulns": vulns, "db": map[string]time.Time{"modified": modified},
	} {
		data, err := json.Marshal(content)
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(out, "index", name+".json"), data, 0o644); err != nil {
			return 0, err
		}
	}
	return len(vulns), nil
}
