package etcd

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"

	"go.uber.org/zap/zapcore"

	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"keelson.dev/services/apiserver/internal/seldom"
)

// slogCore passes etcd's log messages of level WARN and above to slog.
type slogCore struct {
	log   *slog.Logger
	attrs []any
	// closing, if set, is true once etcd is shutting down. Its listeners then log errors about
	// having been closed.
	closing *atomic.Bool
	// seldom, if set, limits messages that are repeated with every attempt to reach a member.
	seldom *seldom.Log
}

// chatter are warnings and errors of every start that need no action.
var chatter = map[string]bool{
	// Logged for each new backend before its first commit; the next attempt succeeds.
	"failed to update storage version": true,
	"Failed to detect schema version":  true,
	// The client port is a local socket, and no client logs in there with a token.
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
}

// aboutMember are the names of values that distinguish members.
var aboutMember = map[string]bool{"to": true, "remote-peer-id": true, "peer-id": true}

func (c slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && (l > zapcore.ErrorLevel || c.closing == nil || !c.closing.Load())
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	c.attrs = append(c.attrs[:len(c.attrs):len(c.attrs)], attrs(fields)...)
	return c
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	switch {
	case chatter[e.Message]:
		level = slog.LevelDebug
	case e.Message == "failed to publish local member to cluster through raft" && busy(fields):
		// It is repeated at once, a thousand times while a log is replayed.
		level = slog.LevelDebug
	case e.Level >= zapcore.ErrorLevel:
		level = slog.LevelError
	}
	all := append(attrs(fields), c.attrs...)
	if c.seldom != nil && c.log.Enabled(context.Background(), level) {
		line := e.Message
		for _, a := range all {
			if a, ok := a.(slog.Attr); ok && aboutMember[a.Key] {
				line += " " + a.Value.String()
			}
		}
		withheld, ok := c.seldom.Allow(line, e.Time)
		if !ok {
			return nil
		}
		if withheld > 0 {
			all = append(all, slog.Int("withheld", withheld))
		}
	}
	c.log.Log(context.Background(), level, "etcd: "+e.Message, all...) //nolint:sloglint // the message is etcd's
	return nil
}

func (c slogCore) Sync() error { return nil }

// busy reports whether etcd refused a request because it has too many entries to apply.
func busy(fields []zapcore.Field) bool {
	return slices.ContainsFunc(fields, func(f zapcore.Field) bool {
		err, ok := f.Interface.(error)
		return ok && errors.Is(err, etcderrors.ErrTooManyRequests)
	})
}

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]any, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
