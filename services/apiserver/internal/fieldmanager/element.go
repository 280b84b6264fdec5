package fieldmanager

import (
	"cmp"
	"encoding/json"
	"reflect"
	"sort"
	"strconv"
	"strings"
)

// compareElements orders serialized path elements like structured-merge-diff's
// PathElement.Compare: field names, then keys, values and indexes.
func compareElements(a, b string) int {
	if a == b {
		return 0
	}
	if c := cmp.Compare(rank(a[0]), rank(b[0])); c != 0 {
		return c
	}
	switch a[0] {
	case 'k':
		if c, ok := comparePlainKeys(a[2:], b[2:]); ok {
			return c
		}
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

// comparePlainKeys compares keys with the same names whose values are integers or strings without
// escapes, which nearly all keys are. It returns false for other keys.
func comparePlainKeys(a, b string) (int, bool) {
	for {
		i := strings.IndexByte(a, ':')
		if i < 0 || len(b) <= i || a[:i+1] != b[:i+1] {
			return 0, false
		}
		a, b = a[i+1:], b[i+1:]
		x, restA, ok1 := plainValue(a)
		y, restB, ok2 := plainValue(b)
		if !ok1 || !ok2 || (x[0] == '"') != (y[0] == '"') {
			return 0, false
		}
		if x != y {
			if x[0] == '"' {
				return strings.Compare(x[1:len(x)-1], y[1:len(y)-1]), true
			}
			if x[0] == '-' || y[0] == '-' {
				return 0, false
			}
			return cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)), true
		}
		a, b = restA, restB
		if a == "}" || b == "}" {
			return cmp.Compare(len(a), len(b)), true
		}
	}
}

// plainValue splits an integer or a string without escapes from the beginning of s.
func plainValue(s string) (value, rest string, ok bool) {
	end := 0
	if s != "" && s[0] == '"' {
		for end = 1; end < len(s) && s[end] != '"'; end++ {
			if s[end] == '\\' {
				return "", "", false
			}
		}
		end++
	} else {
		for end < len(s) && (s[end] >= '0' && s[end] <= '9' || s[end] == '-' && end == 0) {
			end++
		}
	}
	if end == 0 || end >= len(s) {
		return "", "", false
	}
	return s[:end], s[end:], true
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

// compareValues orders numbers before strings, and strings before booleans.
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

// appendValue appends a scalar in the encoding of jsoniter's compatible configuration, for keys
// and values in path elements.
func appendValue(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); plain(s) {
			return append(append(append(b, '"'), s...), '"')
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.AppendUint(b, v.Uint(), 10)
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool())
	}
	text, err := json.Marshal(v.Interface())
	if err != nil {
		return append(b, "null"...)
	}
	return append(b, text...)
}

// plain reports whether JSON encodes s without any escape.
func plain(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}
