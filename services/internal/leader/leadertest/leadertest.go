// Package leadertest runs a whole elected service against an in-memory cluster and
// holds it to this: it writes nothing without a fence but the Lease itself. It must
// never be linked into a program.
package leadertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity/identitytest"
)

// Service is a running program.
type Service struct {
	testing.TB
	// Client speaks to the cluster as somebody else.
	Client *client.Client

	mu     sync.Mutex
	fenced map[string]int // by the plural of the kind
}

// Run starts a program, which names itself agent towards the apiserver and takes
// user's certificate. It ends it with the test.
func Run(t testing.TB, agent, user string, build func(*pflag.FlagSet) boot.Run, args ...string) *Service {
	t.Helper()
	ca := identitytest.NewCA(t)
	dir := t.TempDir()
	ca.Write(t, dir, user)
	server, c := clienttest.StartServer(t)
	s := Attach(t, server, agent)
	s.Client = c
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := ca.Source(t, "kube-apiserver").ServerTLS(true).Clone()
	config.NextProtos = []string{"h2"}
	t.Cleanup(server.Serve(tls.NewListener(l, config)))

	var out bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int, 1)
	all := append([]string{"--identity", dir, "--apiserver", l.Addr().String(), "--leader-elect", "--ops-address", "127.0.0.1:0"}, args...)
	go func() { code <- boot.Execute(ctx, agent, all, &out, build) }()
	t.Cleanup(func() {
		cancel()
		if got := <-code; got != 0 || t.Failed() {
			t.Errorf("%s ended with %d:\n%s", agent, got, out.String())
		}
	})
	return s
}

// Attach holds whatever calls itself agent to its fence.
func Attach(t testing.TB, server *clienttest.Server, agent string) *Service {
	s := &Service{TB: t, fenced: map[string]int{}}
	server.Wrote(func(w clienttest.Written) {
		if w.UserAgent == agent || strings.HasPrefix(w.UserAgent, agent+" ") {
			s.wrote(w)
		}
	})
	return s
}

// wrote counts the fenced writes, and refuses others than of a Lease.
func (s *Service) wrote(w clienttest.Written) {
	kinds := []string{resource(w.Request)}
	if batch, ok := w.Request.(*resourcev1.CommitRequest); ok {
		kinds = nil
		for _, one := range batch.GetWrites() {
			kinds = append(kinds, resource(one))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range kinds {
		switch {
		case w.Fence != "":
			s.fenced[kind]++
		case kind != "leases":
			s.Errorf("%s of %s without a fence", w.Method, kind)
		}
	}
}

// resource is the plural of what a request writes.
func resource(req any) string {
	switch r := req.(type) {
	case *resourcev1.Write:
		switch v := r.GetWrite().(type) {
		case *resourcev1.Write_Create:
			return resource(v.Create)
		case *resourcev1.Write_Update:
			return resource(v.Update)
		case *resourcev1.Write_Patch:
			return resource(v.Patch)
		case *resourcev1.Write_Apply:
			return resource(v.Apply)
		case *resourcev1.Write_Delete:
			return resource(v.Delete)
		}
	case interface{ GetRef() *resourcev1.Ref }:
		return r.GetRef().GetResource()
	}
	return "nothing known"
}

// Fenced waits until the service has written objects of all these kinds.
func (s *Service) Fenced(resources ...string) {
	s.Helper()
	for _, r := range resources {
		s.Eventually("a write of "+r, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.fenced[r] > 0
		})
	}
}

// Eventually waits for a condition.
func (s *Service) Eventually(what string, condition func() bool) {
	s.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			s.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}
