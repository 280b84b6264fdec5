package kind_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

// TestDefaultsAreSettled checks that the defaults can complete objects that are read from the
// store: Kubernetes' responses have all defaults, so the defaults must not change them.
func TestDefaultsAreSettled(t *testing.T) {
	table := resource.NewTable(kind.All()...)
	for file, c := range readCases(t) {
		k := table.ByResource(schema.GroupVersionResource{Group: c.Group, Version: c.Version, Resource: c.Resource})
		if k.Virtual() || k.Rules.Default == nil {
			continue
		}
		data, err := os.ReadFile(strings.TrimSuffix(file, ".yaml") + ".answers.json")
		if err != nil {
			t.Fatal(err)
		}
		answers := map[string]answer{}
		if err := json.Unmarshal(data, &answers); err != nil {
			t.Fatal(err)
		}
		for name, a := range answers {
			if a.Object == nil {
				continue
			}
			text, err := json.Marshal(a.Object)
			if err != nil {
				t.Fatal(err)
			}
			obj := k.New()
			if err := json.Unmarshal(text, obj); err != nil {
				t.Fatal(err)
			}
			before := obj.DeepCopyObject()
			k.Rules.Default(obj)
			if !equality.Semantic.DeepEqual(before, obj) {
				after, _ := json.Marshal(obj)
				t.Errorf("%s: %s: the defaults changed\n%s\nto\n%s", k.Resource, name, text, after)
			}
		}
	}
}
