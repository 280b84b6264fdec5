package balance

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A backend that accepts a connection and closes it before it sends anything has done nothing:
// the complete hello is repeated to another one.
func TestRepeatsTheHello(t *testing.T) {
	dying, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			c, err := dying.Accept()
			if err != nil {
				return
			}
			if i%2 == 0 { // closed in order, or reset with the hello unread
				_, _ = io.ReadFull(c, make([]byte, 6))
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	})
	t.Cleanup(func() { dying.Close(); wg.Wait() })
	address := start(t, dying.Addr().String(), listen(t, "alive").Addr().String())
	for range 20 {
		if got := talk(t, address); got != "alive hello" {
			t.Errorf("%q", got)
		}
	}
}

func TestPassesOverWhatIsNotReady(t *testing.T) {
	a, b := listen(t, "a"), listen(t, "b")
	var ready atomic.Value
	ready.Store("b")
	var askedA, askedB atomic.Int64
	probe := func(_ context.Context, address string) error {
		if address == a.Addr().String() {
			askedA.Add(1)
		} else {
			askedB.Add(1)
		}
		if only := ready.Load(); only == "" || only == "b" && address == a.Addr().String() {
			return errors.New("not ready")
		}
		return nil
	}
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- RunProbed(ctx, l, []string{a.Addr().String(), b.Addr().String()}, probe) }()
	rounds := func() { // each backend has been probed, its result applied, and it is being probed again
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for untilA, untilB := askedA.Load()+2, askedB.Load()+2; askedA.Load() < untilA || askedB.Load() < untilB; {
			<-tick.C
		}
	}
	rounds()
	for range 10 {
		if got := promptly(t, l.Addr().String()); got != "b hello" {
			t.Errorf("%q", got)
		}
	}
	ready.Store("") // if no backend is ready, one that accepts is better than none
	rounds()
	if got := talk(t, l.Addr().String()); got != "a hello" && got != "b hello" {
		t.Errorf("%q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Two balancers share an address. One of them stops while clients connect, without any client
// noticing.
func TestOneOfTwoStops(t *testing.T) {
	backend := listen(t, "x")
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	paths := []string{filepath.Join(t.TempDir(), "0"), filepath.Join(t.TempDir(), "1")}
	n := 0
	run := func(l net.Listener) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		wait, err := Share(ctx, l, paths[n%2])
		if err != nil {
			t.Fatal(err)
		}
		n++
		done := make(chan error, 1)
		go func() { done <- Run(ctx, l, []string{backend.Addr().String()}) }()
		return sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			wait()
		})
	}
	stop := run(l)
	defer func() { stop() }()
	end := make(chan struct{})
	var clients sync.WaitGroup
	var served atomic.Int64
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(c, " hello")
				_ = c.(*net.TCPConn).CloseWrite()
				got, err := io.ReadAll(c)
				c.Close()
				if string(got) != "x hello" {
					t.Errorf("%q, %v", got, err)
					return
				}
				served.Add(1)
			}
		})
	}
	for range 10 {
		next, err := Listen(t.Context(), address, paths...)
		if err != nil {
			t.Fatal(err)
		}
		stopNext := run(next)
		before := served.Load()
		for tick := time.NewTicker(time.Millisecond); served.Load() < before+50 && !t.Failed(); {
			<-tick.C
		}
		stop()
		stop = stopNext
	}
	close(end)
	clients.Wait()
}

// A health check connects to the socket on which a balancer hands out its listener, without
// receiving it. This must not change the listener.
func TestConnectingWithoutReceivingChangesNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path := filepath.Join(t.TempDir(), "share")
	ctx, cancel := context.WithCancel(t.Context())
	wait, err := Share(ctx, l, path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1)) // the end of the stream; the byte that comes with the listener may arrive before
		conn.Close()
	}
	cancel()
	wait()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		if errno != 0 || flags&syscall.O_NONBLOCK == 0 {
			t.Errorf("the listener has become blocking: flags %#x, %v", flags, errno)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
