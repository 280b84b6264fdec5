// Command chart-readme writes the README of a Helm chart: README.md.tmpl with a table of the values
// in values.yaml. A comment that begins with "--" documents the key below it:
//
//	go run ./chart-readme ../charts/keelson
//
// It fails if a value has no documentation.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chart-readme CHART")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "chart-readme: %v\n", err)
		os.Exit(1)
	}
}

// placeholder is where the template has the table.
const placeholder = "{{values}}"

func write(chart string) error {
	text, err := generate(chart)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(chart, "README.md"), text, 0o644) //nolint:gosec // documentation
}

// generate returns the README of a chart.
func generate(chart string) ([]byte, error) {
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(chart, "README.md.tmpl"))
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(text, []byte(placeholder)) {
		return nil, fmt.Errorf("README.md.tmpl has no %s", placeholder)
	}
	rows, err := parse(values)
	if err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	var table strings.Builder
	table.WriteString("| value | default | |\n|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", r.path, r.value, r.text)
	}
	return bytes.Replace(text, []byte(placeholder), []byte(strings.TrimSuffix(table.String(), "\n")), 1), nil
}

// row is one line of the table.
type row struct{ path, value, text string }

var keyLine = regexp.MustCompile(`^( *)([A-Za-z][A-Za-z0-9]*):( |$)`)

// parse returns the documented values, in the order of the file. What is below a documented value
// belongs to it.
func parse(data []byte) ([]row, error) {
	var all map[string]any
	if err := yaml.UnmarshalStrict(data, &all); err != nil {
		return nil, err
	}
	var rows []row
	var path []string
	var comment []string
	covered := -1 // indentation of the documented value that the line is below
	for n, line := range strings.Split(string(data), "\n") {
		trimmed := strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(trimmed, "#"); ok {
			text = strings.TrimSpace(text)
			if first, ok := strings.CutPrefix(text, "-- "); ok {
				comment = []string{first}
			} else if len(comment) > 0 {
				comment = append(comment, text)
			}
			continue
		}
		m := keyLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		indent := len(m[1])
		if covered >= 0 && indent > covered {
			continue
		}
		covered = -1
		path = append(path[:min(indent/2, len(path))], m[2])
		if len(comment) > 0 {
			value, err := shown(all, path)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row{strings.Join(path, "."), value, strings.ReplaceAll(strings.Join(comment, " "), "|", `\|`)})
			comment, covered = nil, indent
		} else if strings.TrimSpace(line[len(m[0]):]) != "" {
			return nil, fmt.Errorf("line %d: %s has no documentation: begin a comment above it with \"-- \"", n+1, strings.Join(path, "."))
		}
	}
	return rows, nil
}

// shown returns the default of a value as JSON.
func shown(all map[string]any, path []string) (string, error) {
	var at any = all
	for _, key := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return "", errors.New(strings.Join(path, ".") + " is not where its indentation says")
		}
		at = m[key]
	}
	data, err := json.Marshal(at)
	return string(data), err
}
