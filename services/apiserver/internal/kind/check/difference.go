package check

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Differences describes the fields in which two values differ, with a line for each. It is meant
// for messages: it goes through JSON and is slow.
func Differences(before, after any) string {
	var lines []string
	walk("", tree(before), tree(after), &lines)
	return strings.Join(lines, "\n")
}

func tree(v any) (out any) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	_ = json.Unmarshal(data, &out) // marshalled data can be unmarshalled
	return out
}

func walk(path string, before, after any, lines *[]string) {
	switch b := before.(type) {
	case map[string]any:
		if a, ok := after.(map[string]any); ok {
			for _, key := range keys(b, a) {
				walk(path+"."+key, b[key], a[key], lines)
			}
			return
		}
	case []any:
		if a, ok := after.([]any); ok && len(a) == len(b) {
			for i := range b {
				walk(fmt.Sprintf("%s[%d]", path, i), b[i], a[i], lines)
			}
			return
		}
	}
	b, _ := json.Marshal(before)
	a, _ := json.Marshal(after)
	if string(a) != string(b) {
		*lines = append(*lines, fmt.Sprintf("%s: %s -> %s", strings.TrimPrefix(path, "."), b, a))
	}
}

func keys(a, b map[string]any) []string {
	var out []string
	for k := range a {
		out = append(out, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}
