package kind_test

import (
	"reflect"
	"testing"

	"keelson.dev/proto/client"
	"keelson.dev/services/apiserver/internal/kind"
)

// TestClientKnowsWhatIsStored checks that the client's table agrees with the server's. Controllers
// that handle all kinds use it: the garbage collector and the namespace controller.
func TestClientKnowsWhatIsStored(t *testing.T) {
	stored := map[string]bool{}
	for _, k := range kind.All() {
		stored[k.GVR().String()] = !k.Virtual() && k.StoredAs == nil
		c := client.KindForResource(k.GVR())
		if c == nil {
			t.Errorf("the client's table lacks %s", k.GVR())
			continue
		}
		if c.Namespaced != k.Namespaced {
			t.Errorf("%s: the client has namespaced=%t", k.GVR(), c.Namespaced)
		}
		if c.GVK != k.GVK || c.ProtoName != k.ProtoName || reflect.TypeOf(c.New()) != reflect.TypeOf(k.New()) {
			t.Errorf("%s: the client has kind %s, message %s and type %T", k.GVR(), c.GVK, c.ProtoName, c.New())
		}
		for name, s := range k.Subresources {
			if s.New == nil {
				continue
			}
			obj, ok := s.New().(client.Object)
			if c := client.KindOf(obj); !ok || c == nil || c.GVK != s.GVK {
				t.Errorf("%s/%s: the client's table lacks %s", k.GVR(), name, s.GVK)
			}
		}
	}
	for _, c := range client.Kinds() {
		if c.Resource != "" && c.Stored() != stored[c.GVR().String()] {
			t.Errorf("%s: the client has stored=%t", c.GVR(), c.Stored())
		}
	}
}
