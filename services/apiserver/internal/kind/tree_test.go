package kind_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func strip(object map[string]any, volatile []string) {
	for _, path := range append([]string{
		"metadata.uid", "metadata.resourceVersion", "metadata.creationTimestamp", "metadata.managedFields",
		"metadata.generation", "metadata.name", "metadata.namespace",
	}, volatile...) {
		put(object, path, nil)
	}
}

// differences lists the differences between two trees. Values that are empty in both are equal.
func differences(path string, want, got any) []string {
	if w, ok := want.(map[string]any); ok {
		g, _ := got.(map[string]any)
		var out []string
		for _, key := range keys(w, g) {
			out = append(out, differences(path+"."+key, w[key], g[key])...)
		}
		return out
	}
	if g, ok := got.(map[string]any); ok && want == nil {
		var out []string
		for _, key := range keys(nil, g) {
			out = append(out, differences(path+"."+key, nil, g[key])...)
		}
		if len(g) == 0 {
			return nil
		}
		return out
	}
	w, wok := want.([]any)
	g, gok := got.([]any)
	if len(w) == 0 && len(g) == 0 && (wok || want == nil) && (gok || got == nil) {
		return nil
	}
	if wok && gok && len(w) == len(g) {
		var out []string
		for i := range w {
			out = append(out, differences(path+"["+strconv.Itoa(i)+"]", w[i], g[i])...)
		}
		return out
	}
	if reflect.DeepEqual(want, got) {
		return nil
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	return []string{fmt.Sprintf("%s: want %s, got %s", path, a, b)}
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

func clone(object map[string]any) map[string]any {
	data, _ := json.Marshal(object)
	var out map[string]any
	_ = json.Unmarshal(data, &out)
	return out
}

func change(t *testing.T, base any, set map[string]any) map[string]any {
	object, ok := base.(map[string]any)
	if !ok {
		t.Fatalf("no base %v", base)
	}
	object = clone(object)
	paths := make([]string, 0, len(set))
	for path := range set {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	now := time.Now() // a single time for all values, so that differences between them are exact
	for _, path := range paths {
		put(object, path, expand(set[path], now))
	}
	return object
}

// expand replaces "@repeat a 300" by 300 times "a", and "@ago 90m" by a time, anywhere in a
// value.
func expand(v any, now time.Time) any {
	switch x := v.(type) {
	case string:
		if f := strings.Fields(x); len(f) == 3 && f[0] == "@repeat" {
			n, _ := strconv.Atoi(f[2])
			return strings.Repeat(f[1], n)
		} else if len(f) == 2 && (f[0] == "@ago" || f[0] == "@microago") {
			layout := map[string]string{"@ago": time.RFC3339, "@microago": metav1.RFC3339Micro}[f[0]]
			d, _ := time.ParseDuration(f[1])
			return now.Add(-d).UTC().Format(layout)
		}
	case []any:
		out := make([]any, len(x))
		for i := range x {
			out[i] = expand(x[i], now)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			out[expand(k, now).(string)] = expand(e, now)
		}
		return out
	}
	return v
}

// put sets the field at a path such as spec.containers[0].image or metadata.labels['a.b']. nil
// deletes it.
func put(object map[string]any, path string, value any) {
	var steps []any
	for path != "" {
		switch {
		case strings.HasPrefix(path, "['"):
			end := strings.Index(path, "']")
			steps = append(steps, path[2:end])
			path = path[end+2:]
		case path[0] == '[':
			end := strings.IndexByte(path, ']')
			n, _ := strconv.Atoi(path[1:end])
			steps = append(steps, n)
			path = path[end+1:]
		case path[0] == '.':
			path = path[1:]
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			steps = append(steps, path[:end])
			path = path[end:]
		}
	}
	var at any = object
	for i, step := range steps {
		last := i == len(steps)-1
		switch s := step.(type) {
		case string:
			m, ok := at.(map[string]any)
			if !ok {
				return
			}
			if last {
				if value == nil {
					delete(m, s)
				} else {
					m[s] = value
				}
				return
			}
			if m[s] == nil {
				if value == nil {
					return
				}
				if n, isIndex := steps[i+1].(int); isIndex {
					m[s] = make([]any, n+1)
				} else {
					m[s] = map[string]any{}
				}
			} else if n, isIndex := steps[i+1].(int); isIndex {
				if list, ok := m[s].([]any); ok && n >= len(list) && value != nil {
					m[s] = append(list, make([]any, n+1-len(list))...)
				}
			}
			at = m[s]
		case int:
			list, ok := at.([]any)
			if !ok || s >= len(list) {
				return
			}
			if last {
				list[s] = value
				return
			}
			if list[s] == nil {
				list[s] = map[string]any{}
			}
			at = list[s]
		}
	}
}
