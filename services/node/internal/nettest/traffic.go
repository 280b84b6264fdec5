package nettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long a call waits for an answer: longer than a busy machine stalls. Tests
// that expect no answer use CallWithin.
const Patience = 8 * time.Second

// Answer is a Server's answer: its name, and the client's address as it saw it.
type Answer struct {
	Server string
	Caller netip.AddrPort
}

// Server answers TCP or UDP requests on a port of a namespace with an Answer.
type Server struct {
	// Calls counts the accepted TCP connections and the received datagrams.
	Calls atomic.Int64
}

// Serve starts a Server that ends with the test. network is tcp or udp.
func (n *NS) Serve(network string, port uint16) *Server {
	n.t.Helper()
	s := &Server{}
	var wg sync.WaitGroup
	at := net.JoinHostPort("0.0.0.0", strconv.Itoa(int(port)))
	switch network {
	case "udp":
		var c net.PacketConn
		n.Must(func() (err error) {
			c, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp4", at)
			return err
		})
		n.t.Cleanup(func() { c.Close(); wg.Wait() })
		wg.Go(func() { s.answerPackets(c, n.Name) })
	default:
		var l net.Listener
		n.Must(func() (err error) {
			l, err = new(net.ListenConfig).Listen(context.Background(), "tcp4", at)
			return err
		})
		ctx, cancel := context.WithCancel(context.Background())
		n.t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
		wg.Go(func() { s.answerConnections(ctx, l, n.Name, &wg) })
	}
	return s
}

func (s *Server) answerPackets(c net.PacketConn, name string) {
	buf := make([]byte, 1500)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error for an earlier answer
		}
		s.Calls.Add(1)
		_, _ = c.WriteTo([]byte(name+" "+from.String()), from)
	}
}

// answerConnections serves each connection until its client closes it or ctx ends.
func (s *Server) answerConnections(ctx context.Context, l net.Listener, name string, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.Calls.Add(1)
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			// Answer each line, so that a connection can be reused.
			buf := make([]byte, 64)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				if _, err := io.WriteString(c, name+" "+c.RemoteAddr().String()+"\n"); err != nil {
					return
				}
			}
		})
	}
}

// Call sends one request over a new connection.
func (n *NS) Call(network string, to netip.AddrPort) (Answer, error) {
	return n.CallWithin(Patience, network, to)
}

// CallWithin is Call with a timeout, which applies to the connection and to the answer
// separately.
func (n *NS) CallWithin(patience time.Duration, network string, to netip.AddrPort) (Answer, error) {
	c, err := n.dial(patience, network, netip.AddrPort{}, to)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	return askWithin(patience, c)
}

// Dial connects from inside the namespace. UDP sockets report refusals.
func (n *NS) Dial(network string, to netip.AddrPort) (net.Conn, error) {
	return n.dial(Patience, network, netip.AddrPort{}, to)
}

// DialFrom is Dial with a given source address and timeout.
func (n *NS) DialFrom(patience time.Duration, network string, from, to netip.AddrPort) (net.Conn, error) {
	return n.dial(patience, network, from, to)
}

func (n *NS) dial(patience time.Duration, network string, from, to netip.AddrPort) (c net.Conn, err error) {
	err = n.Do(func() (err error) {
		d := net.Dialer{Timeout: patience, FallbackDelay: -1, Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		if from.IsValid() {
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(from)
			} else {
				d.LocalAddr = net.TCPAddrFromAddrPort(from)
			}
		}
		c, err = d.DialContext(context.Background(), network+"4", to.String())
		return err
	})
	return c, err
}

// Ask sends one request over a connection, which stays open.
func Ask(c net.Conn) (Answer, error) { return askWithin(Patience, c) }

func askWithin(patience time.Duration, c net.Conn) (Answer, error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "?\n"); err != nil {
		return Answer{}, err
	}
	buf := make([]byte, 256)
	k, err := c.Read(buf)
	if err != nil {
		return Answer{}, err
	}
	name, caller, ok := strings.Cut(strings.TrimSpace(string(buf[:k])), " ")
	if !ok {
		return Answer{}, fmt.Errorf("malformed answer %q", buf[:k])
	}
	a := Answer{Server: name}
	if caller != "" {
		if a.Caller, err = netip.ParseAddrPort(caller); err != nil {
			return a, err
		}
	}
	return a, nil
}
