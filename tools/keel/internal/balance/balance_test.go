package balance

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen serves one line to every caller and echoes what it says.
func listen(t *testing.T, line string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.WriteString(c, line)
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l
}

func start(t *testing.T, backends ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Run(ctx, l, backends); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l.Addr().String()
}

// talk says hello through the balancer and returns all that came back.
func talk(t *testing.T, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, " hello"); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTakesTurns(t *testing.T) {
	address := start(t, listen(t, "a").Addr().String(), listen(t, "b").Addr().String())
	seen := map[string]int{}
	for range 10 {
		seen[talk(t, address)]++
	}
	if seen["a hello"] != 5 || seen["b hello"] != 5 {
		t.Errorf("%v, want five of each, whole", seen)
	}
}

func TestPassesOverTheDead(t *testing.T) {
	dead := listen(t, "dead")
	dead.Close()
	address := start(t, dead.Addr().String(), listen(t, "alive").Addr().String())
	for range 4 {
		if got := talk(t, address); got != "alive hello" {
			t.Errorf("%q", got)
		}
	}
}

// A connection whose backend dies ends; it does not hang.
func TestEndsWithItsBackend(t *testing.T) {
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	address := start(t, backend.Addr().String())
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served, err := backend.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = served.(*net.TCPConn).SetLinger(0) // a reset, as of a killed process
	served.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("read something")
	} else if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		t.Error("the connection hangs although its backend is gone")
	}
}

func TestNobodyAccepts(t *testing.T) {
	dead := listen(t, "dead")
	dead.Close()
	address := start(t, dead.Addr().String())
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestCheck: a check passes where a backend answers with TLS through the balancer,
// and fails where none does, however the balancer's address is written.
func TestCheck(t *testing.T) {
	backend := httptest.NewTLSServer(http.NotFoundHandler())
	defer backend.Close()
	backend.Config.ErrorLog = log.New(io.Discard, "", 0)
	well := start(t, backend.Listener.Addr().String())
	_, port, err := net.SplitHostPort(well)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{well, ":" + port, "0.0.0.0:" + port} {
		if err := Check(t.Context(), address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	none := listen(t, "")
	alone := start(t, none.Addr().String())
	none.Close()
	for _, address := range []string{alone, none.Addr().String(), "nonsense"} {
		if err := Check(t.Context(), address); err == nil {
			t.Errorf("%s: an apiserver is said to answer where there is none", address)
		}
	}
}

// silent is an address that neither accepts nor refuses, as one whose machine is
// gone: a listener whose queue is full.
func silent(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*syscall.SockaddrInet4).Port))
	for range 8 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the listener's queue does not fill")
	return ""
}

// A backend that is silent holds nobody up for longer than a moment, and the next
// callers not at all.
func TestDoesNotWaitForTheSilent(t *testing.T) {
	address := start(t, silent(t), silent(t), listen(t, "alive").Addr().String())
	var times []time.Duration
	for range 6 {
		began := time.Now()
		if got := talk(t, address); got != "alive hello" {
			t.Fatalf("%q", got)
		}
		times = append(times, time.Since(began))
	}
	// Two of them are tried before the third: 2 × stagger, and not the seconds that
	// a connection to nobody takes.
	for i, took := range times {
		if took > time.Second {
			t.Errorf("caller %d waited for %s", i, took)
		}
	}
	slices.Sort(times)
	if times[len(times)/2] > stagger {
		t.Errorf("callers wait for who was silent before: %s", times)
	}
}
