// Package loopbacktest gives out addresses for what a test stops and starts again, or
// starts in another process. A port that the kernel chose, and that was closed, may be
// anybody's by then: of another listener, or of a connection. These are nobody
// else's: each process has an address of loopback of its own, and each port of it is
// given out once. It must never be linked into a program.
package loopbacktest

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

// The ports that are given out lie below those that the kernel chooses for others.
const firstPort, ports = 10_000, 20_000

var given atomic.Uint32

// IP is this process's address of loopback: 127.64.0.0 and its id, which has 22 bits
// at the most.
func IP() net.IP {
	pid := os.Getpid()
	return net.IPv4(127, 64|byte(pid>>16&63), byte(pid>>8), byte(pid))
}

// Address is one (host:port) that nobody listens on, and that no other test is given.
func Address(t testing.TB) string {
	t.Helper()
	for range ports {
		address := fmt.Sprintf("%s:%d", IP(), firstPort+(given.Add(1)-1)%ports)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return address
	}
	t.Fatalf("no port of %s is free", IP())
	return ""
}
