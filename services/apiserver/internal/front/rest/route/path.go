// Package route parses URLs: which group, version, resource, object and subresource a path names,
// and which parameters a query has. It works only on strings, does not allocate for common paths,
// and accepts what Kubernetes accepts.
//
// It must never know which kinds exist; only the table does.
package route

import "strings"

// Form is the form of a path.
type Form uint8

// Forms of paths.
const (
	// NonResource is any path outside /api/ and /apis/.
	NonResource Form = iota
	// APIVersions is /api.
	APIVersions
	// APIGroups is /apis.
	APIGroups
	// APIGroup is /apis/GROUP.
	APIGroup
	// APIResources is /api/v1 or /apis/GROUP/VERSION.
	APIResources
	// Resource names a collection, an object or a subresource.
	Resource
)

// Path is a parsed path. Its strings are parts of the path.
type Path struct {
	Form           Form
	Group, Version string
	// Namespace is empty for cluster-scoped objects and for collections across all namespaces.
	Namespace   string
	Resource    string
	Name        string
	Subresource string
	// Rest is what follows the subresource (of a proxy), without the first slash.
	Rest string
	// Watch is true for the deprecated form /api/v1/watch/...
	Watch bool
}

// next splits off the first segment.
func next(s string) (segment, rest string) {
	for len(s) > 0 && s[0] == '/' {
		s = s[1:]
	}
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// Parse parses a decoded URL path. A path with an empty segment, other than at its end and after
// a subresource, is invalid.
func Parse(path string) Path {
	p := parse(path)
	head := path[:len(path)-len(p.Rest)]
	for len(head) > 0 && head[len(head)-1] == '/' {
		head = head[:len(head)-1]
	}
	if strings.Contains(head, "//") {
		return Path{}
	}
	return p
}

func parse(path string) Path {
	first, rest := next(path)
	var p Path
	switch first {
	case "api":
		p.Version, rest = next(rest)
		if p.Version == "" {
			p.Form = APIVersions
			return p
		}
	case "apis":
		p.Group, rest = next(rest)
		if p.Group == "" {
			p.Form = APIGroups
			return p
		}
		p.Version, rest = next(rest)
		if p.Version == "" {
			p.Form = APIGroup
			return p
		}
	default:
		return p
	}
	segment, rest := next(rest)
	if segment == "" {
		p.Form = APIResources
		return p
	}
	p.Form = Resource
	if segment == "watch" {
		p.Watch = true
		if segment, rest = next(rest); segment == "" {
			return Path{Form: NonResource}
		}
	}
	if segment == "namespaces" {
		namespace, after := next(rest)
		resource, further := next(after)
		// namespaces/NAME/status and namespaces/NAME/finalize are the Namespace's own
		// subresources.
		if namespace != "" && resource != "" && resource != "status" && resource != "finalize" {
			p.Namespace, segment, rest = namespace, resource, further
		}
	}
	p.Resource = segment
	p.Name, rest = next(rest)
	p.Subresource, p.Rest = next(rest)
	return p
}
