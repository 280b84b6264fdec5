package perturb

import (
	"cmp"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"keelson.dev/proto/client"
)

var (
	timestamp = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	uid       = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

// Normalize returns one line of JSON for each object, sorted, without what may differ
// between two runs of the same scenario: uids, revisions, times, generated names, signed
// data, and the order of lists of objects. A uid is replaced by the name of its object, or
// by "gone".
func Normalize(objects []client.Object) []string {
	var pairs [][2]string
	for _, obj := range objects {
		name := obj.GetName()
		if prefix := obj.GetGenerateName(); prefix != "" && strings.HasPrefix(name, prefix) {
			pairs = append(pairs, [2]string{name, prefix + "*"})
			name = prefix + "*"
		}
		pairs = append(pairs, [2]string{string(obj.GetUID()), "uid of " + client.KindOf(obj).Resource + " " + name})
	}
	// Of two names that begin alike the longer one is looked for first.
	slices.SortFunc(pairs, func(a, b [2]string) int {
		return cmp.Or(len(b[0])-len(a[0]), strings.Compare(a[0], b[0]))
	})
	var flat []string
	for _, p := range pairs {
		if p[0] != "" {
			flat = append(flat, p[0], p[1])
		}
	}
	n := normalizer{strings.NewReplacer(flat...)}
	var out []string
	for _, obj := range objects {
		out = append(out, n.object(obj))
	}
	slices.Sort(out)
	return out
}

type normalizer struct{ names *strings.Replacer }

func (n normalizer) object(obj client.Object) string {
	data, err := json.Marshal(obj)
	if err != nil {
		return err.Error()
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return err.Error()
	}
	meta, _ := fields["metadata"].(map[string]any)
	for _, key := range []string{"uid", "managedFields", "generation", "creationTimestamp"} {
		delete(meta, key)
	}
	if status, ok := fields["status"].(map[string]any); ok {
		if seen, ok := status["observedGeneration"].(float64); ok {
			status["observedGeneration"] = int64(seen) == obj.GetGeneration()
		}
		redact(status, "certificate")
	}
	if spec, ok := fields["spec"].(map[string]any); ok {
		redact(spec, "podCIDR")
		redact(spec, "podCIDRs")
	}
	if secret, ok := fields["data"].(map[string]any); ok {
		redact(secret, "token")
	}
	line, err := json.Marshal(n.value(fields))
	if err != nil {
		return err.Error()
	}
	return client.KindOf(obj).Resource + " " + string(line)
}

func redact(fields map[string]any, key string) {
	if fields[key] != nil {
		fields[key] = "set"
	}
}

func (n normalizer) value(v any) any {
	switch v := v.(type) {
	case string:
		return uid.ReplaceAllString(timestamp.ReplaceAllString(n.names.Replace(v), "time"), "gone")
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, field := range v {
			if key == "resourceVersion" {
				continue
			}
			out[n.names.Replace(key)] = n.value(field)
		}
		return out
	case []any:
		out := make([]any, len(v))
		lines := make([]string, len(v))
		objects := len(v) > 0
		for i := range v {
			out[i] = n.value(v[i])
			_, object := out[i].(map[string]any)
			objects = objects && object
			line, _ := json.Marshal(out[i]) //nolint:errchkjson // it comes from JSON
			lines[i] = string(line)
		}
		if objects {
			slices.Sort(lines)
			for i, line := range lines {
				out[i] = json.RawMessage(line)
			}
		}
		return out
	}
	return v
}

// difference returns the lines that one of two sorted lists has more often, marked by - and
// +, or "" if there are none.
func difference(want, got []string) string {
	var b strings.Builder
	counts := map[string]int{}
	for _, line := range want {
		counts[line]++
	}
	for _, line := range got {
		counts[line]--
	}
	for _, line := range slices.Sorted(slices.Values(slices.Concat(want, got))) {
		for ; counts[line] > 0; counts[line]-- {
			b.WriteString("- " + line + "\n")
		}
		for ; counts[line] < 0; counts[line]++ {
			b.WriteString("+ " + line + "\n")
		}
	}
	return b.String()
}
