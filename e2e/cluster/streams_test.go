package cluster_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/e2e/internal/wait"
	keelson "keelson.dev/proto/client"
)

// TestPodStreams uses a pod's container over gRPC: logs, exec, attach and port-forward.
func TestPodStreams(t *testing.T) {
	ns := namespace(t)
	shared.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: box
    image: keelson.dev/demo/busybox:1
    stdin: true
    command: [sh, -c, "echo started; httpd -p 8080 -h /etc; exec cat"]
`, "-n", ns)
	shared.Kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "pod/box", "--timeout=60s")
	pki := filepath.Join(shared.Home, "pki", "admin")
	cert, err := tls.LoadX509KeyPair(filepath.Join(pki, "tls.crt"), filepath.Join(pki, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c, err := keelson.Dial(keelson.Config{
		Endpoints: shared.Endpoints(t)[:1], UserAgent: "e2e/1", TLS: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS12},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(o keelson.Streams, command ...string) (string, error) {
		var out bytes.Buffer
		o.Stdout = &out
		err := c.Exec(ctx, ns, "box", keelson.ExecOptions{Command: command, Streams: o})
		return out.String(), err
	}

	wait.For(t, time.Minute, "the log has its first line", func(context.Context) error {
		log, err := c.Logs(ctx, ns, "box", &corev1.PodLogOptions{})
		if err != nil {
			return err
		}
		defer log.Close()
		if text, err := io.ReadAll(log); err != nil || string(text) != "started\n" {
			return fmt.Errorf("log %q: %w", text, err)
		}
		return nil
	})
	large := strings.Repeat("0123456789abcde\n", 16<<10)
	if out, err := run(keelson.Streams{Stdin: strings.NewReader(large)}, "cat"); err != nil || out != large {
		t.Errorf("cat: %d bytes of %d, %v", len(out), len(large), err)
	}
	var exit *keelson.ExitError
	if _, err := run(keelson.Streams{}, "sh", "-c", "exit 7"); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("exit 7: %v", err)
	}
	sizes := make(chan keelson.TerminalSize, 1)
	sizes <- keelson.TerminalSize{Columns: 91, Rows: 17}
	if out, err := run(keelson.Streams{TTY: true, Resize: sizes}, "sh", "-c", "until stty size 2>/dev/null | grep '17 91'; do usleep 10000; done"); err != nil || out != "17 91\r\n" {
		t.Errorf("terminal: %q, %v", out, err)
	}
	if _, err := run(keelson.Streams{}, "/no/such/program"); err == nil {
		t.Error("a missing program has run")
	}

	// A canceled command loses its standard input.
	brief, leave := context.WithCancel(ctx)
	defer leave()
	began := &firstWrite{done: leave}
	open, never := io.Pipe()
	defer never.Close()
	o := keelson.ExecOptions{Command: []string{"sh", "-c", "echo begun; exec cat - /no/such/4321"}, Streams: keelson.Streams{Stdin: open, Stdout: began}}
	if err := c.Exec(brief, ns, "box", o); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled exec: %v", err)
	}
	wait.For(t, 30*time.Second, "the canceled command is gone", func(context.Context) error {
		if out, err := run(keelson.Streams{}, "ps"); err != nil || strings.Contains(out, "4321") {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	})

	attached, detach := context.WithCancel(ctx)
	defer detach()
	seen := &firstWrite{done: detach}
	typing, typed := io.Pipe()
	defer typed.Close()
	go func() { _, _ = io.WriteString(typed, "hello\n") }()
	if err := c.Attach(attached, ns, "box", keelson.AttachOptions{Streams: keelson.Streams{Stdin: typing, Stdout: seen}}); !errors.Is(err, context.Canceled) || seen.String() != "hello\n" {
		t.Errorf("attach: %q, %v", seen.String(), err)
	}

	web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.PortForward(ctx, ns, "box", 8080)
	}}}
	defer web.CloseIdleConnections()
	for range 3 {
		resp, err := web.Get("http://box/hosts")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Contains(body, []byte("localhost")) {
			t.Errorf("port-forward: %s, %v", body, err)
		}
	}
	conn, err := c.PortForward(ctx, ns, "box", 81)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("port-forward to a closed port: %v", err)
	}
}

// firstWrite is a buffer that calls done once it has a line.
type firstWrite struct {
	bytes.Buffer
	done func()
}

func (f *firstWrite) Write(p []byte) (int, error) {
	n, err := f.Buffer.Write(p)
	if bytes.HasSuffix(f.Bytes(), []byte("\n")) {
		f.done()
	}
	return n, err
}
