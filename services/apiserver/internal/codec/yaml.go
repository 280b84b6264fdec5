package codec

import (
	"bytes"
	"fmt"
	"sync"

	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"
)

const (
	// maxExpanded bounds a YAML document after its aliases are replaced by what they
	// stand for. It is the size of the largest body.
	maxExpanded = 3 << 20
	// largeYAML is the size from which documents are parsed one at a time: a parsed
	// document takes up to a hundred times the memory of its text.
	largeYAML = 256 << 10
)

var largeYAMLs sync.Mutex

// YAMLToJSON converts a YAML document. With strict, a repeated key is an error. It
// refuses a document whose aliases expand to more than maxExpanded bytes.
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

// checkAliases measures the expanded document without building its text. The parser
// bounds the number of expanded nodes, but not the length of an aliased string.
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

// fits subtracts the approximate size of v's JSON from left until none is left.
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
