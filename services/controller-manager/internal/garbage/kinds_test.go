package garbage

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/controller-manager/internal/cluster"
)

// An object of a kind that is in no cache of the graph would never be collected, and would
// keep an owner that is deleted in the foreground forever. The graph has each kind once,
// whether or not other controllers have caches of their own.
func TestEveryKindIsInTheGraph(t *testing.T) {
	for name, others := range map[string]func(*cluster.Cluster){
		"alone": func(*cluster.Cluster) {},
		"with others": func(s *cluster.Cluster) {
			cluster.Of[*corev1.Pod](s)
			cluster.NodeLeases(s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, c := clienttest.StartServer(t)
			s := cluster.New(c, nil, nil)
			New(s) // asks for metadata of the kinds that others asks for next
			others(s)
			caches := map[*client.Kind]int{}
			for _, cache := range s.Seal() {
				caches[cache.Kind()]++
			}
			total := 0
			for _, k := range client.Kinds() {
				want := 0
				if k.Stored() && k.Resource != "events" {
					want = 1
				}
				if name == "with others" && k == cluster.NodeLeases(s).Kind() {
					want = 2 // the nodes' Leases, and metadata of the others
				}
				if caches[k] != want {
					t.Errorf("%s: %d caches, want %d", k.GVR(), caches[k], want)
				}
				total += want
			}
			if g := New(s); len(g.Sources) != total {
				t.Errorf("%d sources, want %d", len(g.Sources), total)
			}
		})
	}
}
