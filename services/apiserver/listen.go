package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

// listenAll listens on each host:port of a list with commas, as one listener. Its
// address is the first's.
func listenAll(list string) (net.Listener, error) {
	var all []net.Listener
	failed := func(err error) error {
		for _, l := range all {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	for _, address := range strings.Split(list, ",") {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, failed(err)
		}
		if len(all) > 0 && strings.HasSuffix(address, ":0") {
			return nil, failed(fmt.Errorf("%s: several addresses need a port that is named", address))
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, failed(err)
		}
		all = append(all, l)
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return merge(all), nil
}

// merge makes one listener of several.
func merge(all []net.Listener) net.Listener {
	m := &listeners{all: all, conns: make(chan net.Conn), closed: make(chan struct{})}
	for _, l := range all {
		m.accepting.Go(func() { m.accept(l) })
	}
	return m
}

// listeners are several listeners as one.
type listeners struct {
	all       []net.Listener
	conns     chan net.Conn
	closed    chan struct{}
	once      sync.Once
	accepting sync.WaitGroup

	mu  sync.Mutex
	err error // that ended one of them
}

// accept takes in a listener's connections. When it ends, all do.
func (m *listeners) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			var passing net.Error
			if errors.As(err, &passing) && passing.Timeout() {
				continue
			}
			m.end(err)
			return
		}
		select {
		case m.conns <- conn:
		case <-m.closed:
			conn.Close()
			return
		}
	}
}

// end ends all listeners because of an error.
func (m *listeners) end(err error) {
	m.mu.Lock()
	if m.err == nil {
		m.err = err
	}
	m.mu.Unlock()
	m.once.Do(func() {
		for _, l := range m.all {
			_ = l.Close() // nobody waits for more
		}
		close(m.closed)
	})
}

// Accept implements net.Listener.
func (m *listeners) Accept() (net.Conn, error) {
	select {
	case conn := <-m.conns:
		return conn, nil
	case <-m.closed:
		m.mu.Lock()
		defer m.mu.Unlock()
		return nil, m.err
	}
}

// Close implements net.Listener.
func (m *listeners) Close() error {
	m.end(net.ErrClosed)
	m.accepting.Wait()
	return nil
}

// Addr implements net.Listener.
func (m *listeners) Addr() net.Addr { return m.all[0].Addr() }
