package rest

import (
	"net/http"
	"slices"
	"time"

	"keelson.dev/services/apiserver/internal/front/rest/stream"
	"keelson.dev/services/apiserver/internal/resource"
)

// serveStream serves a stream through the tunnel. It has no timeout, but ends when the server
// stops.
func (x *exchange) serveStream(connect resource.Stream, verbs []string) {
	if !streamable(x.r.Method, connect, x.verb, verbs) {
		x.refuse(x.verb, errMethod())
		return
	}
	if !x.h.bounds.long.Enter(1) {
		x.fail(errBusy("streams"))
		return
	}
	defer x.h.bounds.long.Leave(1)
	ctx, cancel := untilDrain(x.ctx)
	defer cancel()
	defer x.h.metrics.running(x)()
	if err := x.h.streams.Serve(x, x.r.WithContext(ctx), stream.Request{
		Connect: connect, Verb: x.verb, Target: x.target(), Rest: x.path.Rest,
	}); err != nil && !x.hijacked {
		x.fail(err)
	}
}

// proxyMethods are the methods that a proxy forwards, as in Kubernetes. The verb of OPTIONS is
// empty, so that only users who may use all verbs there may send it.
var proxyMethods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
}

// streamable reports whether a stream supports a method.
func streamable(method string, connect resource.Stream, verb string, verbs []string) bool {
	if connect == resource.Proxy {
		return slices.Contains(proxyMethods, method)
	}
	return slices.Contains(verbs, verb)
}

// guardWrites returns a timer that fails the current write when it expires, so that a client that
// has stopped reading does not block a goroutine.
func (x *exchange) guardWrites() *time.Timer {
	t := time.AfterFunc(stall, func() {
		_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	})
	t.Stop()
	return t
}
