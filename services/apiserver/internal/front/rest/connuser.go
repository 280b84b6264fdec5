package rest

import (
	"context"
	"crypto/x509"
	"sync/atomic"
	"time"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/connlimit"
)

// connFresh is how long the user of a connection is cached. It bounds how late the expiry of a
// certificate is noticed.
const connFresh = time.Second

// connUser caches the user of a connection's client certificate, because authenticating costs
// more than a small read.
type connUser struct {
	known atomic.Pointer[knownSince]
	// conn is counted by the listener. It is nil if the listener does not count connections.
	conn *connlimit.Conn
}

type knownSince struct {
	user request.User
	at   time.Time
}

type connKey struct{}

// knownUser returns the cache of the request's connection. It returns nil if the request is not
// authenticated by its connection only.
func knownUser(ctx context.Context, certs []*x509.Certificate, token string) *connUser {
	if token != "" || len(certs) == 0 {
		return nil
	}
	c, _ := ctx.Value(connKey{}).(*connUser)
	return c
}

func (c *connUser) get(now time.Time) (request.User, bool) {
	if c == nil {
		return request.User{}, false
	}
	k := c.known.Load()
	if k == nil || now.Sub(k.at) > connFresh {
		return request.User{}, false
	}
	return k.user, true
}

func (c *connUser) put(user request.User, now time.Time) {
	if c != nil {
		c.known.Store(&knownSince{user: user, at: now})
	}
}

// limited returns the request's connection as its listener counts it, or nil.
func limited(ctx context.Context) *connlimit.Conn {
	if c, ok := ctx.Value(connKey{}).(*connUser); ok {
		return c.conn
	}
	return nil
}
