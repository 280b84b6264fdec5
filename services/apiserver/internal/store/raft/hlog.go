package raft

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hlog passes the library's warnings and errors on to slog; the rest is chatter.
type hlog struct{ log *slog.Logger }

func (h *hlog) logger() hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off, Output: io.Discard})
	l.RegisterSink(h)
	return l
}

// Accept implements hclog.SinkAdapter.
func (h *hlog) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch {
	case level >= hclog.Error:
		// The next attempt tells more than the last: a member that is down is no
		// error of this one.
		to = slog.LevelWarn
	case level >= hclog.Warn:
		to = slog.LevelInfo
	}
	if h.log.Enabled(context.Background(), to) {
		h.log.Log(context.Background(), to, "raft: "+msg, args...)
	}
}
