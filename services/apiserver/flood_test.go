package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding/gzip"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/identity"
)

// roleVariable makes this test's program another one, which the others configure.
const (
	roleVariable     = "KEELSON_TEST_ROLE"
	grpcVariable     = "KEELSON_TEST_GRPC"
	httpsVariable    = "KEELSON_TEST_HTTPS"
	identityVariable = "KEELSON_TEST_IDENTITY"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "apiserver":
		main()
	case "flood":
		flood(os.Getenv(grpcVariable), os.Getenv(httpsVariable))
	case "background":
		background(os.Getenv(grpcVariable), os.Getenv(httpsVariable), os.Getenv(identityVariable))
	}
	os.Exit(m.Run())
}

const (
	// maxGrowth is what a flood may add to the memory of an apiserver.
	maxGrowth = 50 << 20
	// maxSlowdown is how much later 99 of 100 requests of an authenticated client may be
	// answered in the flood than beside as many busy clients that are authenticated.
	maxSlowdown = 3
	// clients are the busy clients, either way.
	clients = 12
	// rounds of a measurement, and the requests that a round makes at each port.
	rounds, samples = 8, 50
	// attempts to measure: the machine may be busy with something else.
	attempts = 10
)

// TestFlood measures an apiserver while clients without credentials send it all that
// they can, and compares with authenticated clients that ask for small things as often
// as they can: an idle server is no measure, because what the clients themselves take
// of two cores is more than it takes. All are processes of their own; the busy clients
// have the lowest priority.
func TestFlood(t *testing.T) {
	c := newCluster(t)
	server := c.process(t)
	admin := c.client(t, server.grpc, "kubernetes-admin", "system:masters")
	maps := client.For[*corev1.Namespace](admin)
	web := &http.Client{Transport: &http.Transport{
		TLSClientConfig: c.ca.Source(t, "kubernetes-admin", "system:masters").ClientTLS("localhost"), ForceAttemptHTTP2: true,
	}}
	defer web.CloseIdleConnections()
	doors := map[string]func() error{
		"grpc": func() error { _, err := maps.Get(t.Context(), "", "default"); return err },
		"https": func() error {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+server.https+"/api/v1/namespaces/default", nil)
			if err != nil {
				return err
			}
			resp, err := web.Do(r)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("answer %s", resp.Status)
			}
			return nil
		},
	}
	measure := func(into map[string][]time.Duration) {
		t.Helper()
		for name, call := range doors {
			for range samples {
				start := time.Now()
				if err := call(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				into[name] = append(into[name], time.Since(start))
			}
		}
	}
	background := server.load(t, "background", c.identity)
	measure(map[string][]time.Duration{}) // connections, caches, a heap of its usual size
	quietHeap, quietRSS := server.memory(t)
	background.pause()
	flood := server.load(t, "flood", "")
	peak := server.peak(t)
	late := map[string]string{"grpc": "", "https": ""} // doors, until a measurement is good
	for try := 0; try < attempts && len(late) > 0; try++ {
		quiet, loud := map[string][]time.Duration{}, map[string][]time.Duration{}
		for range rounds { // in turn, so that both meet the same of what else the machine does
			flood.pause()
			background.resume()
			measure(quiet)
			background.pause()
			flood.resume()
			measure(loud)
		}
		for name := range doors {
			quiet, loud := p99(quiet[name]), p99(loud[name])
			t.Logf("attempt %d: %s: p99 %v beside clients, %v in the flood", try, name, quiet, loud)
			if loud <= maxSlowdown*quiet {
				delete(late, name)
			} else if _, open := late[name]; open {
				late[name] = fmt.Sprintf("p99 %v in the flood, %v beside clients", loud, quiet)
			}
		}
	}
	heap, rss := peak()
	t.Logf("%d MiB of heap and %d MiB of RSS more", (heap-quietHeap)>>20, (rss-quietRSS)>>20)
	if heap-quietHeap > maxGrowth || rss-quietRSS > maxGrowth {
		t.Errorf("the flood costs %d MiB of heap and %d MiB of RSS", (heap-quietHeap)>>20, (rss-quietRSS)>>20)
	}
	for name, what := range late {
		t.Errorf("%s: %s", name, what)
	}
}

func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*99/100]
}

// process is an apiserver in a process of its own.
type process struct {
	addresses
	pid int
	ops *http.Client
}

