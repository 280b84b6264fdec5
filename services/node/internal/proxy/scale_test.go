package proxy

import (
	"context"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"

	"keelson.dev/services/node/internal/nettest"
)

func newRealSyncer() (*syncer, error) {
	nft, err := knftables.New(knftables.IPv4Family, TableName)
	if err != nil {
		return nil, err
	}
	s := newSyncer(testNode(), nft)
	s.full = true
	return s, nil
}

// many adds Services with five endpoints each to a table.
func many(t *table, services int) {
	for i := range services {
		svc := service(fmt.Sprintf("svc-%d", i), fmt.Sprintf("10.96.%d.%d", 1+i/250, 1+i%250))
		t.set(svc, slice(svc, 8080, fiveEndpoints(i)...))
	}
}

func fiveEndpoints(i int) []string {
	var out []string
	for j := range 5 {
		out = append(out, fmt.Sprintf("10.244.%d.%d@node-%d", 1+(i+j)%200, 2+i%200, (i+j)%10))
	}
	return out
}

// TestScale checks documented limits; an idle machine needs a third of them. The best of a
// few attempts counts, because the machine is shared.
func TestScale(t *testing.T) {
	const services, attempts = 1000, 5
	source := newTable()
	many(source, services)
	ns := nettest.New(t, "node")
	ns.Must(func() error {
		s, err := newRealSyncer()
		if err != nil {
			return err
		}
		first, change := time.Hour, time.Hour
		for i := range attempts {
			s.full = true
			start := time.Now()
			if _, err := s.sync(context.Background(), source, nil); err != nil {
				return err
			}
			first = min(first, time.Since(start))
			svc, _ := source.Service("ns", fmt.Sprintf("svc-%d", 100*i))
			source.set(svc, slice(svc, 8080, fiveEndpoints(100*i+1)...))
			start = time.Now()
			a, err := s.sync(context.Background(), source, []types.NamespacedName{keyOf(svc)})
			if err != nil {
				return err
			}
			if a.Operations == 0 || a.Operations > 20 {
				t.Errorf("one change took %d operations", a.Operations)
			}
			change = min(change, time.Since(start))
		}
		t.Logf("%d services of 5 endpoints: first sync %v, one change %v", services, first, change)
		if first > 2*time.Second {
			t.Errorf("first sync took %v, want under 2s", first)
		}
		if change > 100*time.Millisecond {
			t.Errorf("one change took %v, want under 100ms", change)
		}
		return nil
	})
}
