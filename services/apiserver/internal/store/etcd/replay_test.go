package etcd

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"keelson.dev/services/apiserver/internal/store"
)

// told is a log that a test reads.
type told struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *told) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// TestALongLogIsReplayedInSilence starts a member whose log has as many entries as a log
// has before it is cut: etcd refuses everything while it has more than 5,000 to apply,
// its own first proposal too, which it repeats at once, and would say so each time.
func TestALongLogIsReplayedInSilence(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, EmbeddedConfig{Dir: dir})
	const each = 500
	for n := range 19 {
		writes := make([]store.Write, each)
		for i := range writes {
			writes[i] = store.Write{Key: fmt.Sprintf("/%d", i), Value: []byte(fmt.Sprint(n)), Expect: store.Any}
		}
		verdicts, err := e.Commit(t.Context(), writes)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range verdicts {
			if v.Err != nil {
				t.Fatal(v.Err)
			}
		}
	}
	e.Close()
	var log told
	again, err := Start(t.Context(), EmbeddedConfig{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	log.mu.Lock()
	defer log.mu.Unlock()
	if n := strings.Count(log.buf.String(), "too many requests"); n > 0 {
		t.Errorf("etcd says %d times that it replays its log", n)
	}
}
