package fieldmanager

import (
	_ "embed"
	"fmt"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/json"
)

//go:generate sh -c "go run ./schemagen/schemagen > schema.txt"

// schemaText has a line for each type of Kubernetes' schema that differs from the defaults of its
// Go type: lists are atomic and maps granular unless the line says otherwise.
//
//go:embed schema.txt
var schemaText string

// typeInfo is a parsed line of schema.txt.
type typeInfo struct {
	atomic bool
	fields map[string]fieldInfo
}

// fieldInfo is the entry of a field in a line.
type fieldInfo struct {
	atomic, granular, set bool
	keys                  []keyInfo
}

// keyInfo is one key field of an associative list.
type keyInfo struct {
	name string
	def  any // nil if the key has no default
}

// schemaTable is schema.txt, keyed by the type's name in the schema.
var schemaTable = sync.OnceValue(func() map[string]typeInfo {
	table := map[string]typeInfo{}
	for line := range strings.Lines(schemaText) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		info := typeInfo{fields: map[string]fieldInfo{}}
		for _, word := range strings.Fields(rest) {
			field, what, ok := strings.Cut(word, "=")
			if !ok {
				info.atomic = true
				continue
			}
			info.fields[field] = parseField(what)
		}
		table[name] = info
	}
	return table
})

func parseField(what string) fieldInfo {
	switch what {
	case "atomic":
		return fieldInfo{atomic: true}
	case "granular":
		return fieldInfo{granular: true}
	case "set":
		return fieldInfo{set: true}
	}
	var f fieldInfo
	list := strings.TrimSuffix(strings.TrimPrefix(what, "keys("), ")")
	for _, key := range strings.Split(list, ",") {
		name, def, ok := strings.Cut(key, ":")
		k := keyInfo{name: name}
		if ok {
			if err := json.Unmarshal([]byte(def), &k.def); err != nil {
				panic(fmt.Sprintf("fieldmanager: schema.txt: %q: %v", what, err))
			}
		}
		f.keys = append(f.keys, k)
	}
	return f
}

// schemaName returns a Go type's name in Kubernetes' schema, such as "io.k8s.api.core.v1.Pod".
func schemaName(pkgPath, name string) string {
	host, path, _ := strings.Cut(pkgPath, "/")
	parts := strings.Split(host, ".")
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, ".") + "." + strings.ReplaceAll(path, "/", ".") + "." + name
}
