package rest

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// TestWatchOverWebSocket checks that a browser can watch with its token in the subprotocol: each
// event is a message, pings are answered, and the watch ends when the client disconnects.
func TestWatchOverWebSocket(t *testing.T) {
	s := serve(t)
	s.fake.deny = func(verb string, _ pipeline.Target, user request.User) error {
		if user.Name != "reader" {
			return apierrors.NewForbidden(podsGVR.GroupResource(), "", errors.New("no"))
		}
		return nil
	}
	dial := func(token, query string) (*websocket.Conn, *http.Response, error) {
		d := websocket.Dialer{
			TLSClientConfig:  &tls.Config{RootCAs: s.pool(), NextProtos: []string{"http/1.1"}},
			HandshakeTimeout: 10 * time.Second,
			WriteBufferSize:  4 * maxWatcherMessage, // a message is sent as one frame
			Subprotocols:     []string{"base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(token)), "base64.binary.k8s.io"},
		}
		return d.Dial(strings.Replace(s.url, "https", "wss", 1)+"/api/v1/namespaces/ns/pods?watch=1"+query, http.Header{"Origin": {"https://console.example"}})
	}
	for token, code := range map[string]int{"bad": 401, "stranger": 403} {
		if _, resp, err := dial(token, ""); err == nil || resp == nil || resp.StatusCode != code {
			t.Errorf("%s: %v, %v", token, resp, err)
		}
	}
	conn, resp, err := dial("reader", "")
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Sec-Websocket-Protocol"); got != "base64.binary.k8s.io" {
		t.Errorf("protocol %q", got)
	}
	pod := s.fake.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	next := func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		kind, data, err := conn.ReadMessage()
		if err != nil || kind != websocket.TextMessage {
			t.Fatalf("%d, %v", kind, err)
		}
		var ev struct {
			Type   string
			Object corev1.Pod
		}
		if err := json.Unmarshal(data, &ev); err != nil || data[len(data)-1] != '}' {
			t.Fatalf("%q, %v", data, err)
		}
		return ev.Type + " " + ev.Object.Name
	}
	for i, want := range []string{"ADDED pod-0", "ADDED pod-1"} {
		p := samplePod(i)
		p.Namespace = "ns"
		s.fake.put(pod, p)
		if got := next(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	pongs := make(chan string, 1)
	conn.SetPongHandler(func(text string) error { pongs <- text; return nil })
	if err := conn.WriteControl(websocket.PingMessage, []byte("hello"), time.Now().Add(20*time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _, _ = conn.ReadMessage() }() // until the connection closes
	select {
	case got := <-pongs:
		if got != "hello" {
			t.Errorf("pong %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("the ping was not answered")
	}
	// A message that is too long ends the watch, like a disconnect.
	if err := conn.WriteMessage(websocket.TextMessage, make([]byte, maxWatcherMessage+1)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		s.fake.mu.Lock()
		left := len(s.fake.watchers)
		s.fake.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the watch did not end with its client")
		}
		runtime.Gosched()
	}
	_ = conn.Close()
	s.stop()
}
