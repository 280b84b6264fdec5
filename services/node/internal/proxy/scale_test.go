package proxy

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
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

// load returns how long nft takes to load as many services and endpoints in the plainest form.
func load(services int) (time.Duration, error) {
	var script strings.Builder
	script.WriteString("table ip reference {\n")
	for i := range services {
		fmt.Fprintf(&script, "chain c%d {\n", i)
		for _, e := range fiveEndpoints(i) {
			address, _, _ := strings.Cut(e, "@")
			fmt.Fprintf(&script, "numgen random mod 5 == 0 ip saddr %s meta mark set 1\n", address)
		}
		script.WriteString("}\n")
	}
	script.WriteString("}\ndelete table ip reference\n")
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script.String())
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("nft: %w: %s", err, out)
	}
	return time.Since(start), nil
}

// TestScale compares a first sync with a plain load of as many rules by nft, and a change of
// one Service with the first sync. The best of a few attempts counts, because the machine is
// shared.
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
		plain, first, change := time.Hour, time.Hour, time.Hour
		for i := range attempts {
			took, err := load(services)
			if err != nil {
				return err
			}
			plain = min(plain, took)
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
		t.Logf("%d services of 5 endpoints: plain load %v, first sync %v, one change %v", services, plain, first, change)
		if first > 4*plain {
			t.Errorf("the first sync took %v, a plain load of as many rules %v", first, plain)
		}
		if change > first/5 {
			t.Errorf("one change took %v, the first sync %v", change, first)
		}
		return nil
	})
}
