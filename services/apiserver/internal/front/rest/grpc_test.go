package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/front/sniff"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/rpc"
)

// peers returns the name of its caller.
type peers struct {
	resourcev1.UnimplementedResourceServiceServer
}

func (peers) Get(ctx context.Context, r *resourcev1.GetRequest) (*resourcev1.GetResponse, error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, grpcstatus.Error(codes.Unauthenticated, "no certificate")
	}
	return nil, grpcstatus.Error(codes.NotFound, info.State.PeerCertificates[0].Subject.CommonName)
}

func (peers) Watch(_ *resourcev1.WatchRequest, stream resourcev1.ResourceService_WatchServer) error {
	if err := stream.Send(&resourcev1.WatchResponse{ResourceVersion: strings.Repeat("x", 200<<10)}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// onePort serves both APIs on one port until the test ends.
func onePort(t *testing.T) (address string, ca *identitytest.CA, stop func()) {
	t.Helper()
	ca = identitytest.NewCA(t)
	id := ca.Source(t, "kube-apiserver")
	f := newFake(withStreams(kind.All())...)
	f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("ConfigMap")), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerConfig{
		Endless: func(method string) bool { return strings.HasSuffix(method, "/Watch") },
		Options: []grpc.ServerOption{grpc.Creds(sniff.Credentials{TransportCredentials: id.ServerCredentials(false)})},
	})
	resourcev1.RegisterResourceServiceServer(server, peers{})
	shared := sniff.NewListener(l.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- server.Serve(ctx, shared) }()
	go func() {
		done <- Serve(ctx, connlimit.Wrap(l, connlimit.Limits{Name: "test"}), id.ServerTLS(false), New(Config{API: f, Authn: fakeAuthn{}}), slog.Default(), shared.Serve)
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), ca, stop
}

func TestOnePortServesBoth(t *testing.T) {
	address, ca, stop := onePort(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	me := ca.Source(t, "me")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(me.ClientCredentials("localhost")),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, PermitWithoutStream: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Wait until the connection is ready, before the first call.
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		if !conn.WaitForStateChange(ctx, s) {
			t.Fatalf("not connected: %s", s)
		}
	}
	client := resourcev1.NewResourceServiceClient(conn)
	for range 3 {
		if _, err := client.Get(ctx, &resourcev1.GetRequest{}); grpcstatus.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "me") {
			t.Fatalf("gRPC: %v", err)
		}
	}
	watch, err := client.Watch(ctx, &resourcev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := watch.Recv(); err != nil || len(ev.GetResourceVersion()) != 200<<10 {
		t.Fatalf("%d bytes, %v", len(ev.GetResourceVersion()), err)
	}

	path := "https://" + address + "/api/v1/namespaces/default/configmaps/c"
	conf := func(protocols ...string) *tls.Config {
		c := me.ClientTLS("localhost")
		c.NextProtos = protocols
		return c
	}
	var onlyHTTP2 http.Protocols
	onlyHTTP2.SetHTTP2(true)
	for name, transport := range map[string]http.RoundTripper{
		"http/1.1":        &http.Transport{TLSClientConfig: conf("http/1.1"), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}},
		"h2 and http/1.1": &http.Transport{TLSClientConfig: conf("h2", "http/1.1"), ForceAttemptHTTP2: true},
		"h2 only":         &http.Transport{TLSClientConfig: conf("h2"), Protocols: &onlyHTTP2},
	} {
		c := &http.Client{Transport: transport}
		for range 3 {
			r, err := http.NewRequestWithContext(ctx, "GET", path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer admin")
			resp, err := c.Do(r)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), `"name":"c"`) {
				t.Errorf("%s: %d %s %v", name, resp.StatusCode, body, err)
			}
			if wantTwo := strings.HasPrefix(name, "h2"); (resp.ProtoMajor == 2) != wantTwo {
				t.Errorf("%s: got a response over %s", name, resp.Proto)
			}
		}
		c.CloseIdleConnections()
	}

	// A gRPC client that offers HTTP/1.1 as well gets an explanation.
	other := &http.Client{Transport: &http.Transport{TLSClientConfig: conf("h2", "http/1.1"), ForceAttemptHTTP2: true}}
	r, err := http.NewRequestWithContext(ctx, "POST", "https://"+address+resourcev1.ResourceService_Get_FullMethodName, strings.NewReader("\x00\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc+proto")
	resp, err := other.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "12" || !strings.Contains(resp.Header.Get("Grpc-Message"), "ALPN") {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	other.CloseIdleConnections()

	// A watch ends normally when the server stops, which waits for nothing.
	stop()
	if _, err := watch.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the watch ended with %v", err)
	}
}

// TestOnePortRefusesNonsense checks that connections are closed which do not start with HTTP/2,
// or send too much before a request.
func TestOnePortRefusesNonsense(t *testing.T) {
	address, ca, _ := onePort(t)
	settings := "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	unknown := "\x00\x40\x00\xee\x00\x00\x00\x00\x00" + strings.Repeat("x", 16<<10)
	ping := "\x00\x00\x08\x06\x00\x00\x00\x00\x00" + "12345678"
	headers := "\x00\x00\x00\x01\x00\x00\x00\x00\x01"      // without END_HEADERS
	continuation := "\x00\x00\x00\x09\x00\x00\x00\x00\x01" // also without END_HEADERS
	for name, sent := range map[string]string{
		"HTTP/1.1":         "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"no preface":       strings.Repeat("x", 100),
		"a frame too long": http2.ClientPreface + settings + "\xff\xff\xff\xee\x00\x00\x00\x00\x00",
		"too many frames":  http2.ClientPreface + settings + strings.Repeat(unknown, 5),
		"too many pings":   http2.ClientPreface + settings + strings.Repeat(ping, 100),
		"endless headers":  http2.ClientPreface + settings + headers + strings.Repeat(continuation, 8<<10),
	} {
		conf := &tls.Config{NextProtos: []string{"h2"}, RootCAs: x509.NewCertPool(), ServerName: "localhost"}
		conf.RootCAs.AddCert(ca.Cert)
		conn, err := tls.Dial("tcp", address, conf)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, sent) // the server may close the connection before the end
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection was kept", name)
		}
		conn.Close()
	}
}

// TestMisdirectedCallsEndAConnection checks that unauthenticated gRPC calls on an HTTP connection
// count like other refusals.
func TestMisdirectedCallsEndAConnection(t *testing.T) {
	address, ca, _ := onePort(t)
	conf := &tls.Config{NextProtos: []string{"h2", "http/1.1"}, RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	conf.RootCAs.AddCert(ca.Cert)
	conn, err := (&http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}).NewClientConn(t.Context(), "https", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 100 {
		r, err := http.NewRequest(http.MethodPost, "https://localhost/keelson.resource.v1.ResourceService/Get", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/grpc")
		resp, err := conn.RoundTrip(r)
		if err != nil {
			return
		}
		resp.Body.Close()
	}
	t.Error("the connection was not closed")
}
