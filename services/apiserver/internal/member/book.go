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
	// lookEvery is the interval at which Run compares open connections with the book.
	lookEvery = time.Second
)

// Book maps the names of members to the addresses of their peer services.
type Book struct {
	id *peertls.Identity

	mu    sync.Mutex
	seeds map[string]string
	known func() []etcd.Known
	conns map[*conn]bool
}

// NewBook returns a Book that uses seeds (host:port by name) for members whose address it has
// not learned yet.
func NewBook(id *peertls.Identity, seeds map[string]string) *Book {
	return &Book{id: id, seeds: seeds, conns: map[*conn]bool{}}
}

// Follow sets the source of the addresses that members have announced, usually
// etcd.Store.Known.
func (b *Book) Follow(known func() []etcd.Known) {
	b.mu.Lock()
	b.known = known
	b.mu.Unlock()
}

// Addresses returns where a member may be reached: the addresses that it announced, then its
// seed. It is empty for an unknown name.
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

// Dial returns a connection to a member by name. Each time it connects, it looks up the
// member's current addresses.
func (b *Book) Dial(name string) (grpc.ClientConnInterface, error) {
	// The port is never dialled: the context dialer asks the book for the address.
	return rpc.Dial(nil, []string{net.JoinHostPort(name, "1")}, "keelson-apiserver",
		grpc.WithTransportCredentials(credentials.NewTLS(b.id.Client())),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.dial(ctx, name) }))
}

// dial connects to the first address of a member that accepts the connection.
func (b *Book) dial(ctx context.Context, name string) (net.Conn, error) {
	addresses := b.Addresses(name)
	if len(addresses) == 0 {
		return nil, fmt.Errorf("no address is known for member %s", name)
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
	return nil, fmt.Errorf("reach member %s: %w", name, errors.Join(errs...))
}

// conn is a connection that the book can close when the member moves.
type conn struct {
	net.Conn
	book          *Book
	name, address string
}

// Close closes the connection and removes it from the book.
func (c *conn) Close() error {
	c.book.mu.Lock()
	delete(c.book.conns, c)
	c.book.mu.Unlock()
	return c.Conn.Close()
}

// Run closes connections to addresses that their members no longer use, because another member
// may be reachable there by now. It returns nil when ctx ends.
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

// endMoved closes the connections to members whose addresses no longer include the one in use.
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
