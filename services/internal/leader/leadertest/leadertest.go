// Package leadertest runs whole elected services against an in-memory cluster and checks
// what they have in common: every write but those of the Lease is fenced, and of two
// processes one works. It must never be linked into a program.
package leadertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"
	coordinationv1 "k8s.io/api/coordination/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
)

// Program is an elected service under test.
type Program struct {
	// Name is that of the service and of its Lease.
	Name string
	// UserAgent is how it names itself to the apiserver; empty means Name.
	UserAgent string
	// User is the common name of its certificate.
	User string
	// Build is what its main passes to boot.Main.
	Build func(*pflag.FlagSet) boot.Run
	// Args are the flags that it needs beside those of every elected service.
	Args []string
}

// Service is a running program.
type Service struct {
	testing.TB
	// Client calls the cluster as another user.
	Client *client.Client

	mu     sync.Mutex
	fenced map[string]int // by the plural of the kind
}

// Run starts p, which ends with the test, and fails the test if it writes anything but
// its Lease without a fence.
func Run(t testing.TB, p Program) *Service {
	t.Helper()
	c := newCluster(t, p)
	s := Attach(t, c.server, c.agent())
	s.Client = c.client
	c.start()
	return s
}

// RunUnelected starts p with --leader-elect=false. At the end of the test no Lease of
// its name may exist.
func RunUnelected(t testing.TB, p Program) *Service {
	t.Helper()
	c := newCluster(t, p)
	s := &Service{TB: t, Client: c.client, fenced: map[string]int{}}
	process := c.start("--leader-elect=false")
	s.Eventually("it is ready", func() bool { return strings.Contains(process.status(), "readyz check passed") })
	t.Cleanup(func() {
		if c.holder() != "" || strings.Contains(process.status(), "leadership") {
			t.Errorf("%s takes part in an election with --leader-elect=false:\n%s", p.Name, process.status())
		}
	})
	return s
}

// Elects starts two processes of p without a flag about elections: one must lead while
// the other stands by, and the other must lead once the first has ended.
func Elects(t testing.TB, p Program) {
	t.Helper()
	c := newCluster(t, p)
	processes := []*process{c.start(), c.start()}
	s := &Service{TB: t, Client: c.client}
	leads := func(i int) bool { return strings.Contains(processes[i].status(), "leadership ok: leading") }
	stands := func(i int) bool { return strings.Contains(processes[i].status(), "leadership ok: standby") }
	first := 0
	s.Eventually("one leads and the other stands by", func() bool {
		if leads(1) {
			first = 1
		} else {
			first = 0
		}
		return leads(first) && stands(1-first)
	})
	before := c.holder()
	processes[first].stop()
	s.Eventually("the other leads", func() bool { return leads(1-first) && c.holder() != before })
}

// Rotates runs p and its apiserver with certificates that expire after three seconds and
// are renewed every half second: p must still lead, and renew its Lease, when several have
// expired.
func Rotates(t testing.TB, p Program) {
	t.Helper()
	const life, every = 3 * time.Second, 500 * time.Millisecond
	ca, serving := identitytest.NewCA(t), t.TempDir()
	c := &cluster{TB: t, program: p, identity: t.TempDir()}
	renew := func() {
		ca.WriteFor(t, life, serving, "kube-apiserver")
		ca.WriteFor(t, life, c.identity, p.User)
	}
	renew()
	source, err := identity.Load(serving)
	if err != nil {
		t.Fatal(err)
	}
	c.serve(source)
	process := c.start()
	s := &Service{TB: t, Client: c.client}
	began, last := time.Now(), time.Now()
	s.Eventually("it leads with later certificates", func() bool {
		if now := time.Now(); now.Sub(last) >= every {
			renew()
			last = now
		}
		l, err := client.For[*coordinationv1.Lease](c.client).Get(context.Background(), "kube-system", p.Name)
		return err == nil && l.Spec.RenewTime != nil && l.Spec.RenewTime.Sub(began) > 2*life+time.Second &&
			strings.Contains(process.status(), "leadership ok: leading")
	})
}

// cluster is an in-memory apiserver and the identity of a program.
type cluster struct {
	testing.TB
	program  Program
	server   *clienttest.Server
	client   *client.Client
	address  string
	identity string
}

func newCluster(t testing.TB, p Program) *cluster {
	t.Helper()
	ca := identitytest.NewCA(t)
	c := &cluster{TB: t, program: p, identity: t.TempDir()}
	ca.Write(t, c.identity, p.User)
	c.serve(ca.Source(t, "kube-apiserver"))
	return c
}

// serve starts the apiserver with an identity.
func (c *cluster) serve(id *identity.Source) {
	c.Helper()
	c.server, c.client = clienttest.StartServer(c)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.Fatal(err)
	}
	c.address = l.Addr().String()
	config := id.ServerTLS(true).Clone()
	config.NextProtos = []string{"h2"}
	c.Cleanup(c.server.Serve(tls.NewListener(l, config)))
}

func (c *cluster) agent() string {
	if c.program.UserAgent != "" {
		return c.program.UserAgent
	}
	return c.program.Name
}

// holder is the identity that the Lease names, "" without a Lease.
func (c *cluster) holder() string {
	l, err := client.For[*coordinationv1.Lease](c.client).Get(context.Background(), "kube-system", c.program.Name)
	if err != nil || l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// process is one process of a program. It ends with the test at the latest.
type process struct {
	stop func() // and waits
	ops  http.Client
}

func (c *cluster) start(args ...string) *process {
	socket := filepath.Join(c.TempDir(), "ops")
	all := append([]string{"--identity", c.identity, "--apiserver", c.address, "--ops-address", "unix://" + socket}, c.program.Args...)
	ctx, cancel := context.WithCancel(context.Background())
	var out buffer
	code := make(chan int, 1)
	go func() { code <- boot.Execute(ctx, c.program.Name, append(all, args...), &out, c.program.Build) }()
	p := &process{
		ops: http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		}},
		stop: sync.OnceFunc(func() {
			cancel()
			if got := <-code; got != 0 || c.Failed() {
				c.Errorf("%s ended with %d:\n%s", c.program.Name, got, out.String())
			}
		}),
	}
	c.Cleanup(p.stop)
	return p
}

// status is what /readyz?verbose answers, "" if it does not answer.
func (p *process) status() string {
	response, err := p.ops.Get("http://ops/readyz?verbose")
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return ""
	}
	return string(body)
}

// buffer is a bytes.Buffer for concurrent use: the processes of one test share the
// default logger.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Attach fails the test if a client with the user agent agent writes anything but a Lease
// to server without a fence.
func Attach(t testing.TB, server *clienttest.Server, agent string) *Service {
	s := &Service{TB: t, fenced: map[string]int{}}
	server.Wrote(func(w clienttest.Written) {
		if w.UserAgent == agent || strings.HasPrefix(w.UserAgent, agent+" ") {
			s.wrote(w)
		}
	})
	return s
}

// wrote counts a fenced write, and fails the test for an unfenced one of anything but a
// Lease.
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

// resource returns the plural of the kind that a request writes.
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
	return "an unknown kind"
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

// Eventually waits until condition is true, and fails the test after 30 seconds.
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
