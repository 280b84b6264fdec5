// Package loopbacktest allocates addresses for servers that a test stops and starts again,
// or starts in another process. A port that the kernel chose may be taken, once it is closed,
// by another listener or connection. These are not: each process has a loopback address of
// its own, and each of its ports is allocated once. Package loopbacktest must never be
// linked into a program.
package loopbacktest

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

// The allocated ports lie below the kernel's ephemeral ports.
const firstPort, ports = 10_000, 20_000

var given atomic.Uint32

// IP returns this process's loopback address: 127.64.0.0 plus the process id, which has at
// most 22 bits.
func IP() net.IP {
	pid := os.Getpid()
	return net.IPv4(127, 64|byte(pid>>16&63), byte(pid>>8), byte(pid))
}

// Address returns a host:port on which nothing listens and which no other test is given.
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
