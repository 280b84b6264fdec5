package document

import (
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/common"
)

// maker creates the operations of one resource.
type maker struct {
	r      *Resource
	group  string // for example "CoreV1", in the ids of operations
	tag    string // for example "core_v1"
	prefix string // for example "/api/v1"
	routes []common.Route
}

// operations returns the routes of one group and version.
func operations(table []Resource, gv schema.GroupVersion) *container {
	c := &container{}
	for i := range table {
		r := &table[i]
		if r.gv() != gv {
			continue
		}
		m := &maker{r: r, group: operationGroup(gv), tag: tag(gv), prefix: prefix(gv)}
		m.resource()
		for j := range r.Subresources {
			m.subresource(&r.Subresources[j])
		}
		c.routes = append(c.routes, m.routes...)
	}
	c.routes = append(c.routes, &route{
		method: http.MethodGet, path: prefix(gv) + "/", id: "get" + operationGroup(gv) + "APIResources",
		description: "get available resources", tags: []string{tag(gv)},
		consumes: objectTypes, produces: objectTypes,
		answer: metav1.APIResourceList{}, codes: []int{http.StatusOK},
	})
	return c
}

func prefix(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "/api/" + gv.Version
	}
	return "/apis/" + gv.Group + "/" + gv.Version
}

// operationGroup formats a group and version for the id of an operation.
func operationGroup(gv schema.GroupVersion) string {
	name := strings.TrimSuffix(gv.Group, ".k8s.io")
	if name == "" {
		name = "core"
	}
	out := ""
	for part := range strings.SplitSeq(name, ".") {
		out += title(part)
	}
	return out + title(gv.Version)
}

// tag returns the tag by which generated clients group operations.
func tag(gv schema.GroupVersion) string {
	name := operationGroup(schema.GroupVersion{Group: gv.Group})
	return strings.ToLower(name[:1]) + name[1:] + "_" + gv.Version
}

