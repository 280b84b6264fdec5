package codec

import (
	"bytes"
	"fmt"
	"sync"

	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"
)

const (
	// maxExpanded bounds the size in bytes of a YAML document after alias expansion. It is the
	// size of the largest body.
	maxExpanded = 3 << 20
	// largeYAML is the size in bytes above which documents are parsed one at a time, because a
	// parsed document takes up to a hundred times the memory of its text.
	largeYAML = 256 << 10
)

var largeYAMLs sync.Mutex

// YAMLToJSON converts a YAML document. If strict is true, a duplicate key is an error. Documents
// whose aliases expand to more than maxExpanded bytes are refused.
func YAMLToJSON(data []byte, strict bool) ([]byte, error) {
	if len(data) > largeYAML {
		largeYAMLs.Lock()
		defer largeYAMLs.Unlock()
	}
	if err := checkAliases(data); err != nil {
		return nil, err
	}
	if strict {
		return yaml.YAMLToJSONStrict(data)
	}
	return yaml.YAMLToJSON(data)
}

// checkAliases measures the expanded document without building its text. The parser bounds the
// number of expanded nodes, but not the total length of aliased strings.
func checkAliases(data []byte) error {
	if bytes.IndexByte(data, '&') < 0 || bytes.IndexByte(data, '*') < 0 {
		return nil
	}
	var doc any
	if err := yamlv2.Unmarshal(data, &doc); err != nil {
		return nil //nolint:nilerr // the conversion reports it
	}
	if left := maxExpanded; !fits(doc, &left) {
		return fmt.Errorf("yaml: the document expands to more than %d bytes, use fewer aliases", maxExpanded)
	}
	return nil
}

// fits subtracts the approximate size of v's JSON from left, and reports whether left is still
// not negative.
func fits(v any, left *int) bool {
	*left -= 2
	switch v := v.(type) {
	case string:
		*left -= len(v)
	case []any:
		for _, e := range v {
			if !fits(e, left) {
				return false
			}
		}
	case map[any]any:
		for k, e := range v {
			if !fits(k, left) || !fits(e, left) {
				return false
			}
		}
	}
	return *left >= 0
}
