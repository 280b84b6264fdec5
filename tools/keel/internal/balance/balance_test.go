package balance

import (
	"context"
	"errors"
	"fmt"
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

// listen serves connections: it sends line, and echoes what it receives.
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

// talk sends a hello through the balancer and returns all that it receives.
func talk(t *testing.T, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
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

// promptly returns the first result of talk that takes less than stagger. After that, another
// backend would be tried in parallel.
func promptly(t *testing.T, address string) string {
	t.Helper()
	for range 100 {
		began := time.Now()
		if got := talk(t, address); time.Since(began) < stagger {
			return got
		}
	}
	t.Fatalf("no backend answered within %s", stagger)
	return ""
}

func TestTakesTurns(t *testing.T) {
	var seen map[string]int
	for range 100 { // until ten were served promptly
		address := start(t, listen(t, "a").Addr().String(), listen(t, "b").Addr().String())
		seen = map[string]int{}
		slow := false
		for range 10 {
			began := time.Now()
			seen[talk(t, address)]++
			slow = slow || time.Since(began) >= stagger
		}
		if !slow {
			break
		}
	}
	if seen["a hello"] != 5 || seen["b hello"] != 5 {
		t.Errorf("got %v, want five complete answers of each backend", seen)
	}
}

func TestPassesOverTheDead(t *testing.T) {
	address := start(t, refusing(t), listen(t, "alive").Addr().String())
	for range 4 {
		if got := talk(t, address); got != "alive hello" {
			t.Errorf("%q", got)
		}
	}
}

// When its backend dies, a connection is closed instead of hanging.
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
	_ = served.(*net.TCPConn).SetLinger(0) // a reset, as after the process was killed
	served.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("read something")
	} else if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		t.Error("the connection stays open although its backend is gone")
	}
}

func TestNoBackendAccepts(t *testing.T) {
	address := start(t, refusing(t))
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

// A check succeeds if a backend answers with TLS through the balancer, and fails otherwise,
// however the balancer's address is written.
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
	none := refusing(t)
	for _, address := range []string{start(t, none), none, "nonsense"} {
		if err := Check(t.Context(), address); err == nil {
			t.Errorf("%s: the check succeeded without a backend", address)
		}
	}
}

// bound returns a socket with an address of its own.
func bound(t *testing.T) (fd int, address string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*syscall.SockaddrInet4).Port))
}

// refusing returns an address at which no process listens, and at which none can listen until
// the test ends. An address that was merely free a moment ago might be used by another process.
func refusing(t *testing.T) string {
	t.Helper()
	_, address := bound(t)
	return address
}

// silent returns an address that neither accepts nor refuses connections, like one whose
// machine is down: a listener with a full queue.
func silent(t *testing.T) string {
	t.Helper()
	fd, address := bound(t)
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 16 {
		if c, err := net.DialTimeout("tcp", address, 200*time.Millisecond); err == nil {
			t.Cleanup(func() { c.Close() })
			continue
		}
		// If a second attempt also times out, the reason is the queue and not a busy machine.
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the listener's queue did not fill up")
	return ""
}

// A backend that does not answer delays a client only briefly, and the following clients not at
// all. The best of several attempts counts, because the machine may be busy.
func TestDoesNotWaitForTheSilent(t *testing.T) {
	a, b := silent(t), silent(t)
	attempt := func() error {
		address := start(t, a, b, listen(t, "alive").Addr().String())
		var times []time.Duration
		for range 6 {
			began := time.Now()
			if got := talk(t, address); got != "alive hello" {
				t.Fatalf("%q", got)
			}
			times = append(times, time.Since(began))
		}
		// Two of them are tried before the third, which takes 2 × stagger, and not the seconds
		// that a connection attempt without an answer takes.
		for i, took := range times {
			if took > time.Second {
				return fmt.Errorf("client %d waited for %s", i, took)
			}
		}
		slices.Sort(times)
		if times[len(times)/2] > stagger {
			return fmt.Errorf("clients wait for backends that did not answer before: %s", times)
		}
		return nil
	}
	var err error
	for range 5 {
		if err = attempt(); err == nil {
			return
		}
	}
	t.Error(err)
}
