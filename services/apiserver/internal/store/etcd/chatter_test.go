package etcd

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"

	"keelson.dev/services/apiserver/internal/seldom"
)

// What etcd warns of at every start is no warning of ours; anything else is.
func TestChatterIsNoWarning(t *testing.T) {
	var out bytes.Buffer
	log := zap.New(slogCore{log: slog.New(slog.NewTextHandler(&out, nil)), seldom: new(seldom.Log)})
	for message := range chatter {
		log.Warn(message)
		log.Error(message)
	}
	if out.Len() > 0 {
		t.Errorf("said: %s", out.String())
	}
	log.Warn("apply request took too long")
	if !strings.Contains(out.String(), "level=WARN") {
		t.Errorf("a warning was lost: %q", out.String())
	}
	out.Reset()
	for range 100 {
		log.Warn("prober detected unhealthy status", zap.String("remote-peer-id", "a"))
	}
	log.Warn("prober detected unhealthy status", zap.String("remote-peer-id", "b"))
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d lines of two members, want 2:\n%s", n, out.String())
	}
}
