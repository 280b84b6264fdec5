package stream

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr"
)

func TestQuiet(t *testing.T) {
	for level, want := range map[slog.Level]string{slog.LevelInfo: "", slog.LevelDebug: "level=DEBUG msg=oops"} {
		var out bytes.Buffer
		log := logr.FromSlogHandler(quiet{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})})
		log.WithValues("a", "b").Error(errors.New("x"), "oops")
		log.WithName("n").Info("more")
		if got := out.String(); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("at %s: %q", level, got)
		}
	}
}
