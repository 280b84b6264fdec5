package ha_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// ask gets a page and returns its status code and text.
func ask(transport *http.Transport, url string) (int, string, error) {
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// ops asks the operations socket of a process for /readyz?verbose.
func ops(c *cluster.Cluster, name string) (int, string, error) {
	return ask(&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.Home, "run", name+".ops"))
	}}, "http://ops/readyz?verbose")
}

// TestReadiness stops two of three apiservers: the third one reports at each of its ports
// that the stores do not answer, and no other failure; the other services stay connected
// to it. When the two go on, everything is ready again.
func TestReadiness(t *testing.T) {
	c := start(t)
	list := c.Apiservers(t)
	left := list[0]
	health := healthv1.NewHealthClient(c.Dial(t, []string{left.GRPC}).Conn())
	anonymous := &tls.Config{RootCAs: c.TLS(t).RootCAs, MinVersion: tls.VersionTLS13}

	// state is nil if every port of the apiserver reports that the stores answer, or, if
	// not well, that they do not.
	state := func(ctx context.Context, well bool) error {
		mark, code, serving := "[+]%s ok\n", http.StatusOK, healthv1.HealthCheckResponse_SERVING
		if !well {
			mark, code, serving = "[-]%s failed", http.StatusInternalServerError, healthv1.HealthCheckResponse_NOT_SERVING
		}
		pages := map[string]func() (int, string, error){
			"operations port": func() (int, string, error) { return ops(c, left.Name) },
			"REST": func() (int, string, error) {
				return ask(&http.Transport{TLSClientConfig: anonymous}, "https://"+left.HTTPS+"/readyz?verbose")
			},
		}
		for where, get := range pages {
			got, page, err := get()
			if err != nil {
				return err
			}
			if got != code {
				return fmt.Errorf("%s answers %d: %s", where, got, page)
			}
			for _, name := range []string{"etcd", "raft"} {
				if !strings.Contains(page, fmt.Sprintf(mark, name)) {
					return fmt.Errorf("%s: %s", where, page)
				}
			}
			for _, name := range []string{"start", "shutdown", "etcd-vote"} {
				if !strings.Contains(page, "[+]"+name+" ok\n") {
					return fmt.Errorf("%s: %s", where, page)
				}
			}
			if where == "REST" && !well && !strings.Contains(page, "[-]etcd failed: reason withheld\n") {
				return fmt.Errorf("an anonymous client is told why a check failed: %s", page)
			}
		}
		for service, want := range map[string]healthv1.HealthCheckResponse_ServingStatus{
			"": serving, "keelson.resource.v1.ResourceService": serving, "keelson.coordination.v1.FenceService": serving,
			"keelson.node.v1.TunnelService": healthv1.HealthCheckResponse_SERVING,
		} {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			resp, err := health.Check(ctx, &healthv1.HealthCheckRequest{Service: service})
			cancel()
			if err != nil {
				return fmt.Errorf("health of %q: %w", service, err)
			}
			if resp.GetStatus() != want {
				return fmt.Errorf("health of %q: %s", service, resp.GetStatus())
			}
		}
		return nil
	}
	expect := func(what string, well bool) {
		t.Helper()
		wait.For(t, time.Minute, what, func(ctx context.Context) error { return state(ctx, well) })
	}
	// leaders is nil if one process of each elected service leads and the other is ready to.
	leaders := func(context.Context) error {
		for _, service := range []string{"scheduler", "controller-manager", "cloud-controller"} {
			pages := ""
			for i := range 2 {
				code, page, err := ops(c, fmt.Sprintf("%s-%d", service, i))
				if err != nil || code != http.StatusOK || !strings.Contains(page, "[+]apiserver ok\n") {
					return errors.Join(err, fmt.Errorf("%s-%d: %s", service, i, page))
				}
				pages += page
			}
			if strings.Count(pages, "[+]leadership ok: leading\n") != 1 || strings.Count(pages, "[+]leadership ok: standby\n") != 1 {
				return errors.New(pages)
			}
		}
		return nil
	}
	expect("everything is ready at first", true)
	wait.For(t, time.Minute, "each service has a leader and a standby", leaders)
	resume := []func(){c.Stop(t, list[1]), c.Stop(t, list[2])}
	expect("the stores do not answer while two of three are stopped", false)
	for _, f := range resume {
		f()
	}
	expect("everything is ready when the two go on", true)
	wait.For(t, time.Minute, "each service has a leader and a standby again", leaders)
}
