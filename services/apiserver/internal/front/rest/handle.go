package rest

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/front/rest/discovery"
	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/front/rest/route"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/telemetry"
)

var noCache = []string{"no-cache, private"}

// ServeHTTP serves a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	if h.cfg.Web != nil && h.cfg.Web.Handles(r) {
		h.cfg.Web.ServeHTTP(w, r)
		return
	}
	if misdirected(r) {
		if conn := limited(r.Context()); conn != nil {
			conn.Refused()
		}
		refuseGRPC(w)
		return
	}
	x := &exchange{ResponseWriter: w, h: h, r: r, ctx: r.Context(), path: route.Parse(r.URL.Path)}
	header := w.Header()
	audit := auditID(r)
	header["Audit-Id"] = []string{audit}
	header["Cache-Control"] = noCache
	var span trace.Span
	defer func() {
		p := recover()
		aborted := p == any(http.ErrAbortHandler) // net/http compares with the value, which is not a wrapped error
		if p != nil && !aborted {
			h.log.ErrorContext(x.ctx, "panic in a request", "method", r.Method, "path", r.URL.Path, "audit", audit, "panic", p, "stack", string(debug.Stack()))
			h.metrics.panics.Inc()
			x.fail(apierrors.NewInternalError(fmt.Errorf("this request caused apiserver to panic. Look in the logs for details (audit id %s)", audit)))
		}
		x.finish(start, audit, span)
		if x.broken && !x.hijacked || aborted {
			panic(http.ErrAbortHandler) // ends the connection or stream as incomplete
		}
	}()
	if !x.authenticate(start) {
		return
	}
	span = x.startSpan()
	if !x.impersonate() {
		return
	}
	switch x.path.Form {
	case route.Resource:
		x.serveResource()
	case route.NonResource:
		x.servePath()
	default:
		x.serveDiscovery()
	}
}

// finish records the result of the request.
func (x *exchange) finish(start time.Time, audit string, span trace.Span) {
	took := time.Since(start)
	x.h.metrics.observe(x, took)
	if span != nil {
		span.SetAttributes(attribute.Int("http.response.status_code", x.code))
		if x.code >= 500 {
			span.SetStatus(codes.Error, http.StatusText(x.code))
		}
		span.End()
	}
	if !x.h.log.Enabled(x.ctx, slog.LevelDebug) {
		return
	}
	traceID := ""
	if sc := trace.SpanContextFromContext(x.ctx); sc.IsValid() {
		traceID = sc.TraceID().String()
	}
	x.h.log.LogAttrs(x.ctx, slog.LevelDebug, "request",
		slog.String("method", x.r.Method), slog.String("path", x.r.URL.Path), // without the query, which contains the commands of exec
		slog.Int("code", x.code), slog.Int64("bytes", x.size), slog.Duration("took", took),
		slog.String("user", request.UserFrom(x.ctx).Name), slog.String("agent", x.r.UserAgent()),
		slog.String("audit", audit), slog.String("trace_id", traceID))
}

