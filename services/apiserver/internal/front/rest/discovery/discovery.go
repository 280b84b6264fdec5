// Package discovery serves the documents that list the groups, versions and resources, in the
// unaggregated form (a document for each group and version) and in the aggregated one.
//
// The documents are built from the table of kinds when they are first requested, and then served
// as bytes. They must never list anything that is not in the table.
package discovery

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"sync"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apidiscoveryv2beta1 "k8s.io/api/apidiscovery/v2beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/front/rest/route"
	"keelson.dev/services/apiserver/internal/resource"
)

// Documents holds all discovery documents.
type Documents struct {
	byPath map[string]*document
	paths  []string
}

// document is the document of a path. Its forms are built when they are first requested.
type document struct {
	sources map[string]source // by version of the aggregated form; "" is the unaggregated form
	mu      sync.Mutex
	forms   map[negotiate.DiscoveryFormat]*form
}

// source builds one version of a document.
type source struct {
	gvk  schema.GroupVersionKind
	make func() message
}

type form struct {
	contentType string
	etag        string
	body        []byte
}

// message is implemented by the documents' types.
type message interface {
	Marshal() ([]byte, error)
}

// New returns the documents. addresses are the server addresses that /api lists.
func New(t *resource.Table, addresses []string) *Documents {
	d := &Documents{byPath: map[string]*document{}}
	groups := collect(t)

	versions := &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{}}
	list := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	for _, a := range addresses {
		versions.ServerAddressByClientCIDRs = append(versions.ServerAddressByClientCIDRs,
			metav1.ServerAddressByClientCIDR{ClientCIDR: "0.0.0.0/0", ServerAddress: a})
	}
	core, rest := []*group{}, []*group{}
	for _, g := range groups {
		if g.name == "" {
			core = append(core, g)
			for _, v := range g.versions {
				versions.Versions = append(versions.Versions, v.name)
				d.add("/api/"+v.name, "APIResourceList", resourceList(g, v), nil)
			}
			continue
		}
		rest = append(rest, g)
		list.Groups = append(list.Groups, apiGroup(g))
		single := apiGroup(g)
		single.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
		d.add("/apis/"+g.name, "APIGroup", &single, nil)
		for _, v := range g.versions {
			d.add("/apis/"+g.name+"/"+v.name, "APIResourceList", resourceList(g, v), nil)
		}
	}
	d.add("/api", "APIVersions", versions, core)
	d.add("/apis", "APIGroupList", list, rest)
	slices.Sort(d.paths)
	return d
}

// Paths returns the paths of all documents.
func (d *Documents) Paths() []string { return d.paths }

// add adds a document. If groups is not nil, it also has the aggregated forms.
func (d *Documents) add(path, kind string, old message, groups []*group) {
	doc := &document{
		sources: map[string]source{"": {schema.GroupVersionKind{Version: "v1", Kind: kind}, func() message { return old }}},
		forms:   map[negotiate.DiscoveryFormat]*form{},
	}
	d.byPath[path] = doc
	d.paths = append(d.paths, path)
	if groups == nil {
		return
	}
	doc.sources["v2"] = source{
		apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList"),
		func() message { return aggregate(groups) },
	}
	doc.sources["v2beta1"] = source{
		apidiscoveryv2beta1.SchemeGroupVersion.WithKind("APIGroupDiscoveryList"),
		func() message { return beta(aggregate(groups)) },
	}
}

// beta converts to the older version, which has the same fields.
func beta(v2 *apidiscoveryv2.APIGroupDiscoveryList) message {
	out := &apidiscoveryv2beta1.APIGroupDiscoveryList{}
	text, err := json.Marshal(v2)
	if err == nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		panic(err) // plain strings
	}
	out.APIVersion = apidiscoveryv2beta1.SchemeGroupVersion.String()
	return out
}

// form returns one form of the document.
func (doc *document) form(f negotiate.DiscoveryFormat) (*form, error) {
	doc.mu.Lock()
	defer doc.mu.Unlock()
	if made := doc.forms[f]; made != nil {
		return made, nil
	}
	s := doc.sources[f.Version]
	body, err := encode(s.make(), s.gvk, f)
	if err != nil {
		return nil, err
	}
	made := &form{contentType: f.Encoding.MediaType(), body: body}
	if f.Version != "" {
		made.contentType += ";g=apidiscovery.k8s.io;v=" + f.Version + ";as=APIGroupDiscoveryList"
		sum := sha512.Sum512(body)
		made.etag = strconv.Quote(hex.EncodeToString(sum[:]))
	}
	doc.forms[f] = made
	return made, nil
}

func encode(m message, gvk schema.GroupVersionKind, f negotiate.DiscoveryFormat) ([]byte, error) {
	switch {
	case f.Encoding == negotiate.Protobuf:
		raw, err := m.Marshal()
		if err != nil {
			return nil, err
		}
		body := codec.AppendEnvelopeHead(nil, gvk, len(raw))
		return append(append(body, raw...), codec.EnvelopeTail...), nil
	case f.Pretty:
		return json.MarshalIndent(m, "", "  ")
	}
	text, err := json.Marshal(m)
	if err != nil || f.Encoding == negotiate.JSON {
		return append(text, '\n'), err
	}
	return yaml.JSONToYAML(text)
}

// ErrNotAcceptable is returned by Serve if no form is acceptable. It has then written nothing.
var ErrNotAcceptable = errors.New("no acceptable form")

// Has reports whether a path has a document.
func (d *Documents) Has(p *route.Path) bool { return d.document(p) != nil }

// document returns the document of a path, or nil.
func (d *Documents) document(p *route.Path) *document {
	path := "/apis"
	switch p.Form {
	case route.APIVersions:
		path = "/api"
	case route.APIGroup:
		path = "/apis/" + p.Group
	case route.APIResources:
		if path = "/apis/" + p.Group + "/" + p.Version; p.Group == "" {
			path = "/api/" + p.Version
		}
	}
	return d.byPath[path]
}

// Serve writes the document of a path that has one. JSON is indented if pretty is true.
func (d *Documents) Serve(w http.ResponseWriter, r *http.Request, p *route.Path, pretty bool) error {
	doc := d.document(p)
	format, ok := negotiate.AcceptDiscovery(r.Header.Get("Accept"), len(doc.sources) > 1)
	if !ok {
		return ErrNotAcceptable
	}
	format.Pretty = format.Pretty || pretty && format.Encoding == negotiate.JSON
	f, err := doc.form(format)
	if err != nil {
		return err
	}
	header := w.Header()
	if f.etag != "" {
		header.Set("Vary", "Accept")
		header.Set("ETag", f.etag)
		header.Set("Cache-Control", "public")
		if r.Header.Get("If-None-Match") == f.etag {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	header.Set("Content-Type", f.contentType)
	header.Set("Content-Length", strconv.Itoa(len(f.body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(f.body)
	return nil
}
