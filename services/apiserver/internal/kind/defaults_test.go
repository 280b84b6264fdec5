package kind_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

var updateDefaults = flag.Bool("update-defaults", false, "rewrite testdata/defaults.json")

// defaulted is what testdata/defaults.json records.
type defaulted struct {
	Version uint64 `json:"version"`
	// Objects maps the digest of each case's object to that of the object with defaults.
	Objects map[string]string `json:"objects"`
}

// TestDefaultsVersion checks that resource.DefaultsVersion grows with each change of a
// default: objects stored with an equal version are not completed when they are read.
func TestDefaultsVersion(t *testing.T) {
	const file = "testdata/defaults.json"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var recorded defaulted
	if err := json.Unmarshal(data, &recorded); err != nil {
		t.Fatal(err)
	}
	objects, names := defaultCases(t)
	now := defaulted{Version: resource.DefaultsVersion, Objects: objects}
	if recorded.Version == now.Version {
		for object, with := range now.Objects {
			if was, ok := recorded.Objects[object]; ok && was != with {
				t.Errorf("%s: the defaults have changed: increase resource.DefaultsVersion", names[object])
			}
		}
	}
	if t.Failed() || recorded.Version == now.Version && maps.Equal(recorded.Objects, now.Objects) {
		return
	}
	if !*updateDefaults {
		t.Fatalf("%s does not match version %d and the present cases: run this test with -update-defaults", file, now.Version)
	}
	if data, err = json.MarshalIndent(now, "", " "); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// defaultCases applies the defaults to the objects of all cases whose kinds have some. names
// has the case of each object's digest.
func defaultCases(t *testing.T) (objects, names map[string]string) {
	table := resource.NewTable(kind.All()...)
	objects, names = map[string]string{}, map[string]string{}
	all := readCases(t)
	for _, file := range slices.Sorted(maps.Keys(all)) {
		c := all[file]
		k := table.ByResource(schema.GroupVersionResource{Group: c.Group, Version: c.Version, Resource: c.Resource})
		if k.Virtual() || k.Rules.Default == nil {
			continue
		}
		for _, q := range c.Cases {
			obj := k.New()
			text, err := json.Marshal(change(t, c.Bases[q.Base], q.Set))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(q.name(), "ago ") || json.Unmarshal(text, obj) != nil {
				continue // contains the present time, or cannot be decoded
			}
			// Two kinds may have equal objects.
			object := c.Resource + "." + c.Group + " " + digest(t, obj)
			objects[object], names[object] = withDefaults(t, k, obj), filepath.Base(file)+": "+q.name()
		}
	}
	return objects, names
}

// withDefaults returns the digest of obj with k's defaults. Defaults are written for valid
// objects, and may panic on others.
func withDefaults(t *testing.T, k *resource.Kind, obj resource.Object) (sum string) {
	defer func() {
		if recover() != nil {
			sum = "panic"
		}
	}()
	k.Rules.Default(obj)
	return digest(t, obj)
}

func digest(t *testing.T, obj resource.Object) string {
	text, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}
