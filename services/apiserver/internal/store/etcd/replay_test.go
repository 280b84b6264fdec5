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

// logOutput is the output of a logger, which a test can read.
type logOutput struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logOutput) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// TestALongLogIsReplayedInSilence starts a member whose log has about as many entries as fit
// before it is truncated. While etcd has more than 5,000 entries to apply, it refuses all
// proposals, including its own first one, which it repeats at once. It must not log each
// refusal.
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
	var log logOutput
	again, err := Start(t.Context(), EmbeddedConfig{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	log.mu.Lock()
	defer log.mu.Unlock()
	if n := strings.Count(log.buf.String(), "too many requests"); n > 0 {
		t.Errorf("etcd logged %d refusals while it replayed its log", n)
	}
}
