package etcd

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"

	"keelson.dev/services/apiserver/internal/seldom"
)

// Warnings that etcd logs at every start are not logged as warnings; all others are.
func TestHarmlessWarningsAreNotLoggedAsWarnings(t *testing.T) {
	var out bytes.Buffer
	log := zap.New(slogCore{log: slog.New(slog.NewTextHandler(&out, nil)), seldom: new(seldom.Log)})
	for message := range chatter {
		log.Warn(message)
		log.Error(message)
	}
	if out.Len() > 0 {
		t.Errorf("logged: %s", out.String())
	}
	log.Warn("apply request took too long")
	if !strings.Contains(out.String(), "level=WARN") {
		t.Errorf("a warning was not logged: %q", out.String())
	}
	out.Reset()
	for range 100 {
		log.Warn("prober detected unhealthy status", zap.String("remote-peer-id", "a"))
	}
	log.Warn("prober detected unhealthy status", zap.String("remote-peer-id", "b"))
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d lines about two members, want 2:\n%s", n, out.String())
	}
}
