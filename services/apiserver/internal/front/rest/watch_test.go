package rest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	clientrest "k8s.io/client-go/rest"

	"keelson.dev/services/internal/identity/identitytest"
)

// served is a front behind the real server.
type served struct {
	fake *fake
	ca   *identitytest.CA
	url  string
	stop func() // returns after Serve has returned
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{fake: newFake(smallTable()...), ca: identitytest.NewCA(t)}
	id := s.ca.Source(t, "kube-apiserver")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "https://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, id.ServerTLS(false), New(Config{API: s.fake, Authn: fakeAuthn{}}), slog.Default(), nil)
	}()
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(s.stop)
	return s
}

func (s *served) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.Cert)
	return pool
}

func (s *served) config(protobuf bool) *clientrest.Config {
	c := &clientrest.Config{Host: s.url, BearerToken: "admin", TLSClientConfig: clientrest.TLSClientConfig{CAData: s.ca.PEM}, QPS: -1}
	if protobuf {
		c.ContentType = "application/vnd.kubernetes.protobuf"
		c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	}
	return c
}

func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case ev, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("the watch ended")
		}
		return ev
	case <-time.After(60 * time.Second):
		t.Fatal("no event")
	}
	panic("unreachable")
}

// TestWatchWithClientGo checks watches with client-go, in both encodings.
func TestWatchWithClientGo(t *testing.T) {
	s := serve(t)
	for _, protobuf := range []bool{false, true} {
		c := kubernetes.NewForConfigOrDie(s.config(protobuf)).CoreV1().ConfigMaps("ns")
		ctx := context.Background()
		name := fmt.Sprintf("cm-%t", protobuf)
		made, err := c.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		w, err := c.Watch(ctx, metav1.ListOptions{
			SendInitialEvents: ptr(true), AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
			FieldSelector: "metadata.name=" + name,
		})
		if err != nil {
			t.Fatal(err)
		}
		if ev := next(t, w); ev.Type != watch.Added || ev.Object.(*corev1.ConfigMap).Name != name {
			t.Errorf("initial: %+v", ev)
		}
		ev := next(t, w)
		if cm := ev.Object.(*corev1.ConfigMap); ev.Type != watch.Bookmark || cm.Annotations[metav1.InitialEventsAnnotationKey] != "true" || cm.ResourceVersion == "" {
			t.Errorf("bookmark: %+v", ev)
		}
		made.Data = map[string]string{"a": "b"}
		if _, err := c.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if ev := next(t, w); ev.Type != watch.Modified || ev.Object.(*corev1.ConfigMap).Data["a"] != "b" {
			t.Errorf("modified: %+v", ev)
		}
		if err := c.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if ev := next(t, w); ev.Type != watch.Deleted || ev.Object.(*corev1.ConfigMap).ResourceVersion == made.ResourceVersion {
			t.Errorf("deleted: %+v", ev)
		}
		s.fake.mu.Lock()
		for fw := range s.fake.watchers {
			fw.end <- apierrors.NewResourceExpired("too old resource version: 1 (5)")
		}
		s.fake.mu.Unlock()
		if ev := next(t, w); ev.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(ev.Object)) {
			t.Errorf("error: %+v", ev)
		}
		w.Stop()
	}
}

