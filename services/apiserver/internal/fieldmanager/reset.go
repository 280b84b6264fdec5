package fieldmanager

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
)

// door is a resource and the subresource through which it is written.
type door struct {
	resource    schema.GroupResource
	subresource string
}

// resetFields returns the paths that a door ignores, whatever the client sends, and that its
// writers therefore do not own.
func resetFields(k *resource.Kind, subresource string) []string {
	if subresource == "" {
		if _, ok := k.Subresources["status"]; ok {
			return statusOnly
		}
		return nil
	}
	s := k.Subresources[subresource]
	switch {
	case s != nil && s.Resets != nil:
		return s.Resets
	case subresource == "status":
		return specOnly
	}
	return nil
}

var statusOnly, specOnly = []string{"status"}, []string{"spec"}

// ownedOnly returns the only paths that the writers of a door can own, or nil if there is no such
// restriction.
func ownedOnly(k *resource.Kind, subresource string) []string {
	if s := k.Subresources[subresource]; s != nil {
		return s.Owns
	}
	return nil
}

// anyItem stands in a path for each item of a list.
const anyItem = "*"

// keep removes from the tree what none of the paths contains. Like the machinery's filter, it keeps
// the nodes that lead to a path.
func (t *tree) keep(paths []string) {
	split := make([][]string, len(paths))
	for i, path := range paths {
		split[i] = strings.Split(path, ".")
	}
	t.keepBelow(0, split)
}

// keepBelow removes the nodes below i that are neither on one of the paths nor beyond its end.
func (t *tree) keepBelow(i int32, paths [][]string) {
	var before int32
	for c := t.nodes[i].first; c != 0; c = t.nodes[c].next {
		var rest [][]string
		whole := false
		for _, path := range paths {
			if path[0] != anyItem && t.nodes[c].elem != "f:"+path[0] {
				continue
			}
			whole = whole || len(path) == 1
			rest = append(rest, path[1:])
		}
		if !whole {
			if len(rest) > 0 {
				t.keepBelow(c, rest)
			}
			if len(rest) == 0 || t.nodes[c].first == 0 && t.nodes[c].flags == 0 {
				t.unlink(i, before, c)
				continue
			}
		}
		before = c
	}
}
