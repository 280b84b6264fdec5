package document

import (
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/common"
)

// pretty is a parameter of every operation.
var pretty = parameter{
	name: "pretty", dataType: "string", kind: common.QueryParameterKind,
	description: "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget).",
}

func pathParameter(name, description string) common.Parameter {
	return parameter{name: name, description: description, dataType: "string", kind: common.PathParameterKind, required: true}
}

// body is the parameter for the object.
func body(required bool) common.Parameter {
	return parameter{name: "body", kind: common.BodyParameterKind, dataType: "string", required: required}
}

// documented is an options type with documentation of its fields.
type documented interface{ SwaggerDoc() map[string]string }

// query returns the query parameters for an options type, in the order of its fields.
func query(options documented, except ...string) []common.Parameter {
	docs := options.SwaggerDoc()
	var out []common.Parameter
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" || name == "kind" || name == "apiVersion" {
				continue
			}
			ft := f.Type
			for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice {
				ft = ft.Elem()
			}
			p := parameter{name: name, description: docs[name], kind: common.QueryParameterKind, dataType: "string"}
			switch ft.Kind() {
			case reflect.Bool:
				p.dataType = "boolean"
			case reflect.Int, reflect.Int32, reflect.Int64:
				p.dataType = "integer"
			case reflect.Struct:
				if ft != reflect.TypeFor[metav1.Time]() {
					continue // only possible in a body
				}
			}
			out = append(out, p)
		}
	}
	t := reflect.TypeOf(options)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	walk(t)
	return without(out, except...)
}

var (
	listParameters   = query(metav1.ListOptions{})
	createParameters = query(metav1.CreateOptions{})
	updateParameters = query(metav1.UpdateOptions{})
	patchParameters  = query(metav1.PatchOptions{})
	deleteParameters = query(metav1.DeleteOptions{}, "preconditions")
	// collectionParameters are the parameters of deletecollection: which objects to delete, and
	// how.
	collectionParameters = append(without(deleteParameters), without(listParameters, "watch", "allowWatchBookmarks")...)
)

// Media types.
var (
	objectTypes = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	listTypes   = append([]string{"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"}, objectTypes...)
	patchTypes  = []string{
		"application/json-patch+json", "application/merge-patch+json",
		"application/strategic-merge-patch+json", "application/apply-patch+yaml",
	}
	anyType = []string{"*/*"}
)
