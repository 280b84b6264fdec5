package ops_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keelson.dev/services/internal/ops"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(h http.Handler, target string) (int, string) {
	return getFrom(h, target, "127.0.0.1:1234")
}

func getFrom(h http.Handler, target, remote string) (int, string) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, target, nil)
	r.RemoteAddr = remote
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestProfilesAreForThisMachine(t *testing.T) {
	h := ops.New().Handler()
	for remote, want := range map[string]int{
		"127.0.0.1:1": 200, "[::1]:1": 200, "[::ffff:127.0.0.1]:1": 200, "@": 200, // a unix socket's
		"192.0.2.1:1": 403, "[2001:db8::1]:1": 403, "[fe80::1%eth0]:1": 403,
	} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/symbol"} {
			if code, body := getFrom(h, path, remote); code != want {
				t.Errorf("%s from %s: %d %s", path, remote, code, body)
			}
		}
		if code, _ := getFrom(h, "/healthz", remote); code != 200 {
			t.Errorf("/healthz from %s: %d", remote, code)
		}
	}
}

func TestSocketIsForThisUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ops.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ops.New().Serve(ctx, "unix://"+path) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	deadline := time.Now().Add(30 * time.Second)
	for {
		res, err := client.Get("http://ops/debug/pprof/cmdline")
		if err == nil {
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("profiles over the socket: %s", res.Status)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(time.Millisecond)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestChecks(t *testing.T) {
	s := ops.New()
	synced := make(chan struct{})
	var sick error
	s.Ready("caches", ops.ReadyWhen(synced))
	s.Health("disk", func(context.Context) error { return sick })
	h := s.Handler()

	tests := []struct {
		name, target string
		before       func()
		code         int
		want         []string
	}{
		{"healthy from the start", "/healthz", nil, 200, []string{"ok"}},
		{"not ready", "/readyz", nil, 500, []string{"[+]disk ok", "[-]caches failed: not yet", "readyz check failed"}},
		{"excluded", "/readyz?exclude=caches", nil, 200, []string{"ok"}},
		{"ready", "/readyz", func() { close(synced) }, 200, []string{"ok"}},
		{"verbose", "/readyz?verbose", nil, 200, []string{"[+]ping ok", "[+]disk ok", "[+]caches ok", "readyz check passed"}},
		{"sick", "/healthz", func() { sick = errors.New("read only") }, 500, []string{"[-]disk failed: read only"}},
		{"the sick are not ready", "/readyz", nil, 500, []string{"[-]disk failed: read only"}},
		{"metrics", "/metrics", nil, 200, []string{"go_goroutines", "process_resident_memory_bytes"}},
		{"profiles", "/debug/pprof/", nil, 200, []string{"goroutine"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before != nil {
				tt.before()
			}
			code, body := get(h, tt.target)
			if code != tt.code {
				t.Errorf("code %d, want %d", code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(body, want) {
					t.Errorf("no %q in:\n%s", want, body)
				}
			}
		})
	}
	if err := s.CheckReady(context.Background()); err == nil || !strings.Contains(err.Error(), "disk: read only") {
		t.Errorf("CheckReady: %v", err)
	}
}

func TestServeEndsWithContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ops.New().ServeListener(ctx, l) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + l.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if string(body) != "ok" {
		t.Fatalf("body %q", body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestServeSaysWhyItCannot(t *testing.T) {
	if err := ops.New().Serve(context.Background(), "127.0.0.1:nonsense"); err == nil || !strings.Contains(err.Error(), "operations listener") {
		t.Fatal(err)
	}
}
