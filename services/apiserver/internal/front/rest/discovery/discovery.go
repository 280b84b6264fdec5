// Package discovery tells clients which groups, versions and resources there are,
// in the old form (a document for each group and version) and the aggregated one
// (everything at once).
//
// The documents are made once from the table of kinds and served as bytes. It must
// never list what the table does not have.
package discovery

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

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

// Documents are all discovery documents.
type Documents struct {
	byPath map[string]*document
	paths  []string
}

// document is one path's, in its forms.
type document struct {
	forms map[negotiate.DiscoveryFormat]*form
	// aggregated tells whether there is an aggregated form.
	aggregated bool
}

type form struct {
	contentType string
	etag        string
	body        []byte
}

// message is what the documents' types are.
type message interface {
	Marshal() ([]byte, error)
}

// New makes the documents. addresses are the servers that /api names.
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

// Paths are the paths of all documents.
func (d *Documents) Paths() []string { return d.paths }

// add makes a document in its forms; with groups also the aggregated ones.
func (d *Documents) add(path, kind string, old message, groups []*group) {
	doc := &document{forms: map[negotiate.DiscoveryFormat]*form{}, aggregated: groups != nil}
	d.byPath[path] = doc
	d.paths = append(d.paths, path)
	doc.encode("", schema.GroupVersionKind{Version: "v1", Kind: kind}, old)
	if groups == nil {
		return
	}
	v2 := aggregate(groups)
	doc.encode("v2", apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList"), v2)
	var beta apidiscoveryv2beta1.APIGroupDiscoveryList
	text, err := json.Marshal(v2) // the two versions have the same fields
	if err == nil {
		err = json.Unmarshal(text, &beta)
	}
	if err != nil {
		panic(err)
	}
	beta.APIVersion = apidiscoveryv2beta1.SchemeGroupVersion.String()
	doc.encode("v2beta1", apidiscoveryv2beta1.SchemeGroupVersion.WithKind("APIGroupDiscoveryList"), &beta)
}

// encode makes the encodings of one version of a document.
func (doc *document) encode(version string, gvk schema.GroupVersionKind, m message) {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // plain strings
	}
	asYAML, err := yaml.JSONToYAML(text)
	if err != nil {
		panic(err)
	}
	raw, err := m.Marshal()
	if err != nil {
		panic(err)
	}
	enveloped := codec.AppendEnvelopeHead(nil, gvk, len(raw))
	enveloped = append(append(enveloped, raw...), codec.EnvelopeTail...)
	for encoding, body := range map[negotiate.Encoding][]byte{
		negotiate.JSON: append(text, '\n'), negotiate.YAML: asYAML, negotiate.Protobuf: enveloped,
	} {
		f := &form{contentType: encoding.MediaType(), body: body}
		if version != "" {
			f.contentType += ";g=apidiscovery.k8s.io;v=" + version + ";as=APIGroupDiscoveryList"
			sum := sha512.Sum512(body)
			f.etag = strconv.Quote(hex.EncodeToString(sum[:]))
		}
		doc.forms[negotiate.DiscoveryFormat{Encoding: encoding, Version: version}] = f
	}
}

// Serve answers with the document of a path; false means that there is none.
func (d *Documents) Serve(w http.ResponseWriter, r *http.Request, p *route.Path) bool {
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
	doc := d.byPath[path]
	if doc == nil {
		return false
	}
	format, ok := negotiate.AcceptDiscovery(r.Header.Get("Accept"), doc.aggregated)
	if !ok {
		format = negotiate.DiscoveryFormat{}
	}
	f := doc.forms[format]
	header := w.Header()
	header.Set("Vary", "Accept")
	if f.etag != "" {
		header.Set("ETag", f.etag)
		header.Set("Cache-Control", "public")
		if r.Header.Get("If-None-Match") == f.etag {
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	header.Set("Content-Type", f.contentType)
	header.Set("Content-Length", strconv.Itoa(len(f.body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(f.body)
	return true
}
