package rest

import (
	"cmp"
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/front/rest/route"
	"keelson.dev/services/apiserver/internal/front/rest/table"
	"keelson.dev/services/apiserver/internal/resource"
)

// verbOfResource returns the verb of a request for a collection, an object or a subresource. watch is
// the parameter of the query.
func (x *exchange) verbOfResource(watch bool) string {
	verb := verbOf(x.r.Method, &x.path)
	if x.path.Watch && x.r.Method == http.MethodGet || verb == "list" && watch {
		return "watch"
	}
	return verb
}

// serveResource serves a request for a collection, an object or a subresource.
func (x *exchange) serveResource() {
	query := route.ParseQuery(x.r.URL.RawQuery)
	x.query = query
	x.verb = x.verbOfResource(query.Watch)
	verbs, connect := x.resolve()
	if x.kind != nil && x.kind.Deprecated != "" {
		x.warn([]string{x.kind.Deprecated})
	}
	switch {
	case verbs == nil:
		if denied := x.h.api.Authorize(x.ctx, x.verb, x.target()); denied != nil {
			x.fail(denied)
			return
		}
		x.notFound()
		return
	case connect != "":
		x.serveStream(connect, verbs)
		return
	case !slices.Contains(verbs, x.verb) || x.r.Method == http.MethodHead:
		x.refuse(x.verb, errMethod())
		return
	}
	purpose := negotiate.Read
	switch {
	case x.verb == "watch":
		purpose = negotiate.Watch
	case x.kind.Virtual() && !x.kind.Computed || x.posted():
		purpose = negotiate.Object // there is nothing to show in a table
	}
	accept := x.r.Header.Get("Accept")
	format, ok := negotiate.Accept(accept, purpose)
	if !ok {
		x.refuse(x.verb, x.errAccept(accept))
		return
	}
	x.format = format
	if err := x.errPartial(); err != nil {
		x.refuse(x.verb, err)
		return
	}
	if format.Transform == negotiate.Table {
		if x.include, ok = table.ParseInclude(query.IncludeObject); !ok {
			x.refuse(x.verb, errIncludeObject(query.IncludeObject))
			return
		}
	}
	if err := x.errQuery(); err != nil {
		x.refuse(x.verb, apierrors.NewBadRequest(err.Error()))
		return
	}
	if x.verb == "watch" {
		x.watch()
		return
	}
	if !x.h.bounds.requests.Enter(1) {
		x.fail(errBusy("requests"))
		return
	}
	defer x.h.bounds.requests.Leave(1)
	cancel, err := x.timeout()
	if err != nil {
		x.refuse(x.verb, err)
		return
	}
	defer cancel()
	switch x.verb {
	case "get":
		x.get()
	case "list":
		x.list()
	case "create":
		x.create()
	case "update":
		x.update()
	case "patch":
		x.patch()
	case "delete":
		x.delete()
	case "deletecollection":
		x.deleteCollection()
	}
}

var (
	streamTypes = []string{negotiate.MediaJSON + ";stream=watch", negotiate.MediaProtobuf + ";stream=watch"}
	// listTypes are the media types in errors of lists and watches.
	listTypes = append(slices.Clip(negotiate.BodyTypes), streamTypes...)
)

// errAccept returns the error for an Accept header that cannot be satisfied for an object.
func (x *exchange) errAccept(accept string) error {
	if x.verb == "patch" {
		if _, ok := negotiate.Patch(x.r.Header.Get("Content-Type")); !ok {
			return errPatchType()
		}
	}
	if x.verb == "watch" {
		if _, ok := negotiate.Accept(accept, negotiate.Read); ok {
			return errNotAcceptable(streamTypes)
		}
	}
	if x.verb == "list" || x.verb == "watch" {
		return x.unacceptable(listTypes)
	}
	return x.unacceptable(negotiate.BodyTypes)
}

// errQuery returns the error of a number in the query that the verb reads, or nil.
func (x *exchange) errQuery() error {
	switch x.verb {
	case "list", "watch", "deletecollection":
		return cmp.Or(x.query.BadTimeoutSeconds, x.query.BadLimit)
	}
	return nil
}

// errPartial refuses PartialObjectMetadata for a list and PartialObjectMetadataList for an
// object. Kubernetes notices this only after a write is done.
func (x *exchange) errPartial() error {
	if x.format.Transform != negotiate.PartialMetadata {
		return nil
	}
	switch x.verb {
	case "list", "deletecollection":
		if !x.format.List {
			return errStatus(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
				"you requested PartialObjectMetadata, but the requested object is a list ("+x.kind.GVK.Kind+"List)")
		}
	case "get", "create", "update", "patch":
		if x.format.List {
			return errStatus(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
				"you requested PartialObjectMetadataList, but the requested object is not a list ("+x.kind.GVK.Kind+")")
		}
	}
	return nil
}

// verbOf returns the verb of a method on a path.
func verbOf(method string, p *route.Path) string {
	switch method {
	case http.MethodGet, http.MethodHead:
		if p.Name == "" {
			return "list"
		}
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		if p.Name == "" {
			return "deletecollection"
		}
		return "delete"
	}
	return ""
}

// namedVerbs are the verbs of an object, and collectiveVerbs those of a collection.
var (
	namedVerbs      = []string{"get", "update", "patch", "delete"}
	collectiveVerbs = []string{"create", "list", "watch", "deletecollection"}
	allVerbs        = []string{"list", "watch"}
	watchVerbs      = []string{"watch"}
)

// resolve finds the row of the path and returns the verbs that are served there; nil means that
// the path does not exist. connect is the stream of a subresource that is one.
func (x *exchange) resolve() (verbs []string, connect resource.Stream) {
	p := &x.path
	kind := x.h.api.Table().ByResource(x.target().Resource)
	if kind == nil {
		return nil, ""
	}
	x.kind = kind
	switch {
	case kind.Namespaced && p.Namespace == "" && p.Name != "":
		return nil, ""
	case !kind.Namespaced && p.Namespace != "":
		return nil, ""
	}
	if p.Subresource != "" {
		sub, ok := kind.Subresources[p.Subresource]
		if !ok || sub.Projection != nil || p.Watch || p.Rest != "" && sub.Connect != resource.Proxy {
			return nil, ""
		}
		if sub.Connect != "" {
			return sub.Verbs, sub.Connect
		}
		return sub.Verbs, ""
	}
	served := kind.Verbs()
	switch {
	case p.Watch:
		verbs = watchVerbs
	case p.Name != "":
		verbs = namedVerbs
	case kind.Namespaced && p.Namespace == "":
		verbs = allVerbs
	default:
		verbs = collectiveVerbs
	}
	if len(served) != len(resource.AllVerbs) {
		verbs = intersect(verbs, served)
	}
	return verbs, ""
}

// posted reports whether the request is for a subresource that objects are posted to.
func (x *exchange) posted() bool {
	s := x.kind.Subresources[x.path.Subresource]
	return s != nil && s.Posted()
}

// intersect returns the verbs that are served. It never returns nil.
func intersect(verbs, served []string) []string {
	out := make([]string, 0, len(verbs))
	for _, v := range verbs {
		if slices.Contains(served, v) {
			out = append(out, v)
		}
	}
	return out
}
