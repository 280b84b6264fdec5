package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	snapshotv1 "keelson.dev/proto/keelson/snapshot/v1"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/store/memory"
)

// serve serves a snapshot service on loopback and returns a connection to it.
func serve(t *testing.T, s snapshotv1.SnapshotServiceServer) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	snapshotv1.RegisterSnapshotServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		<-served
	})
	return conn
}

// rights is an authorizer that allows or denies everything, and records the last request.
type rights struct {
	allow bool
	asked atomic.Pointer[request.Attributes]
}

func (r *rights) Authorize(_ context.Context, a *request.Attributes) (bool, string, error) {
	r.asked.Store(a)
	return r.allow, "", nil
}

// within returns a context that bounds how long the test waits.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// large returns stores whose snapshot does not fit in a connection's buffers.
func large(t *testing.T) *stores {
	s := filled(t, 5)
	for i := range 40 {
		put(t, s.etcd, fmt.Sprintf("/registry/configmaps/default/large%d", i), configMap(t, "large", 200<<10))
	}
	return s
}

func TestSaveOverTheWire(t *testing.T) {
	s := large(t)
	may := &rights{allow: true}
	conn := serve(t, NewService(ServiceConfig{Lasting: s.etcd, Transient: s.raft, Authorizer: may, Apiserver: "a", Program: "test"}))
	path := filepath.Join(t.TempDir(), "f")
	saved, err := Save(within(t), conn, path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 || st.Size() != saved.Bytes {
		t.Errorf("%v, %v; want %d bytes", st, err, saved.Bytes)
	}
	if a := may.asked.Load(); a.Verb != "get" || a.Path != Path {
		t.Errorf("asked for %+v", a)
	}
	read, err := ReadStatus(within(t), path, "", table)
	if err != nil || read.Objects != 46 || read.Manifest.Apiserver != "a" || read.EtcdRevision < saved.EtcdRevision || read.RaftRevision != saved.RaftRevision {
		t.Errorf("%+v, %v; saved %+v", read, err, saved)
	}
	onlyFile(t, path)
	may.allow = false
	if _, err := Save(within(t), conn, path); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without rights: %v", err)
	}
	onlyFile(t, path)
}

// onlyFile checks that a directory contains no file other than path.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		if f.Name() != filepath.Base(path) {
			t.Errorf("%s was left behind", f.Name())
		}
	}
}

func TestExternalStateIsNotSaved(t *testing.T) {
	m := memory.New()
	defer m.Close()
	conn := serve(t, NewService(ServiceConfig{Lasting: m, Transient: m, Authorizer: &rights{allow: true}}))
	path := filepath.Join(t.TempDir(), "f")
	if _, err := Save(within(t), conn, path); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "etcdctl snapshot save") {
		t.Error(err)
	}
	onlyFile(t, path)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestASlowReaderIsCutOff(t *testing.T) {
	s := large(t)
	// Long enough for a busy machine to take the snapshot and to request another one meanwhile.
	conn := serve(t, NewService(ServiceConfig{Lasting: s.etcd, Transient: s.raft, Authorizer: &rights{allow: true}, stall: 4 * time.Second}))
	client := snapshotv1.NewSnapshotServiceClient(conn)
	stream, err := client.Save(within(t), &snapshotv1.SaveRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	// The client stops reading. Other saves are refused until this one is cut off.
	other, err := client.Save(within(t), &snapshotv1.SaveRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("second save: %v", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(60 * time.Second)
	for s.etcd.Defragment() != nil {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("etcd's snapshot is still held")
		}
	}
	for err = nil; err == nil; {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	for {
		_, err := Save(within(t), conn, path)
		if err == nil {
			return
		}
		if status.Code(err) != codes.ResourceExhausted { // the first one is just ending
			t.Fatalf("save after the first was cut off: %v", err)
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("save after the first was cut off: %v", err)
		}
	}
}

// broken is a service whose saves fail midway.
type broken struct {
	snapshotv1.UnimplementedSnapshotServiceServer
	calls atomic.Int32
	// good is the number of the first call that succeeds.
	good int32
	how  func(stream grpc.ServerStreamingServer[snapshotv1.SaveResponse]) error
}

func (b *broken) Save(_ *snapshotv1.SaveRequest, stream grpc.ServerStreamingServer[snapshotv1.SaveResponse]) error {
	data := []byte("some bytes")
	if err := stream.Send(&snapshotv1.SaveResponse{Data: data}); err != nil {
		return err
	}
	if b.calls.Add(1) < b.good {
		return b.how(stream)
	}
	sum := sha256.Sum256(data)
	return stream.Send(&snapshotv1.SaveResponse{End: &snapshotv1.SaveEnd{Size: int64(len(data)), Sha256: sum[:]}})
}

func TestASaveThatIsCutOffLeavesNothing(t *testing.T) {
	gone := func(grpc.ServerStreamingServer[snapshotv1.SaveResponse]) error {
		return status.Error(codes.Unavailable, "gone")
	}
	short := func(grpc.ServerStreamingServer[snapshotv1.SaveResponse]) error { return nil }
	wrong := func(s grpc.ServerStreamingServer[snapshotv1.SaveResponse]) error {
		return s.Send(&snapshotv1.SaveResponse{End: &snapshotv1.SaveEnd{Size: 10, Sha256: make([]byte, 32)}})
	}
	for name, c := range map[string]struct {
		service *broken
		calls   int32
		ok      bool
	}{
		"gone once":   {&broken{good: 2, how: gone}, 2, true},
		"short once":  {&broken{good: 2, how: short}, 2, true},
		"always gone": {&broken{good: 100, how: gone}, saveTries, false},
		"wrong hash":  {&broken{good: 2, how: wrong}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, []byte("the one before"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Save(within(t), serve(t, c.service), path)
			want := "the one before"
			if c.ok {
				want = "some bytes"
			}
			got, readErr := os.ReadFile(path)
			if (err == nil) != c.ok || readErr != nil || string(got) != want || c.service.calls.Load() != c.calls {
				t.Errorf("%v after %d calls; the file is %q, %v", err, c.service.calls.Load(), got, readErr)
			}
			onlyFile(t, path)
		})
	}
}