func TestMetadataWatch(t *testing.T) {
	s := serve(t)
	c := metadata.NewForConfigOrDie(s.config(false))
	w, err := c.Resource(podsGVR).Watch(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	s.fake.put(s.fake.table.ByResource(podsGVR), samplePod(3))
	if ev := next(t, w); ev.Type != watch.Added || ev.Object.(*metav1.PartialObjectMetadata).Name != "pod-3" {
		t.Errorf("got %+v", ev)
	}
}

// client returns an HTTP client of the server, for HTTP/2 or HTTP/1.1.
func (s *served) client(t *testing.T, two bool) *http.Client {
	t.Helper()
	conf := &tls.Config{RootCAs: s.pool()}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: two, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestInitialStateWithoutBookmarks checks that the bookmark after the initial state is only sent
// to clients that accept bookmarks.
func TestInitialStateWithoutBookmarks(t *testing.T) {
	f := newFake(smallTable()...)
	f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod")), samplePod(0))
	h := New(Config{API: f, Authn: fakeAuthn{}})
	const path = "/api/v1/pods?watch=1&timeoutSeconds=60&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
	for query, want := range map[string]bool{"": false, "&allowWatchBookmarks=true": true} {
		ended := make(chan struct{})
		go func() { // ends the watch when all events have been taken
			defer close(ended)
			eventually(t, "all events have been taken", func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				for w := range f.watchers {
					if len(w.events) == 0 {
						w.end <- errors.New("enough")
						return true
					}
				}
				return false
			})
		}()
		_, body := do(t, h, "GET", path+query, "", nil)
		<-ended
		if !bytes.Contains(body, []byte(`"type":"ADDED"`)) || bytes.Contains(body, []byte(`"type":"BOOKMARK"`)) != want {
			t.Errorf("%q: %s", query, body)
		}
	}
}

func TestWatchEndsWithServer(t *testing.T) {
	s := serve(t)
	for _, two := range []bool{true, false} {
		resp, err := s.client(t, two).Get(s.url + "/api/v1/pods?watch=1")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor == 2 != two {
			t.Errorf("protocol %s", resp.Proto)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(resp.Body)
			ended <- err
		}()
		defer func() {
			s.stop()
			if err := <-ended; err != nil {
				t.Errorf("HTTP/2 %t: the watch did not end cleanly: %v", two, err)
			}
		}()
	}
}

func TestWatchTimesOut(t *testing.T) {
	s := serve(t)
	resp, err := s.client(t, true).Get(s.url + "/api/v1/pods?watch=1&timeoutSeconds=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || len(body) > 0 {
		t.Errorf("%q, %v", body, err)
	}
	eventually(t, "the watcher did not end", func() bool {
		s.fake.mu.Lock()
		defer s.fake.mu.Unlock()
		return len(s.fake.watchers) == 0
	})
}

// TestManyWatchers checks that all watchers get thousands of events in order.
func TestManyWatchers(t *testing.T) {
	s := serve(t)
	const watchers, events = 50, 300
	client := s.client(t, true)
	errs := make(chan error, watchers)
	started := make(chan struct{}, watchers)
	for range watchers {
		go func() {
			resp, err := client.Get(s.url + "/api/v1/pods?watch=1&resourceVersion=1")
			if err != nil {
				errs <- err
				started <- struct{}{}
				return
			}
			defer resp.Body.Close()
			started <- struct{}{}
			in := bufio.NewScanner(resp.Body)
			for i := range events {
				var ev struct {
					Type   string
					Object struct{ Metadata metav1.ObjectMeta }
				}
				if !in.Scan() {
					errs <- fmt.Errorf("ended after %d events: %w", i, in.Err())
					return
				}
				if err := json.Unmarshal(in.Bytes(), &ev); err != nil {
					errs <- err
					return
				}
				if want := fmt.Sprintf("pod-%d", i); ev.Object.Metadata.Name != want {
					errs <- fmt.Errorf("got %s, want %s", ev.Object.Metadata.Name, want)
					return
				}
			}
			errs <- nil
		}()
	}
	for range watchers {
		<-started
	}
	row := s.fake.table.ByResource(podsGVR)
	for i := range events {
		s.fake.put(row, samplePod(i))
	}
	for range watchers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestCertificatesAndTokens(t *testing.T) {
	s := serve(t)
	cert, key := s.ca.Issue(t, "alice", []string{"devs"})
	c := s.config(true)
	c.BearerToken = ""
	c.CertData, c.KeyData = cert, key
	if _, err := kubernetes.NewForConfigOrDie(c).CoreV1().Pods("").List(context.Background(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.fake.last().User; got != "alice" {
		t.Errorf("user %q", got)
	}
	// A token on a connection with a certificate only applies to its own request.
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	client := s.client(t, true)
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{pair}
	for _, want := range []string{"alice", "alice", "bob", "alice"} {
		r := newRequest(t, s.url+"/api/v1/pods")
		if want != "alice" {
			r.Header.Set("Authorization", "Bearer "+want)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := s.fake.last().User; got != want {
			t.Errorf("user %q, want %q", got, want)
		}
	}
	c = s.config(true)
	c.BearerToken = "bad"
	if _, err := kubernetes.NewForConfigOrDie(c).CoreV1().Pods("").List(context.Background(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("bad token: %v", err)
	}
}

// TestHostileConnections checks that connections which are not HTTP, or stop in the middle, are
// closed and affect no other connection.
func TestHostileConnections(t *testing.T) {
	s := serve(t)
	host := strings.TrimPrefix(s.url, "https://")
	plain, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	fmt.Fprint(plain, "GET / HTTP/1.1\r\n\r\n")
	if answer, _ := io.ReadAll(plain); !strings.Contains(string(answer), "400") {
		t.Errorf("plain HTTP: %q", answer)
	}
	dial := func(protocol string) *tls.Conn {
		c, err := tls.Dial("tcp", host, &tls.Config{RootCAs: s.pool(), NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	half := dial("http/1.1")
	fmt.Fprint(half, "POST /api/v1/namespaces/ns/pods HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{\"a\"")
	_ = half.CloseWrite()
	if answer, _ := io.ReadAll(half); !strings.Contains(string(answer), "400 Bad Request") {
		t.Errorf("half a body: %q", answer)
	}
	half.Close()
	large := dial("http/1.1")
	fmt.Fprintf(large, "GET / HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*maxHeaderBytes))
	if answer, _ := io.ReadAll(large); !strings.Contains(string(answer), "431") {
		t.Errorf("large headers: %q", answer)
	}
	large.Close()
	frames := dial("h2")
	fmt.Fprint(frames, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01")
	if _, err := io.ReadAll(frames); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Logf("a hostile length ends the connection: %v", err)
	}
	frames.Close()
	for name, r := range map[string]*http.Request{
		"long path":  newRequest(t, s.url+"/api/v1/"+strings.Repeat("x", 20000)),
		"odd escape": newRequest(t, s.url+"/api/v1/pods?labelSelector=%zz&limit=%00"),
	} {
		resp, err := s.client(t, true).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 500 {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	resp, err := s.client(t, true).Get(s.url + "/readyz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("a valid request afterwards: %v, %v", resp, err)
	}
	resp.Body.Close()
}

func newRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestClientsAreSentElsewhere checks that a watch which this apiserver cannot continue ends
// normally, without an error, so that clients resume it elsewhere, and that a request refused
// because the store cannot be reached closes the connection, so that the next one may reach
// another apiserver.
func TestClientsAreSentElsewhere(t *testing.T) {
	s := serve(t)
	outOfReach := apierrors.NewServiceUnavailable("out of reach")
	outOfReach.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
	c := kubernetes.NewForConfigOrDie(s.config(false)).CoreV1().ConfigMaps("ns")
	w, err := c.Watch(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	s.fake.mu.Lock()
	for fw := range s.fake.watchers {
		fw.end <- outOfReach
	}
	s.fake.mu.Unlock()
	select {
	case ev, more := <-w.ResultChan():
		if more {
			t.Errorf("the watch ended with %+v", ev)
		}
	case <-time.After(30 * time.Second):
		t.Error("the watch did not end")
	}

	for _, two := range []bool{true, false} {
		client := s.client(t, two)
		var reused []bool
		get := func() {
			ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
				GotConn: func(i httptrace.GotConnInfo) { reused = append(reused, i.Reused) },
			})
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/v1/pods", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer admin")
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		fail := func(err error) {
			s.fake.mu.Lock()
			s.fake.fail = err
			s.fake.mu.Unlock()
		}
		get()
		fail(outOfReach)
		get()
		fail(nil)
		// The client notices the end with a delay.
		deadline := time.Now().Add(30 * time.Second)
		for get(); reused[len(reused)-1] && time.Now().Before(deadline); get() {
			<-time.After(time.Millisecond)
		}
		if !reused[1] || reused[len(reused)-1] {
			t.Errorf("HTTP/2 %v: reused connections: %v", two, reused)
		}
	}
}
