package dns

import (
	"context"
	"net"
	"net/netip"
	"sync"
)

// client is the origin of a question: the namespace of a pod, or an address that belongs to
// no pod.
type client struct {
	namespace string
	addr      netip.Addr
}

// clientOf returns the client with a remote address. namespace may be nil.
func clientOf(remote net.Addr, namespace func(netip.Addr) string) client {
	var at netip.AddrPort
	switch a := remote.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	}
	addr := at.Addr().Unmap()
	if namespace != nil {
		if ns := namespace(addr); ns != "" {
			return client{namespace: ns}
		}
	}
	return client{addr: addr}
}

type clientKey struct{}

// withClient returns a context that carries the client.
func withClient(ctx context.Context, owner client) context.Context {
	return context.WithValue(ctx, clientKey{}, owner)
}

func clientFrom(ctx context.Context) client {
	owner, _ := ctx.Value(clientKey{}).(client)
	return owner
}

// share is a number of slots that clients share. A client may take another slot while it
// holds fewer than are free. So n clients that take all they can hold most/(n+1) slots
// each, and as many stay free for further clients (the dynamic thresholds of Choudhury and
// Hahne, 1998). A nil share has no slots.
type share struct {
	most int

	mu   sync.Mutex
	used int
	held map[client]int
}

func newShare(most int) *share { return &share{most: most, held: map[client]int{}} }

// take takes a slot for a client. It returns false if there is none for it.
func (s *share) take(owner client) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[owner] >= s.most-s.used {
		return false
	}
	s.used++
	s.held[owner]++
	return true
}

// give returns a slot.
func (s *share) give(owner client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.held[owner]--; s.held[owner] == 0 {
		delete(s.held, owner)
	}
}

// taken returns the number of slots in use.
func (s *share) taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}