func title(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func (m *maker) gvk() schema.GroupVersionKind { return m.r.gv().WithKind(m.r.Kind) }

// paths returns the paths of the resource in all namespaces, of the collection, and of an
// object.
func (m *maker) paths(infix string) (all, collection, object string) {
	all = m.prefix + infix + "/" + m.r.Resource
	collection = all
	if m.r.Namespaced {
		collection = m.prefix + infix + "/namespaces/{namespace}/" + m.r.Resource
	}
	return all, collection, collection + "/{name}"
}

// add adds an operation, and completes the parameters of its path.
func (m *maker) add(action string, gvk schema.GroupVersionKind, r route) {
	r.tags = []string{m.tag}
	r.metadata = map[string]any{"x-kubernetes-group-version-kind": map[string]any{
		"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind,
	}}
	if action != "" {
		r.metadata["x-kubernetes-action"] = action
	}
	if strings.Contains(r.path, "{namespace}") {
		r.parameters = append(r.parameters, pathParameter("namespace", "object name and auth scope, such as for teams and projects"))
	}
	if strings.Contains(r.path, "{name}") {
		r.parameters = append(r.parameters, pathParameter("name", "name of the "+gvk.Kind))
	}
	if strings.Contains(r.path, "{path}") {
		r.parameters = append(r.parameters, pathParameter("path", "path to the resource"))
	}
	if action != "connect" {
		r.parameters = append(r.parameters, pretty)
	}
	if r.consumes == nil {
		r.consumes = anyType
	}
	if r.produces == nil {
		r.produces = objectTypes
	}
	m.routes = append(m.routes, &r)
}

func (m *maker) has(verb string) bool { return slices.Contains(m.r.Verbs, verb) }

// scope returns "Namespaced", as in ids of operations, or "".
func (m *maker) scope() string {
	if m.r.Namespaced {
		return "Namespaced"
	}
	return ""
}

// resource adds the operations on collections and objects.
func (m *maker) resource() {
	kind, gvk, scoped := m.r.Kind, m.gvk(), m.scope()+m.r.Kind
	obj := sample(gvk)
	all, collection, object := m.paths("")
	if m.has("list") {
		list := sample(m.r.gv().WithKind(kind + "List"))
		m.add("list", gvk, route{
			method: http.MethodGet, path: collection, id: "list" + m.group + scoped,
			description: "list or watch objects of kind " + kind,
			parameters:  slices.Clone(listParameters), produces: listTypes, answer: list, codes: []int{http.StatusOK},
		})
		if m.r.Namespaced {
			m.add("list", gvk, route{
				method: http.MethodGet, path: all, id: "list" + m.group + kind + "ForAllNamespaces",
				description: "list or watch objects of kind " + kind,
				parameters:  slices.Clone(listParameters), produces: listTypes, answer: list, codes: []int{http.StatusOK},
			})
		}
	}
	if m.has("create") {
		m.add("post", gvk, route{
			method: http.MethodPost, path: collection, id: "create" + m.group + scoped,
			description: article(kind, "create"), parameters: append(slices.Clone(createParameters), body(true)),
			body: obj, answer: obj, codes: []int{http.StatusOK, http.StatusCreated, http.StatusAccepted},
		})
	}
	if m.has("deletecollection") {
		m.add("deletecollection", gvk, route{
			method: http.MethodDelete, path: collection, id: "delete" + m.group + "Collection" + scoped,
			description: "delete collection of " + kind, parameters: append(slices.Clone(collectionParameters), body(false)),
			body: metav1.DeleteOptions{}, answer: metav1.Status{}, codes: []int{http.StatusOK},
		})
	}
	if m.has("get") {
		m.add("get", gvk, route{
			method: http.MethodGet, path: object, id: "read" + m.group + scoped,
			description: "read the specified " + kind, answer: obj, codes: []int{http.StatusOK},
		})
	}
	if m.has("update") {
		m.put(gvk, object, "replace"+m.group+scoped, "replace the specified "+kind, obj)
	}
	if m.has("patch") {
		m.patch(gvk, object, "patch"+m.group+scoped, "partially update the specified "+kind, obj)
	}
	if m.has("delete") {
		var answer any = metav1.Status{}
		if m.r.ReturnsDeleted {
			answer = obj
		}
		m.add("delete", gvk, route{
			method: http.MethodDelete, path: object, id: "delete" + m.group + scoped,
			description: article(kind, "delete"), parameters: append(slices.Clone(deleteParameters), body(false)),
			body: metav1.DeleteOptions{}, answer: answer, codes: []int{http.StatusOK, http.StatusAccepted},
		})
	}
	if m.has("watch") {
		m.watches()
	}
}

// watches adds the operations of the deprecated watch paths.
func (m *maker) watches() {
	kind, gvk := m.r.Kind, m.gvk()
	all, collection, object := m.paths("/watch")
	const deprecated = ". deprecated: use the 'watch' parameter with a list operation instead"
	add := func(action, path, id, description string) {
		m.add(action, gvk, route{
			method: http.MethodGet, path: path, id: id, description: description + deprecated,
			parameters: slices.Clone(listParameters), produces: listTypes, answer: metav1.WatchEvent{}, codes: []int{http.StatusOK},
		})
	}
	add("watchlist", collection, "watch"+m.group+m.scope()+kind+"List", "watch individual changes to a list of "+kind)
	if m.r.Namespaced {
		add("watchlist", all, "watch"+m.group+kind+"ListForAllNamespaces", "watch individual changes to a list of "+kind)
	}
	add("watch", object, "watch"+m.group+m.scope()+kind, "watch changes to an object of kind "+kind)
}

func (m *maker) put(gvk schema.GroupVersionKind, path, id, description string, obj any) {
	m.add("put", gvk, route{
		method: http.MethodPut, path: path, id: id, description: description,
		parameters: append(slices.Clone(updateParameters), body(true)),
		body:       obj, answer: obj, codes: []int{http.StatusOK, http.StatusCreated},
	})
}

func (m *maker) patch(gvk schema.GroupVersionKind, path, id, description string, obj any) {
	m.add("patch", gvk, route{
		method: http.MethodPatch, path: path, id: id, description: description,
		parameters: append(slices.Clone(patchParameters), body(true)), consumes: patchTypes,
		body: metav1.Patch{}, answer: obj, codes: []int{http.StatusOK, http.StatusCreated},
	})
}

// subresource adds the operations on a subresource.
func (m *maker) subresource(s *Subresource) {
	_, _, object := m.paths("")
	path := object + "/" + s.Name
	gvk := s.gvk()
	name := m.scope() + m.r.Kind + title(s.Name)
	what := s.Name + " of the specified " + m.r.Kind
	if s.Connect != "" && s.Connect != "log" {
		m.connect(s, path, name)
		return
	}
	if s.Connect == "log" {
		m.add("get", gvk, route{
			method: http.MethodGet, path: path, id: "read" + m.group + name, description: "read " + what,
			parameters: query(sample(schema.GroupVersionKind{Version: "v1", Kind: "PodLogOptions"}).(documented)),
			produces:   append([]string{"text/plain"}, objectTypes...), answer: "", codes: []int{http.StatusOK},
		})
		return
	}
	obj := sample(gvk)
	for _, verb := range s.Verbs {
		switch verb {
		case "get":
			m.add("get", gvk, route{
				method: http.MethodGet, path: path, id: "read" + m.group + name,
				description: "read " + what, answer: obj, codes: []int{http.StatusOK},
			})
		case "create":
			m.add("post", gvk, route{
				method: http.MethodPost, path: path, id: "create" + m.group + name,
				description: "create " + what, parameters: append(slices.Clone(createParameters), body(true)),
				body: obj, answer: obj, codes: []int{http.StatusOK, http.StatusCreated, http.StatusAccepted},
			})
		case "update":
			m.put(gvk, path, "replace"+m.group+name, "replace "+what, obj)
		case "patch":
			m.patch(gvk, path, "patch"+m.group+name, "partially update "+what, obj)
		}
	}
}

// connectMethods are the methods of a stream or proxy, with their verbs.
var connectMethods = []struct{ verb, http, id string }{
	{"get", http.MethodGet, "Get"}, {"create", http.MethodPost, "Post"}, {"update", http.MethodPut, "Put"},
	{"patch", http.MethodPatch, "Patch"}, {"delete", http.MethodDelete, "Delete"},
}

// proxyMethods are methods of proxies only. They have no verb.
var proxyMethods = []struct{ verb, http, id string }{{"", http.MethodHead, "Head"}, {"", http.MethodOptions, "Options"}}

// connect adds the operations of a stream or proxy.
func (m *maker) connect(s *Subresource, path, name string) {
	gvk := s.gvk()
	var parameters []common.Parameter
	if options, ok := sample(gvk).(documented); ok {
		parameters = query(options)
	}
	methods := slices.Clone(connectMethods)
	if s.Connect == "proxy" {
		methods = append(methods, proxyMethods...)
	}
	for _, method := range methods {
		if method.verb != "" && !slices.Contains(s.Verbs, method.verb) {
			continue
		}
		r := route{
			method: method.http, path: path, id: "connect" + m.group + method.id + name,
			description: "connect " + method.http + " requests to " + s.Name + " of " + m.r.Kind,
			parameters:  slices.Clone(parameters), produces: anyType, answer: "", codes: []int{http.StatusOK},
		}
		m.add("connect", gvk, r)
		if s.Connect == "proxy" {
			r.path, r.id = path+"/{path}", r.id+"WithPath"
			r.parameters = without(parameters, "path")
			m.add("connect", gvk, r)
		}
	}
}

func article(kind, verb string) string {
	if strings.ContainsAny(kind[:1], "AEIOU") {
		return verb + " an " + kind
	}
	return verb + " a " + kind
}
