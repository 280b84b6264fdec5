package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/storetest"
	"keelson.dev/services/internal/loopbacktest"
	"keelson.dev/services/internal/pacetest"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(childEnv); config != "" {
		os.Exit(child(config))
	}
	goleak.VerifyTestMain(m,
		// started once per process by an etcd package
		goleak.IgnoreAnyFunction("go.etcd.io/etcd/client/pkg/v3/logutil.(*MergeLogger).outputLoop"),
	)
}

func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

func embedded(t testing.TB, c EmbeddedConfig) *Embedded {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	c.Log = quiet()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// faulty is a store whose attempts to write can be made to fail.
type faulty struct{ *Store }

func (f faulty) Inject(plan func(*store.Write, int) storetest.Fault) {
	if plan == nil {
		f.fault = nil
		return
	}
	f.fault = func(w *store.Write, attempt int, send func() (*pb.TxnResponse, error)) (*pb.TxnResponse, error) {
		switch plan(w, attempt) {
		case storetest.Refuse:
			return nil, rpctypes.ErrGRPCNoSpace
		case storetest.LoseRequest:
			return nil, status.Error(codes.Unavailable, "lost request")
		case storetest.LoseAnswer:
			if _, err := send(); err != nil {
				return nil, err
			}
			return nil, rpctypes.ErrGRPCTimeout
		}
		return send()
	}
}

func (f faulty) Hurry(hurry bool) {
	f.settleTime = settleTime
	if hurry {
		f.settleTime = time.Second
	}
}

func (s *Store) forTest() store.Store {
	// Long enough for a busy machine: faults are injected, and no test waits for this.
	s.proposalTime = 20 * time.Second
	return faulty{s}
}

func TestConformanceInProcess(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return embedded(t, EmbeddedConfig{}).forTest() })
}

func TestConformanceOfARemoteEtcd(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		r, _ := remote(t)
		return r.forTest()
	})
}

// remote returns a client of an embedded etcd that listens on loopback.
func remote(t *testing.T) (*Remote, *Embedded) {
	t.Helper()
	files, client := certificates(t)
	return listening(t, files, client)
}

func listening(t *testing.T, files TLSFiles, client *tls.Config) (*Remote, *Embedded) {
	t.Helper()
	addr := loopbacktest.Address(t)
	e := embedded(t, EmbeddedConfig{ListenClient: addr, ClientTLS: files, ClientNames: []string{"etcd"}})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := Dial(ctx, RemoteConfig{Endpoints: []string{addr}, TLS: client, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, e
}

// Endpoints that are dead, or accept connections without answering, delay no call.
func TestDialPastDeadEndpoints(t *testing.T) {
	files, tlsConfig := certificates(t)
	alive, _ := listening(t, files, tlsConfig)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	endpoints := append([]string{loopbacktest.Address(t), silent.Addr().String()}, alive.client.Endpoints()...)
	pace := pacetest.Start(t)
	began := time.Now()
	r, err := Dial(ctx, RemoteConfig{Endpoints: endpoints, TLS: tlsConfig, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w, err := r.Watch(ctx, "/", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 20 {
		v, err := r.Commit(ctx, []store.Write{{Key: fmt.Sprintf("/%d", i), Value: []byte("x")}})
		if err != nil || v[0].Err != nil {
			t.Fatal(err, v)
		}
		if _, _, err := r.Get(ctx, fmt.Sprintf("/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	for seen := 0; seen < 20; {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		seen += len(b.Events)
	}
	if took := pace.Since(began); took > 5*time.Second {
		t.Errorf("20 calls took %v", took)
	}
}

func TestClientsNeedACertificate(t *testing.T) {
	known, client := certificates(t)
	r, _ := listening(t, known, client)
	other := client.Clone()
	other.Certificates = []tls.Certificate{sign(t, known, "system:node:n1")}
	endpoint := r.client.Endpoints()[0]
	pool := x509.NewCertPool()
	files, _ := certificates(t) // of another authority
	ca, err := os.ReadFile(files.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(ca)
	for name, c := range map[string]*tls.Config{
		"plain text":         nil,
		"another name":       other,
		"no certificate":     {InsecureSkipVerify: true},
		"another authority":  {RootCAs: pool},
		"another's identity": foreign(t, files),
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		if c, err := Dial(ctx, RemoteConfig{Endpoints: []string{endpoint}, TLS: c, Log: slog.New(slog.DiscardHandler)}); err == nil {
			c.Close()
			t.Errorf("%s: connected", name)
		}
		cancel()
	}
	if _, err := Start(context.Background(), EmbeddedConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:1"}); err == nil {
		t.Error("etcd listens for clients without TLS")
	}
}

func foreign(t *testing.T, f TLSFiles) *tls.Config {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
}

func TestStateLastsAndItsDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	e := embedded(t, EmbeddedConfig{Dir: dir})
	ctx := context.Background()
	v, err := e.Commit(ctx, []store.Write{{Key: "/a", Value: []byte("x")}})
	if err != nil || v[0].Err != nil {
		t.Fatal(err, v)
	}
	w, err := e.Watch(ctx, "/", v[0].Revision)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	e.Close()
	if _, err := w.Next(ctx); !errors.Is(err, store.ErrClosed) {
		t.Fatalf("watch of a closed store: %v", err)
	}
	if _, err := e.Commit(ctx, []store.Write{{Key: "/b", Value: []byte("x")}}); !errors.Is(err, store.ErrClosed) {
		t.Fatalf("commit to a closed store: %v", err)
	}
	if _, err := e.Revision(ctx); !errors.Is(err, store.ErrClosed) {
		t.Fatalf("revision of a closed store: %v", err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Fatal(st.Mode(), err)
	}
	e = embedded(t, EmbeddedConfig{Dir: dir})
	got, rev, err := e.Get(ctx, "/a")
	if err != nil || string(got.Value) != "x" || got.ModRevision != v[0].Revision || rev < got.ModRevision {
		t.Fatal(got, rev, err)
	}
}

func TestMaintain(t *testing.T) {
	e := embedded(t, EmbeddedConfig{})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var first, last store.Revision
	for i := range 20 {
		v, err := e.Commit(ctx, []store.Write{{Key: "/a", Value: []byte("x"), Expect: store.Any}})
		if err != nil || v[0].Err != nil {
			t.Fatal(err, v)
		}
		if last = v[0].Revision; i == 0 {
			first = last
		}
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() {
		done <- e.Maintain(run, Retention{Age: time.Hour, Most: 5, Least: 10 * time.Millisecond, Worth: 1})
	}()
	for {
		_, err := e.List(ctx, "/", store.ListOptions{Revision: first})
		if errors.Is(err, store.ErrCompacted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := e.List(ctx, "/", store.ListOptions{Revision: last - 5}); err != nil {
		t.Fatalf("a revision within the retention was compacted: %v", err)
	}
	if err := e.Defragment(); err != nil {
		t.Fatal(err)
	}
}