func (c *cluster) process(t *testing.T) *process {
	t.Helper()
	socket := filepath.Join(c.dir, "ops.sock")
	ready := make(chan addresses, 1)
	pid := startRole(t, "apiserver", nil, []string{
		"--memory", "--identity", c.identity, "--service-account-key", c.key, "--listen-grpc", "127.0.0.1:0", "--listen-https", "127.0.0.1:0",
		"--ops-address", "unix://" + socket, "--advertise-address", "127.0.0.1",
	}, func(line string) {
		if m := readyLine.FindStringSubmatch(line); m != nil {
			ready <- addresses{grpc: m[1], https: m[2]}
		}
	})
	p := &process{pid: pid, ops: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	select {
	case p.addresses = <-ready:
	case <-time.After(time.Minute):
		t.Fatal("the apiserver is not ready")
	}
	return p
}

// startRole runs this program in a role until the test ends, and returns its process.
func startRole(t *testing.T, role string, env, args []string, line func(string)) int {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			if said.Len() < 1<<20 {
				said.WriteString(s.Text() + "\n")
			}
			line(s.Text())
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("%s:\n%s", role, said.String())
		}
	})
	return cmd.Process.Pid
}

// memory is what the process takes: its heap's objects, dead ones included, and all.
func (p *process) memory(t *testing.T) (heap, rss int64) {
	t.Helper()
	heap, rss, err := p.read()
	if err != nil {
		t.Fatal(err)
	}
	return heap, rss
}

func (p *process) read() (heap, rss int64, err error) {
	resp, err := p.ops.Get("http://ops/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	if heap, err = number(string(text), "\ngo_memstats_heap_alloc_bytes "); err != nil {
		return 0, 0, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, 0, err
	}
	rss, err = number(string(status), "\nVmRSS:")
	return heap, rss << 10, err
}

// number is the number after a word.
func number(text, after string) (int64, error) {
	_, rest, ok := strings.Cut(text, after)
	if !ok {
		return 0, fmt.Errorf("no %q in %s", after, text)
	}
	n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	return int64(n), err
}

// peak watches the memory until the function is called, which returns the most.
func (p *process) peak(t *testing.T) func() (heap, rss int64) {
	stop, done := make(chan struct{}), make(chan struct{})
	var heap, rss int64
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			if h, r, err := p.read(); err == nil { // otherwise the previous sample stands
				heap, rss = max(heap, h), max(rss, r)
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return func() (int64, int64) {
		close(stop)
		<-done
		h, r := p.memory(t)
		return max(heap, h), max(rss, r)
	}
}

// load is busy clients: a process.
type load int

func (l load) pause()  { _ = syscall.Kill(int(l), syscall.SIGSTOP) }
func (l load) resume() { _ = syscall.Kill(int(l), syscall.SIGCONT) }

// load runs busy clients until the test ends. It returns when all have begun.
func (p *process) load(t *testing.T, role, identity string) load {
	t.Helper()
	begun := make(chan struct{}, 1)
	pid := startRole(t, role, []string{grpcVariable + "=" + p.grpc, httpsVariable + "=" + p.https, identityVariable + "=" + identity}, nil, func(line string) {
		if line == busy {
			begun <- struct{}{}
		}
	})
	select {
	case <-begun:
	case <-time.After(time.Minute):
		t.Fatal("the clients have not begun")
	}
	return load(pid)
}

// busy is what busy clients print when they have begun.
const busy = "busy"

// repeat runs clients again and again, and signals when each has been through once.
func repeat(kinds []func(from string)) {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19)
	var once sync.WaitGroup
	for i, kind := range kinds {
		from := fmt.Sprintf("127.0.1.%d", i+1)
		once.Add(1)
		go func() {
			kind(from)
			once.Done()
			for {
				kind(from)
			}
		}()
	}
	once.Wait()
	fmt.Fprintln(os.Stderr, busy)
	select {}
}

// background is the program of busy clients that are authenticated.
func background(grpcAddress, httpsAddress, dir string) {
	id, err := identity.Load(dir)
	if err != nil {
		panic(err)
	}
	var kinds []func(string)
	for i := range clients {
		conn, err := grpc.NewClient(grpcAddress, grpc.WithTransportCredentials(credentials.NewTLS(id.ClientTLS("localhost"))))
		if err != nil {
			panic(err)
		}
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: id.ClientTLS("localhost"), ForceAttemptHTTP2: true}}
		namespace := &resourcev1.GetRequest{Ref: &resourcev1.Ref{Version: "v1", Resource: "namespaces", Name: "default"}}
		kinds = append(kinds, func(string) {
			if i%2 == 0 {
				// After a pause the connection may have been closed: the next call dials.
				_, _ = resourcev1.NewResourceServiceClient(conn).Get(context.Background(), namespace, grpc.WaitForReady(true))
				return
			}
			resp, err := web.Get("https://" + httpsAddress + "/api/v1/namespaces/default")
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		})
	}
	repeat(kinds)
}

