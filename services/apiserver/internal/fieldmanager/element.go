package fieldmanager

import (
	"cmp"
	"encoding/json"
	"math"
	"sort"
	"strings"
)

// compareElements orders serialized path elements as structured-merge-diff's
// PathElement.Compare does: field names, then keys, values and indexes.
func compareElements(a, b string) int {
	if a == b {
		return 0
	}
	if c := cmp.Compare(rank(a[0]), rank(b[0])); c != 0 {
		return c
	}
	switch a[0] {
	case 'k':
		return compareKeys(a[2:], b[2:])
	case 'v', 'i':
		return compareValues(decode(a[2:]), decode(b[2:]))
	}
	return strings.Compare(a, b)
}

func rank(c byte) int { return strings.IndexByte("fkvi", c) }

func decode(text string) (v any) {
	if json.Unmarshal([]byte(text), &v) != nil {
		return text
	}
	return v
}

type keyField struct {
	name  string
	value any
}

func keyFields(text string) []keyField {
	var m map[string]any
	if json.Unmarshal([]byte(text), &m) != nil {
		return []keyField{{value: text}}
	}
	out := make([]keyField, 0, len(m))
	for name, v := range m {
		out = append(out, keyField{name, v})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out
}

func compareKeys(a, b string) int {
	x, y := keyFields(a), keyFields(b)
	for i := 0; i < len(x) && i < len(y); i++ {
		if c := strings.Compare(x[i].name, y[i].name); c != 0 {
			return c
		}
		if c := compareValues(x[i].value, y[i].value); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(x), len(y))
}

// compareValues orders numbers before strings before booleans.
func compareValues(a, b any) int {
	order := func(v any) int {
		switch v.(type) {
		case float64:
			return 0
		case string:
			return 1
		case bool:
			return 2
		}
		return 3
	}
	if c := cmp.Compare(order(a), order(b)); c != 0 {
		return c
	}
	switch a := a.(type) {
	case float64:
		return cmp.Compare(a, b.(float64))
	case string:
		return strings.Compare(a, b.(string))
	case bool:
		switch {
		case a == b.(bool):
			return 0
		case a:
			return 1
		}
		return -1
	}
	return 0
}

// appendValue writes a scalar as jsoniter's compatible configuration does, for
// keys and values in path elements.
func appendValue(b []byte, v any) []byte {
	if f, ok := v.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
		return append(b, "null"...)
	}
	if s, ok := v.(string); ok && plain(s) {
		return append(append(append(b, '"'), s...), '"')
	}
	text, err := json.Marshal(v)
	if err != nil {
		return append(b, "null"...)
	}
	return append(b, text...)
}

// plain tells a string that JSON writes as it is.
func plain(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}
