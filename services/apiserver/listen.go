package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

// listenAll returns one listener on all host:port of a comma-separated list. Its address is
// that of the first.
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
			return nil, failed(fmt.Errorf("%s: several addresses need a fixed port", address))
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

// merge combines listeners into one.
func merge(all []net.Listener) net.Listener {
	m := &listeners{all: all, conns: make(chan net.Conn), closed: make(chan struct{})}
	for _, l := range all {
		m.accepting.Go(func() { m.accept(l) })
	}
	return m
}

// listeners is one listener on several addresses. If one fails, all are closed.
type listeners struct {
	all       []net.Listener
	conns     chan net.Conn
	closed    chan struct{}
	once      sync.Once
	accepting sync.WaitGroup

	mu  sync.Mutex
	err error // the first error of any of them
}

// accept hands over a listener's connections. When it fails, all listeners are closed.
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

// end closes all listeners; Accept returns the first err.
func (m *listeners) end(err error) {
	m.mu.Lock()
	if m.err == nil {
		m.err = err
	}
	m.mu.Unlock()
	m.once.Do(func() {
		for _, l := range m.all {
			_ = l.Close() // no more connections are accepted
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
