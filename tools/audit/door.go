package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// namedTest matches a test in SECURITY.md: the directory of a package and the name of the test.
var namedTest = regexp.MustCompile("`([a-z][a-zA-Z0-9/_-]*) (Test\\w+)`")

// doors checks the table of doors in SECURITY.md: each row must have all columns and name tests
// that exist.
func doors(_ context.Context, o *options) (string, []string, error) {
	text, err := os.ReadFile(o.at("SECURITY.md"))
	if err != nil {
		return "", nil, err
	}
	count, faults, err := doorFaults(string(text), o.root)
	return fmt.Sprintf("%d doors in SECURITY.md", count), faults, err
}

func doorFaults(text, root string) (count int, faults []string, err error) {
	_, table, ok := strings.Cut(text, "\n| door |")
	if !ok {
		return 0, nil, fmt.Errorf("SECURITY.md has no table of doors")
	}
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		door := strings.TrimSpace(cells[0])
		if len(cells) != 5 {
			if count > 0 || door != "who may" {
				faults = append(faults, fmt.Sprintf("%s: %d columns, want 5", door, len(cells)))
			}
			continue
		}
		count++
		for _, what := range []int{1, 2} {
			if strings.TrimSpace(cells[what]) == "" {
				faults = append(faults, door+": the columns for who may use it and for what is checked first must not be empty")
			}
		}
		tests := namedTest.FindAllStringSubmatch(cells[4], -1)
		if len(tests) == 0 {
			faults = append(faults, door+": no test")
		}
		for _, t := range tests {
			found, err := hasTest(filepath.Join(root, t[1]), t[2])
			if err != nil {
				return count, nil, err
			}
			if !found {
				faults = append(faults, fmt.Sprintf("%s: there is no %s in %s", door, t[2], t[1]))
			}
		}
	}
	return count, faults, nil
}

// hasTest reports whether a directory contains a test.
func hasTest(dir, name string) (bool, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return false, err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return false, err
		}
		if strings.Contains(string(data), "\nfunc "+name+"(t *testing.T)") {
			return true, nil
		}
	}
	return false, nil
}
