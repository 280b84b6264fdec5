package pace

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestGiven(t *testing.T) {
	at := func(seconds float64) time.Time {
		return time.Unix(1000, 0).Add(time.Duration(seconds * float64(time.Second)))
	}
	c := &Clock{samples: []sample{{at(1), 1}, {at(2), 0.5}, {at(3), 0.25}}}
	for name, row := range map[string]struct {
		from, to float64
		want     time.Duration
	}{
		"an idle second":          {0, 1, time.Second},
		"a busy second":           {1, 2, 500 * time.Millisecond},
		"across measurements":     {0.5, 2.5, 1125 * time.Millisecond},
		"after the last":          {3, 5, 500 * time.Millisecond},
		"from the last on":        {2.5, 4, 375 * time.Millisecond},
		"within one":              {1.2, 1.4, 100 * time.Millisecond},
		"nothing":                 {2, 2, 0},
		"before the first sample": {-1, 0, time.Second},
	} {
		if got := c.Given(at(row.from), at(row.to)); got.Round(time.Millisecond) != row.want {
			t.Errorf("%s: %s, want %s", name, got, row.want)
		}
	}
	if got := (&Clock{}).Given(at(0), at(1)); got != time.Second {
		t.Errorf("without a measurement a second is %s", got)
	}
}

// TestBusyMachineGivesLess keeps all cores busy, several times over.
func TestBusyMachineGivesLess(t *testing.T) {
	var end atomic.Bool
	defer end.Store(true)
	for range 4 * runtime.NumCPU() {
		go func() {
			runtime.LockOSThread()
			for !end.Load() {
			}
		}()
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(5 * runtime.NumCPU()))
	least := 1.0
	for deadline := time.Now().Add(30 * time.Second); least > 0.6 && time.Now().Before(deadline); {
		least = min(least, measure())
	}
	if least > 0.6 {
		t.Errorf("a thread got %.2f of a core beside four others", least)
	}
}
