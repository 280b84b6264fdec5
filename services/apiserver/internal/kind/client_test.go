package kind_test

import (
	"testing"

	"keelson.dev/proto/client"
	"keelson.dev/services/apiserver/internal/kind"
)

// TestClientKnowsWhatIsStored checks the client's table, which controllers that handle all kinds
// use: the garbage collector and the namespace controller.
func TestClientKnowsWhatIsStored(t *testing.T) {
	stored := map[string]bool{}
	for _, k := range kind.All() {
		stored[k.GVR().String()] = k.Virtual == "" && k.StoredAs == nil
		if c := client.KindForResource(k.GVR()); c == nil {
			t.Errorf("the client's table lacks %s", k.GVR())
		} else if c.Namespaced != k.Namespaced {
			t.Errorf("%s: the client has namespaced=%t", k.GVR(), c.Namespaced)
		}
	}
	for _, c := range client.Kinds() {
		if c.Resource != "" && c.Stored() != stored[c.GVR().String()] {
			t.Errorf("%s: the client has stored=%t", c.GVR(), c.Stored())
		}
	}
}
