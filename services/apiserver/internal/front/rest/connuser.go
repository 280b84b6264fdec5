package rest

import (
	"context"
	"crypto/x509"
	"sync/atomic"
	"time"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/connlimit"
)

// connFresh is how long a connection's user is taken as known. It bounds how late
// the end of a certificate is noticed.
const connFresh = time.Second

// connUser remembers whose client certificate a connection has: finding out costs
// more than answering a small read.
type connUser struct {
	known atomic.Pointer[knownSince]
	// conn is counted by the listener; nil where none counts.
	conn *connlimit.Conn
}

type knownSince struct {
	user request.User
	at   time.Time
}

type connKey struct{}

// knownUser is what is remembered of the request's connection; nil where the
// request is not authenticated by the connection alone.
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

// limited is the request's connection, as its listener counts it; nil where none does.
func limited(ctx context.Context) *connlimit.Conn {
	if c, ok := ctx.Value(connKey{}).(*connUser); ok {
		return c.conn
	}
	return nil
}
