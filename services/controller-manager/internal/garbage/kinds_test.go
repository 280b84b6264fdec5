package garbage

import (
	"testing"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/controller-manager/internal/cluster"
)

// TestEveryKindIsInTheGraph: what is in no cache of the graph is never collected, and
// keeps an owner that is deleted in the foreground forever.
func TestEveryKindIsInTheGraph(t *testing.T) {
	_, c := clienttest.StartServer(t)
	s := cluster.New(c, nil)
	caches := map[*client.Kind]int{}
	for _, w := range whole(s) {
		caches[w.kind]++
	}
	for _, m := range NewMetadata(s) {
		caches[m.Kind()]++
	}
	for _, k := range client.Kinds() {
		want := 0
		if k.Stored() && k.Resource != "events" {
			want = 1
		}
		if caches[k] != want {
			t.Errorf("%s: %d caches, want %d", k.GVR(), caches[k], want)
		}
	}
	g := New(s, NewMetadata(s))
	if want := len(caches) + 1; len(g.Sources) != want { // Leases are in two
		t.Errorf("%d sources, want %d", len(g.Sources), want)
	}
}
