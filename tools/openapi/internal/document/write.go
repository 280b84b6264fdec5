package document

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// version is the version of the API that the documents describe.
const version = "v1.37.2"

// kinds returns the groups, versions and kinds of each definition.
func kinds(table []Resource) map[string][]schema.GroupVersionKind {
	out := map[string][]schema.GroupVersionKind{}
	gvs := groupVersions(table)
	add := func(gvk schema.GroupVersionKind, obj any) {
		name := util.GetCanonicalTypeName(obj)
		if !slices.Contains(out[name], gvk) {
			out[name] = append(out[name], gvk)
		}
	}
	for gvk, t := range types().AllKnownTypes() {
		obj := reflect.New(t).Interface()
		if slices.Contains(gvs, gvk.GroupVersion()) && !strings.HasPrefix(t.PkgPath(), "k8s.io/apimachinery") {
			add(gvk, obj)
		}
	}
	for i := range table { // kinds of subresources may be in groups that serve nothing else
		for j := range table[i].Subresources {
			gvk := table[i].Subresources[j].gvk()
			add(gvk, sample(gvk))
		}
	}
	for kind, obj := range openTypes {
		for _, gv := range gvs {
			add(gv.WithKind(kind), obj)
		}
	}
	add(schema.GroupVersionKind{Version: "v1", Kind: "Status"}, sample(schema.GroupVersionKind{Version: "v1", Kind: "Status"}))
	for name := range out {
		slices.SortFunc(out[name], func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	}
	return out
}

// namer returns a function that names definitions and lists their kinds in an extension.
func namer(table []Resource) func(string) (string, spec.Extensions) {
	byName := kinds(table)
	return func(name string) (string, spec.Extensions) {
		friendly := name
		if strings.Contains(name, "/") {
			friendly = util.ToRESTFriendlyName(name)
		}
		gvks := byName[name]
		if gvks == nil {
			return friendly, nil
		}
		list := make([]any, len(gvks))
		for i, gvk := range gvks {
			list[i] = map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind}
		}
		return friendly, spec.Extensions{"x-kubernetes-group-version-kind": list}
	}
}

func idAndTags(r common.Route) (string, []string, error) {
	return r.OperationName(), r.(*route).tags, nil
}

// Write writes all documents to a directory, which it empties first.
func Write(table []Resource, definitions common.GetOpenAPIDefinitions, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "v3"), 0o755); err != nil {
		return err
	}
	info := &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: version}}
	if err := writeV2(table, definitions, info, dir); err != nil {
		return fmt.Errorf("version 2: %w", err)
	}
	index := map[string]string{}
	for _, gv := range groupVersions(table) {
		hash, err := writeV3(table, gv, definitions, info, dir)
		if err != nil {
			return fmt.Errorf("version 3 of %s: %w", gv, err)
		}
		index[strings.TrimPrefix(prefix(gv), "/")] = hash
	}
	text, err := json.MarshalIndent(index, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	text, err = json.MarshalIndent(table, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "table.json"), append(text, '\n'), 0o644)
}

func writeV2(table []Resource, definitions common.GetOpenAPIDefinitions, info *spec.Info, dir string) error {
	var containers []common.RouteContainer
	for _, gv := range groupVersions(table) {
		containers = append(containers, operations(table, gv))
	}
	swagger, err := builder.BuildOpenAPISpecFromRoutes(containers, &common.Config{
		ProtocolList:                   []string{"https"},
		Info:                           info,
		GetDefinitions:                 definitions,
		GetDefinitionName:              namer(table),
		GetOperationIDAndTagsFromRoute: idAndTags,
		CommonResponses: map[int]spec.Response{
			401: {ResponseProps: spec.ResponseProps{Description: "Unauthorized"}},
		},
		SecurityDefinitions: &spec.SecurityDefinitions{"BearerToken": &spec.SecurityScheme{SecuritySchemeProps: spec.SecuritySchemeProps{
			Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
		}}},
		DefaultSecurity: []map[string][]string{{"BearerToken": {}}},
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(swagger)
	if err != nil {
		return err
	}
	binary, err := handler.ToProtoBinary(text)
	if err != nil {
		return err
	}
	if err := compress(filepath.Join(dir, "v2.json.gz"), text); err != nil {
		return err
	}
	return compress(filepath.Join(dir, "v2.pb.gz"), binary)
}

func writeV3(table []Resource, gv schema.GroupVersion, definitions common.GetOpenAPIDefinitions, info *spec.Info, dir string) (hash string, err error) {
	doc, err := builder3.BuildOpenAPISpecFromRoutes([]common.RouteContainer{operations(table, gv)}, &common.OpenAPIV3Config{
		Info:                           info,
		GetDefinitions:                 definitions,
		GetDefinitionName:              namer(table),
		GetOperationIDAndTagsFromRoute: idAndTags,
		CommonResponses: map[int]*spec3.Response{
			401: {ResponseProps: spec3.ResponseProps{Description: "Unauthorized"}},
		},
		SecuritySchemes: spec3.SecuritySchemes{"BearerToken": &spec3.SecurityScheme{SecuritySchemeProps: spec3.SecuritySchemeProps{
			Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
		}}},
		DefaultSecurity: []map[string][]string{{"BearerToken": {}}},
	})
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return "", err
	}
	binary, err := handler3.ToV3ProtoBinary(text)
	if err != nil {
		return "", err
	}
	base := filepath.Join(dir, "v3", strings.ReplaceAll(strings.TrimPrefix(prefix(gv), "/"), "/", "__"))
	if err := compress(base+".json.gz", text); err != nil {
		return "", err
	}
	if err := compress(base+".pb.gz", binary); err != nil {
		return "", err
	}
	sum := sha512.Sum512(text)
	return fmt.Sprintf("%X", sum[:32]), nil
}

// compress writes a compressed file. The same data results in the same bytes.
func compress(path string, data []byte) error {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, buf.Bytes(), 0o644)
}
