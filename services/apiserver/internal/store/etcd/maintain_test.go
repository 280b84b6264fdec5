package etcd

import (
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/store"
)

// The revisions at which the store is compacted, at checks that are a minute apart.
func TestRetention(t *testing.T) {
	r := Retention{Age: 5 * time.Minute, Most: 3000, Least: time.Minute, Worth: 1000}
	for name, c := range map[string]struct {
		revs []store.Revision // the newest revision, each minute
		want []store.Revision
	}{
		"a quiet store keeps five to ten minutes": {
			[]store.Revision{10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110},
			[]store.Revision{0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 60},
		},
		"a busy store keeps Most revisions": {
			[]store.Revision{1500, 3000, 4500, 6000, 7500},
			[]store.Revision{0, 0, 1500, 3000, 4500},
		},
		"a very busy store keeps a minute": {
			[]store.Revision{10000, 20000, 30000, 30100, 30200},
			[]store.Revision{0, 10000, 20000, 27100, 0},
		},
		"too few revisions to be worth a compaction": {
			[]store.Revision{3500, 4100, 4400, 4700},
			[]store.Revision{0, 1100, 0, 0},
		},
		"nothing was written": {
			[]store.Revision{5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5},
			[]store.Revision{0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0},
		},
	} {
		start := time.Unix(1e9, 0)
		p := past{compacted: moment{at: start}}
		for i, rev := range c.revs {
			now := moment{start.Add(time.Duration(i) * time.Minute), rev}
			got := r.due(&p, now)
			if got != c.want[i] {
				t.Errorf("%s: minute %d: compacted at %d, want %d", name, i, got, c.want[i])
			}
			if got != 0 {
				p.compacted = moment{now.at, got}
			}
		}
		if len(p.seen) > 7 {
			t.Errorf("%s: %d moments are kept", name, len(p.seen))
		}
	}
}
