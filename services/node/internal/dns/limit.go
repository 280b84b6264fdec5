package dns

import (
	"net"
	"net/netip"
	"sync"
)

// limit bounds the open connections of a listener and shares them among clients. A
// connection above the limit is closed at once: the resolver will retry, and the
// connections that are being served continue.
func limit(l net.Listener, most int, namespace func(netip.Addr) string) net.Listener {
	return &limited{Listener: l, slots: newShare(most), namespace: namespace}
}

type limited struct {
	net.Listener
	slots     *share
	namespace func(netip.Addr) string
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		owner := clientOf(c.RemoteAddr(), l.namespace)
		if l.slots.take(owner) {
			return &slot{Conn: c, free: sync.OnceFunc(func() { l.slots.give(owner) })}, nil
		}
		c.Close()
	}
}

type slot struct {
	net.Conn
	free func()
}

func (s *slot) Close() error {
	defer s.free()
	return s.Conn.Close()
}
