package rest

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"

	"keelson.dev/services/apiserver/internal/front/sniff"
)

// withGRPC passes the connections of gRPC clients to serve. These offer only HTTP/2 in the TLS
// handshake; on other connections, such as those of kubectl and browsers, nothing is parsed and
// there is no cost.
func withGRPC(server *http.Server, l net.Listener, serve func(*sniff.Conn)) net.Listener {
	configure(server)
	ordinary := server.TLSNextProto["h2"]
	server.TLSNextProto["h2"] = func(hs *http.Server, c *tls.Conn, h http.Handler) {
		if marked, ok := c.NetConn().(*helloConn); !ok || !marked.onlyHTTP2.Load() {
			ordinary(hs, c, h)
			return
		}
		conn, grpc, err := sniff.Next(c)
		switch {
		case err != nil: // net/http closes the connection
		case grpc:
			serve(conn)
		default:
			// net/http cannot serve a connection of which bytes have been read.
			o := &http2.ServeConnOpts{BaseConfig: hs, Handler: h, SawClientPreface: false} //nolint:staticcheck // see above
			if b, ok := h.(interface{ BaseContext() context.Context }); ok {
				o.Context = b.BaseContext()
			}
			(&http2.Server{}).ServeConn(conn, o) //nolint:staticcheck // see above
		}
	}
	inner := server.TLSConfig.GetConfigForClient
	server.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c, ok := hello.Conn.(*helloConn); ok {
			c.onlyHTTP2.Store(slices.Contains(hello.SupportedProtos, "h2") && !slices.Contains(hello.SupportedProtos, "http/1.1"))
		}
		if inner == nil {
			return nil, nil
		}
		return inner(hello)
	}
	return helloListener{l}
}

// configure makes net/http set up HTTP/2, which it otherwise does when it starts to serve.
func configure(server *http.Server) { _ = server.ServeTLS(noConnections{}, "", "") }

// noConnections is a listener without connections.
type noConnections struct{}

func (noConnections) Accept() (net.Conn, error) {
	return nil, errors.New("listener without connections")
}
func (noConnections) Close() error   { return nil }
func (noConnections) Addr() net.Addr { return &net.TCPAddr{} }

// helloListener returns connections that record which protocols the client offered.
type helloListener struct{ net.Listener }

func (l helloListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &helloConn{Conn: c}, nil
}

type helloConn struct {
	net.Conn
	onlyHTTP2 atomic.Bool
}

// misdirected reports whether r is a gRPC call on a connection that is served as HTTP.
func misdirected(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// refuseGRPC responds to such a call as a gRPC server does.
func refuseGRPC(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(codes.Unimplemented)))
	h.Set("Grpc-Message", "this connection serves HTTP: for gRPC on this port, offer h2 as the only protocol (ALPN), or use the gRPC port")
	w.WriteHeader(http.StatusOK)
}
