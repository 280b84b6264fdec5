package main

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	rows, err := parse([]byte(`# The values.

# -- How many
# there are.
count: 1
# A group.
image:
  # -- A or | B.
  tag: ""
resources:
  # -- What it needs.
  requests:
    cpu: 1
# -- None.
list: []
`))
	want := []row{
		{"count", "1", "How many there are."},
		{"image.tag", `""`, `A or \| B.`},
		{"resources.requests", `{"cpu":1}`, "What it needs."},
		{"list", "[]", "None."},
	}
	if err != nil || !reflect.DeepEqual(rows, want) {
		t.Errorf("%v, %v", rows, err)
	}
	for text, part := range map[string]string{"a:\n  b: 1\n": "a.b has no documentation", "a: [": "yaml"} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestReadmesAreUpToDate(t *testing.T) {
	for _, chart := range []string{"../../charts/keelson", "../../charts/demo"} {
		want, err := generate(chart)
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(chart + "/README.md")
		if err != nil || string(have) != string(want) {
			t.Errorf("%s/README.md is not what values.yaml says: run `make gen` (%v)", chart, err)
		}
	}
}
