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

// withGRPC has serve take the connections of gRPC clients. Those offer HTTP/2 and
// nothing else when TLS begins; only on such connections the first request is waited
// for. What kubectl and browsers do costs nothing.
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
			// net/http serves no connection whose first bytes were read already.
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

// configure has net/http set its HTTP/2 up, which it does when it begins to serve.
func configure(server *http.Server) { _ = server.ServeTLS(nobody{}, "", "") }

// nobody is a listener that nobody connects to.
type nobody struct{}

func (nobody) Accept() (net.Conn, error) { return nil, errors.New("nobody connects") }
func (nobody) Close() error              { return nil }
func (nobody) Addr() net.Addr            { return &net.TCPAddr{} }

// helloListener makes connections that remember what the client offered.
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

// misdirected is a call of gRPC on a connection that was taken for HTTP's.
func misdirected(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// refuseGRPC answers such a call as gRPC does.
func refuseGRPC(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(codes.Unimplemented)))
	h.Set("Grpc-Message", "this connection is HTTP's: offer h2 alone as the protocol (ALPN) for gRPC on this port, or use the gRPC port")
	w.WriteHeader(http.StatusOK)
}
