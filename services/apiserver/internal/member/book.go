package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/internal/rpc"
)

const (
	// dialTime bounds the attempt to reach one address.
	dialTime = time.Second
	// lookEvery is how often the book looks whether somebody has moved.
	lookEvery = time.Second
)

// Book says where the services of members are, by name.
type Book struct {
	id *peertls.Identity

	mu    sync.Mutex
	seeds map[string]string
	known func() []etcd.Known
	conns map[*conn]bool
}

// NewBook makes a book that believes seeds (host:port by name) until it hears
// better.
func NewBook(id *peertls.Identity, seeds map[string]string) *Book {
	return &Book{id: id, seeds: seeds, conns: map[*conn]bool{}}
}

// Follow lets the book ask a store for what members say themselves.
func (b *Book) Follow(known func() []etcd.Known) {
	b.mu.Lock()
	b.known = known
	b.mu.Unlock()
}

// Addresses are where a name may be found, the best first.
func (b *Book) Addresses(name string) (out []string) {
	b.mu.Lock()
	known, seed := b.known, b.seeds[name]
	b.mu.Unlock()
	if known != nil {
		for _, k := range known() {
			if k.Name == name && k.Service != "" {
				out = append(out, k.Service)
			}
		}
	}
	if seed != "" && !slices.Contains(out, seed) {
		out = append(out, seed)
	}
	return out
}

// Dial makes a connection to a name, which finds it again wherever it goes.
func (b *Book) Dial(name string) (grpc.ClientConnInterface, error) {
	// The port is never dialled: the book says where to.
	return rpc.Dial(nil, []string{net.JoinHostPort(name, "1")}, "keelson-apiserver",
		grpc.WithTransportCredentials(credentials.NewTLS(b.id.Client())),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.dial(ctx, name) }))
}

func (b *Book) dial(ctx context.Context, name string) (net.Conn, error) {
	addresses := b.Addresses(name)
	if len(addresses) == 0 {
		return nil, fmt.Errorf("nobody has said where %s is", name)
	}
	var errs []error
	d := net.Dialer{Timeout: dialTime}
	for _, address := range addresses {
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out := &conn{Conn: c, book: b, name: name, address: address}
		b.mu.Lock()
		b.conns[out] = true
		b.mu.Unlock()
		return out, nil
	}
	return nil, fmt.Errorf("reach %s: %w", name, errors.Join(errs...))
}

// conn is a connection that the book can end.
type conn struct {
	net.Conn
	book          *Book
	name, address string
}

// Close ends the connection.
func (c *conn) Close() error {
	c.book.mu.Lock()
	delete(c.book.conns, c)
	c.book.mu.Unlock()
	return c.Conn.Close()
}

// Run ends connections to addresses where their members are no longer, until ctx
// ends: at an old address somebody else may be by now.
func (b *Book) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.endMoved()
		case <-ctx.Done():
			return nil
		}
	}
}

func (b *Book) endMoved() {
	b.mu.Lock()
	conns := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	for _, c := range conns {
		if a := b.Addresses(c.name); len(a) > 0 && !slices.Contains(a, c.address) {
			_ = c.Close()
		}
	}
}
