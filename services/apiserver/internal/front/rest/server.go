package rest

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"keelson.dev/services/apiserver/internal/front/sniff"
	"keelson.dev/services/internal/connlimit"
)

// Bounds of connections. Watches and streams last long, so nothing bounds an entire request here;
// bodies and stalled readers have bounds of their own.
const (
	headerTimeout   = 10 * time.Second
	idleTimeout     = 3 * time.Minute
	maxHeaderBytes  = 64 << 10
	maxStreams      = 1000
	shutdownTimeout = 8 * time.Second
)

// Serve serves requests on a listener until ctx ends. Watches then end, clients are told to use
// another connection (GOAWAY, or Connection: close), and the other requests in progress get
// shutdownTimeout to finish. Serve closes the listener. grpc serves a gRPC client's connection
// until it is closed; if it is nil, there is no gRPC.
func Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config, h http.Handler, log *slog.Logger, grpc func(*sniff.Conn)) error {
	conf := tlsConfig.Clone()
	conf.NextProtos = []string{"h2", "http/1.1"}
	if conf.MinVersion < tls.VersionTLS12 {
		conf.MinVersion = tls.VersionTLS12
	}
	// Watches and streams end with ctx; other requests get shutdownTimeout more.
	base, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), drainKey{}, ctx))
	defer cancel()
	server := &http.Server{
		Handler:           h,
		TLSConfig:         conf,
		ReadHeaderTimeout: headerTimeout,
		// Not IdleTimeout: net/http sets that timer again when an HTTP/2 connection ends with
		// open streams, which keeps the connection and unread bodies in memory for that long.
		ConnState:      watchIdle,
		MaxHeaderBytes: maxHeaderBytes,
		BaseContext:    func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, &connUser{conn: connlimit.Of(c.LocalAddr())})
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			// What a client may send before a handler reads it, and therefore before the client
			// is authenticated.
			MaxReadFrameSize:              1 << 16,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     1 << 18,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              time.Minute,
		},
	}
	if grpc != nil {
		l = withGRPC(server, l, grpc)
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(base, shutdownTimeout)
	defer stop()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close()
	}
	if err := <-done; err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// watchIdle closes idle connections.
func watchIdle(c net.Conn, state http.ConnState) {
	conn := connlimit.Of(c.LocalAddr())
	switch {
	case conn == nil:
	case state == http.StateIdle:
		conn.SetIdle(idleTimeout)
	case state == http.StateActive:
		conn.SetActive()
	}
}

// drainKey is the context key of the context that ends when the server stops accepting requests.
type drainKey struct{}

// untilDrain returns a context that ends with the request, when cancelled, or when the server
// stops.
func untilDrain(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	drain, ok := ctx.Value(drainKey{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(drain, cancel)
	return ctx, func() { stop(); cancel() }
}
