//go:build observe

package kind_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

// skipPath matches fields that Keelson refuses entirely.
var skipPath = regexp.MustCompile(`^(metadata|status|kind|apiVersion)|ephemeralContainers|gcePersistentDisk|awsElasticBlockStore|gitRepo|nfs|iscsi|glusterfs|rbd|flexVolume|cinder|cephfs|flocker|\.fc|azure|vsphere|quobyte|photon|portworx|scaleIO|storageos|\.csi|\.ephemeral\.|volumes\[0\]\.image|windowsOptions|fileKeyRef|podCertificate|clusterTrustBundle|resourceClaims|volumeDevices|hostUsers|runtimeClassName|overhead|\.claims|spec\.resources|template\.spec\.resources|evictionResponders|schedulingGroup|dataSource|initContainers`)

func leaves(t reflect.Type, path string, depth int, out *[]string, kinds map[string]reflect.Type) {
	if depth > 14 || (path != "" && skipPath.MatchString(path)) {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	kinds[path] = t
	switch t.String() {
	case "v1.Time", "v1.MicroTime":
		return
	case "resource.Quantity", "intstr.IntOrString":
		*out = append(*out, path)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if path != "" {
			*out = append(*out, path)
		}
		for i := range t.NumField() {
			f := t.Field(i)
			tag := strings.Split(f.Tag.Get("json"), ",")[0]
			if tag == "-" {
				continue
			}
			p := path
			if tag != "" {
				if p != "" {
					p += "."
				}
				p += tag
			}
			if tag == "" {
				leaves(f.Type, path, depth, out, kinds)
				continue
			}
			leaves(f.Type, p, depth+1, out, kinds)
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return
		}
		*out = append(*out, path)
		leaves(t.Elem(), path+"[0]", depth+1, out, kinds)
	default:
		*out = append(*out, path)
	}
}

func values(t reflect.Type) []any {
	switch t.String() {
	case "resource.Quantity":
		return []any{"-1", "0", "7", "1500m"}
	case "intstr.IntOrString":
		return []any{-1, 0, 70000, "A B", "abc", "50%"}
	}
	switch t.Kind() {
	case reflect.String:
		return []any{"", "A B", "zz", "a/b"}
	case reflect.Int32, reflect.Int64, reflect.Int:
		return []any{-1, 0, 1, 70000}
	case reflect.Bool:
		return []any{true, false}
	case reflect.Map:
		if t.Elem().Kind() == reflect.String {
			return []any{map[string]any{"a b": "c d"}, map[string]any{"k": "v"}, map[string]any{}}
		}
		return []any{map[string]any{"a b": "1"}, map[string]any{"cpu": "1"}, map[string]any{}}
	case reflect.Slice:
		return []any{[]any{}}
	case reflect.Struct:
		return []any{map[string]any{}}
	}
	return nil
}

// TestMutations sends every field with every kind of invalid value to a Kubernetes 1.37 API
// server, and compares the responses with the kinds':
//
//	go test -tags observe ./internal/kind -run Mutations -v -observe https://HOST:PORT -token TOKEN
//
// It prints each difference, except for what Keelson does not support. ONLY=pods selects a single
// kind.
func TestMutations(t *testing.T) {
	only := os.Getenv("ONLY")
	seenDiff := map[string]bool{}
	table := resource.NewTable(kind.All()...)
	for file, c := range readCases(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		if !regexp.MustCompile(only).MatchString(name) {
			continue
		}
		k := table.ByResource(schema.GroupVersionResource{Group: c.Group, Version: c.Version, Resource: c.Resource})
		if k.Virtual() {
			continue
		}
		base := "/apis/" + c.Group + "/" + c.Version
		if c.Group == "" {
			base = "/api/" + c.Version
		}
		if k.Namespaced {
			base += "/namespaces/observed"
		}
		base += "/" + c.Resource
		var paths []string
		kinds := map[string]reflect.Type{}
		leaves(reflect.TypeOf(k.New()), "", 0, &paths, kinds)
		bases := make([]string, 0)
		for b := range c.Bases {
			bases = append(bases, b)
		}
		slices.Sort(bases)
		asked, bad := 0, 0
		for _, b := range bases {
			for _, p := range paths {
				if name != "pods" && strings.Contains(p, "template.spec.") && !strings.HasPrefix(p, "spec.template.spec.restart") {
					continue
				}
				for _, v := range values(kinds[p]) {
					q := question{Base: b, Set: map[string]any{p: v}}
					object := change(t, c.Bases[b], q.Set)
					if k.Namespaced {
						put(object, "metadata.namespace", "observed")
					}
					data, _ := json.Marshal(object)
					if json.Unmarshal(data, k.New()) != nil {
						continue
					}
					want := put1(t, "POST", base, object, &c)
					got := ask(t, k, &c, q)
					asked++
					if strings.Contains(fmt.Sprint(got.Errors), "not supported by Keelson") {
						continue
					}
					w, g := plain(want.Errors), plain(got.Errors)
					if len(w) == 1 && (strings.HasPrefix(w[0], "4") || strings.HasPrefix(w[0], "5")) {
						continue
					}
					slices.Sort(want.Warnings)
					slices.Sort(got.Warnings)
					var diff []string
					if !slices.Equal(w, g) {
						for _, x := range w {
							if !slices.Contains(g, x) {
								diff = append(diff, "missing "+x)
							}
						}
						for _, x := range g {
							if !slices.Contains(w, x) {
								diff = append(diff, "extra "+x)
							}
						}
					} else if !slices.Equal(want.Warnings, got.Warnings) && len(w) == 0 {
						diff = append(diff, fmt.Sprintf("warn %q\n     got  %q", want.Warnings, got.Warnings))
					} else if len(w) == 0 && len(g) == 0 {
						strip(want.Object, c.Volatile)
						strip(got.Object, c.Volatile)
						diff = differences("", want.Object, got.Object)
					}
					if len(diff) > 0 {
						bad++
						t.Fail()
						key := p + regexp.MustCompile(`"[^"]*"`).ReplaceAllString(strings.Join(diff, ""), "")
						if !seenDiff[key] {
							seenDiff[key] = true
							t.Logf("%s: %s with %s = %v\n     %s", name, b, p, v, strings.Join(diff, "\n     "))
						}
					}
				}
			}
		}
		t.Logf("%s: %d tried, %d differ", name, asked, bad)
	}
}