// auditID returns the audit ID that the client sent, or a new UUID.
func auditID(r *http.Request) string {
	if v := r.Header["Audit-Id"]; len(v) > 0 && v[0] != "" && len(v[0]) <= 64 {
		return v[0]
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	var text [36]byte
	hex.Encode(text[:8], raw[:4])
	hex.Encode(text[9:13], raw[4:6])
	hex.Encode(text[14:18], raw[6:8])
	hex.Encode(text[19:23], raw[8:10])
	hex.Encode(text[24:], raw[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

var tracer = otel.Tracer("keelson.dev/apiserver/rest")

// startSpan starts the request's span, as a child of the client's traceparent or as a root. Reads
// only get one if the client asks for it, because polling clients would crowd out everything
// else.
func (x *exchange) startSpan() trace.Span {
	if anonymous(x.ctx) {
		return nil // an unauthenticated client may not start or extend a trace
	}
	parent := len(x.r.Header["Traceparent"]) > 0
	if parent {
		x.ctx = propagation.TraceContext{}.Extract(x.ctx, propagation.HeaderCarrier(x.r.Header))
	}
	if !parent && (x.path.Form != route.Resource || x.r.Method == http.MethodGet && x.path.Subresource == "") {
		return nil
	}
	x.ctx = telemetry.WithRoot(x.ctx)
	p := &x.path
	name := x.r.Method + " " + p.Resource
	if p.Subresource != "" {
		name += "/" + p.Subresource
	}
	var span trace.Span
	x.ctx, span = tracer.Start(x.ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("http.request.method", x.r.Method),
			attribute.String("url.path", x.r.URL.Path),
			attribute.String("user_agent.original", x.r.UserAgent()),
			attribute.String("k8s.resource", p.Resource),
			attribute.String("k8s.namespace.name", p.Namespace),
			attribute.String("k8s.object.name", p.Name),
		)
	}
	return span
}

// authenticate determines the user of the request.
func (x *exchange) authenticate(start time.Time) bool {
	var certs []*x509.Certificate
	if x.r.TLS != nil {
		certs = x.r.TLS.PeerCertificates
	}
	token := bearerToken(x.r)
	known := knownUser(x.ctx, certs, token)
	if user, ok := known.get(start); ok {
		x.ctx = request.WithUser(x.ctx, user)
		return true
	}
	user, err := x.h.cfg.Authn.Authenticate(x.ctx, certs, token)
	if err != nil {
		if x.h.log.Enabled(x.ctx, slog.LevelDebug) {
			x.h.log.LogAttrs(x.ctx, slog.LevelDebug, "authentication failed", slog.Any("error", err))
		}
		if conn := limited(x.ctx); conn != nil {
			conn.Refused()
		}
		x.fail(apierrors.NewUnauthorized("Unauthorized"))
		return false
	}
	known.put(user, start)
	x.ctx = request.WithUser(x.ctx, user)
	conn := limited(x.ctx)
	switch {
	case conn == nil:
	case !anonymous(x.ctx):
		conn.Know()
	case !conn.Allow():
		conn.Refused()
		x.fail(errBusy("requests of an unauthenticated client"))
		return false
	}
	return true
}

// anonymous reports whether the request has no credentials.
func anonymous(ctx context.Context) bool {
	return slices.Contains(request.UserFrom(ctx).Groups, authn.UnauthenticatedGroup)
}

// bearerToken returns the token of the Authorization header or, for browsers, of the WebSocket
// subprotocol that replaces it.
func bearerToken(r *http.Request) string {
	if v := r.Header["Authorization"]; len(v) > 0 {
		scheme, token, ok := strings.Cut(strings.TrimSpace(v[0]), " ")
		if ok && strings.EqualFold(scheme, "bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	if len(r.Header["Upgrade"]) == 0 {
		return ""
	}
	const prefix = "base64url.bearer.authorization.k8s.io."
	var token string
	var kept []string
	for _, v := range r.Header["Sec-Websocket-Protocol"] {
		for p := range strings.SplitSeq(v, ",") {
			p = strings.TrimSpace(p)
			if encoded, ok := strings.CutPrefix(p, prefix); ok {
				if raw, err := base64.RawURLEncoding.DecodeString(encoded); err == nil {
					token = string(raw)
				}
				continue
			}
			kept = append(kept, p)
		}
	}
	if token != "" {
		r.Header["Sec-Websocket-Protocol"] = []string{strings.Join(kept, ",")}
	}
	return token
}

// serveDiscovery serves /api, /apis and the paths directly below them. Methods are ignored where
// Kubernetes' aggregator responds.
func (x *exchange) serveDiscovery() {
	if !x.authorizePath() {
		return
	}
	switch p := &x.path; {
	case !x.h.discovery.Has(p):
		x.notFound()
		return
	case x.r.Method != http.MethodGet && p.Form != route.APIGroups && p.Form != route.APIGroup:
		x.fail(errMethod())
		return
	}
	x.query = route.ParseQuery(x.r.URL.RawQuery) // only for the indentation
	if err := x.h.discovery.Serve(x, x.r, &x.path, x.pretty()); errors.Is(err, discovery.ErrNotAcceptable) {
		x.fail(x.unacceptable(negotiate.BodyTypes))
	} else if err != nil {
		x.fail(err)
	}
}

// unacceptable returns the error for an Accept header that cannot be satisfied.
func (x *exchange) unacceptable(available []string) error {
	if negotiate.Named(x.r.Header.Get("Accept")) {
		return errNotAcceptable(negotiate.BodyTypes)
	}
	return errNothingNamed(available)
}

// notFound responds to a path that does not exist: as text outside the API and its groups.
func (x *exchange) notFound() {
	p := x.r.URL.Path
	group, below := strings.CutPrefix(p, "/apis/")
	group, _, _ = strings.Cut(group, "/")
	if strings.HasPrefix(p, "/api/") || below && x.h.discovery.Has(&route.Path{Form: route.APIGroup, Group: group}) {
		x.fail(errNotFound())
		return
	}
	http.NotFound(x, x.r)
}

// servePath serves any other path. As in Kubernetes, most treat all methods as GET.
func (x *exchange) servePath() {
	if !x.authorizePath() {
		return
	}
	handler := x.h.fixed(x.r.URL.Path)
	if handler == nil {
		x.notFound()
		return
	}
	switch x.r.URL.Path {
	case "/version", "/version/":
		if accept := x.r.Header.Get("Accept"); x.r.Method == http.MethodGet && !negotiate.Names(accept, negotiate.MediaJSON) {
			x.fail(errNothingNamed([]string{negotiate.MediaJSON}))
			return
		}
		fallthrough
	case "/.well-known/openid-configuration", "/openid/v1/jwks":
		if x.r.Method != http.MethodGet {
			x.fail(errMethod())
			return
		}
	}
	handler.ServeHTTP(x, x.r.WithContext(x.ctx))
}

func (x *exchange) authorizePath() bool {
	if err := x.h.api.AuthorizePath(x.ctx, strings.ToLower(x.r.Method), x.r.URL.Path); err != nil {
		x.fail(err)
		return false
	}
	return true
}
