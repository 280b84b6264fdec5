package rest

import (
	"net/http"
	"slices"
	"time"

	"keelson.dev/services/apiserver/internal/front/rest/stream"
)

// serveStream answers a request for a stream of the tunnel. It has no time-out,
// but ends when the server does.
func (x *exchange) serveStream(connect string, verbs []string) {
	if !streamable(x.r.Method, connect, x.verb, verbs) {
		x.refuse(x.verb, errMethod())
		return
	}
	if !x.h.bounds.long.enter(1) {
		x.fail(errBusy("streams"))
		return
	}
	defer x.h.bounds.long.leave(1)
	ctx, cancel := untilDrain(x.ctx)
	defer cancel()
	defer x.h.metrics.running(x)()
	if err := x.h.streams.Serve(x, x.r.WithContext(ctx), stream.Request{
		Connect: connect, Verb: x.verb, Target: x.target(), Rest: x.path.Rest,
	}); err != nil && !x.hijacked {
		x.fail(err)
	}
}

// proxyMethods are passed on by a proxy, as in Kubernetes. The verb of OPTIONS is
// empty: only those who may do everything there may ask it.
var proxyMethods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
}

// streamable tells whether a stream is served by a method.
func streamable(method, connect, verb string, verbs []string) bool {
	if connect == "proxy" {
		return slices.Contains(proxyMethods, method)
	}
	return slices.Contains(verbs, verb)
}

// guardWrites makes a timer that, once it runs out, fails what is being written: a
// client that stopped reading does not hold a goroutine forever.
func (x *exchange) guardWrites() *time.Timer {
	t := time.AfterFunc(stall, func() {
		_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	})
	t.Stop()
	return t
}
