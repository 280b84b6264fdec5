package raft

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/go-hclog"

	"keelson.dev/services/apiserver/internal/seldom"
)

// aboutPeer are the names of values that distinguish peers.
var aboutPeer = map[string]bool{"peer": true, "target": true, "server-id": true}

// hlog passes the library's log messages to slog, at a lower level.
type hlog struct {
	log *slog.Logger
	// seldom limits messages that are repeated with every attempt to reach a peer or to be
	// elected.
	seldom seldom.Log
}

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
		// The library logs attempts that fail as errors. That another member is down is not an
		// error of this one.
		to = slog.LevelWarn
	case level >= hclog.Warn:
		to = slog.LevelInfo
	}
	if !h.log.Enabled(context.Background(), to) {
		return
	}
	line := msg
	for i := 0; i+1 < len(args); i += 2 {
		if name, ok := args[i].(string); ok && aboutPeer[name] {
			line += " " + fmt.Sprint(args[i+1])
		}
	}
	withheld, ok := h.seldom.Allow(line, time.Now())
	if !ok {
		return
	}
	if withheld > 0 {
		args = append(args[:len(args):len(args)], "withheld", withheld)
	}
	h.log.Log(context.Background(), to, "raft: "+msg, args...) //nolint:sloglint // the message is the library's
}