// flood is the program that floods. Each kind of traffic comes from an address of its
// own and signals when all of it has been sent once.
func flood(grpcAddress, httpsAddress string) {
	repeat([]func(from string){
		func(from string) { floodCalls(grpcAddress, from, "", false) },
		func(from string) { floodCalls(grpcAddress, from, invalidToken, false) },
		func(from string) { floodCalls(grpcAddress, from, "", true) },
		func(from string) { floodCalls(grpcAddress, from, invalidToken, true) },
		func(from string) { floodStreams(grpcAddress, from) },
		func(from string) { floodConnections(grpcAddress, from, false) },
		func(from string) { floodConnections(httpsAddress, from, false) },
		func(from string) { floodConnections(grpcAddress, from, true) },
		func(from string) { floodConnections(httpsAddress, from, true) },
		func(from string) { floodRequests(httpsAddress, from, "", "") },
		func(from string) { floodRequests(httpsAddress, from, invalidToken, "") },
		func(from string) { floodRequests(httpsAddress, from, invalidToken, "gzip") },
	})
}

const invalidToken = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMuY2x1c3Rlci5sb2NhbCJ9.AAAA"

func dialFrom(from string) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", address)
	}
}

func foreign() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} //nolint:gosec // it floods
}

func floodDial(address, from string) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(foreign())),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return dialFrom(from)(ctx, "", a) }))
	if err != nil {
		panic(err)
	}
	return conn
}

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (bytesCodec) Unmarshal([]byte, any) error   { return nil }
func (bytesCodec) Name() string                  { return "proto" }

// largeCall is a commit of a million empty writes.
var largeCall = bytes.Repeat([]byte{1<<3 | 2, 0}, 1<<20)

// floodCalls makes large calls, eight at a time.
func floodCalls(address, from, token string, compressed bool) {
	conn := floodDial(address, from)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	options := []grpc.CallOption{grpc.ForceCodec(bytesCodec{})}
	if compressed {
		options = append(options, grpc.UseCompressor(gzip.Name))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				var out []byte
				_ = conn.Invoke(ctx, resourcev1.ResourceService_Commit_FullMethodName, largeCall, &out, options...)
			}
		})
	}
	wg.Wait()
}

// floodStreams opens streams and leaves them open: some that send nothing, and some
// that read nothing.
func floodStreams(address, from string) {
	conn := floodDial(address, from)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for range 2000 {
		_, _ = conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, resourcev1.ResourceService_Create_FullMethodName)
		_, _ = healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
	}
	<-ctx.Done()
}

// floodConnections opens connections and keeps them: with TLS, or with the beginning of
// a handshake that does not go on.
func floodConnections(address, from string, handshake bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var conns []net.Conn
	for range 200 {
		conn, err := dialFrom(from)(ctx, "", address)
		if err != nil {
			continue
		}
		if handshake {
			t := tls.Client(conn, foreign())
			_ = t.HandshakeContext(ctx)
			_, _ = t.Write([]byte("PRI * HTTP/2.0\r\n")) // half of the preface
		} else {
			_, _ = conn.Write([]byte{22, 3, 1, 2, 0, 1}) // of a record of 512 bytes
		}
		conns = append(conns, conn)
	}
	<-ctx.Done()
	for _, c := range conns {
		c.Close()
	}
}

// floodRequests posts large bodies, eight at a time.
func floodRequests(address, from, token, encoding string) {
	transport := &http.Transport{TLSClientConfig: foreign(), ForceAttemptHTTP2: true, DialContext: dialFrom(from)}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	body := make([]byte, 3<<20)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+"/api/v1/namespaces/default/pods", bytes.NewReader(body))
				if err != nil {
					panic(err)
				}
				r.Header.Set("Content-Type", "application/json")
				if token != "" {
					r.Header.Set("Authorization", "Bearer "+token)
				}
				if encoding != "" {
					r.Header.Set("Content-Encoding", encoding)
				}
				if resp, err := transport.RoundTrip(r); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
		})
	}
	wg.Wait()
}
