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
	"syscall"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// ask gets a page.
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

// ops is the /readyz?verbose of a process' operations socket.
func (c *controlPlane) ops(name string) (int, string, error) {
	return ask(&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.home, "run", name+".ops"))
	}}, "http://ops/readyz?verbose")
}

// TestReadiness stops two of three apiservers: the third says, everywhere, that the
// stores do not answer, and nothing else; the other services stay connected to it.
// When they go on, all of it is well again.
func TestReadiness(t *testing.T) {
	c := start(t)
	list, err := c.apiservers()
	if err != nil {
		t.Fatal(err)
	}
	left := list[0]
	health := healthv1.NewHealthClient(c.dial([]string{left.GRPC}).Conn())
	anonymous := &tls.Config{RootCAs: c.tls().RootCAs, MinVersion: tls.VersionTLS13}

	// state is whether each of the places says that the stores answer or not, nil
	// when all do.
	state := func(well bool) error {
		mark, code, serving := "[+]%s ok\n", http.StatusOK, healthv1.HealthCheckResponse_SERVING
		if !well {
			mark, code, serving = "[-]%s failed", http.StatusInternalServerError, healthv1.HealthCheckResponse_NOT_SERVING
		}
		pages := map[string]func() (int, string, error){
			"operations port": func() (int, string, error) { return c.ops(left.Name) },
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
				return fmt.Errorf("a stranger is told more than what has failed: %s", page)
			}
		}
		for service, want := range map[string]healthv1.HealthCheckResponse_ServingStatus{
			"": serving, "keelson.resource.v1.ResourceService": serving, "keelson.coordination.v1.FenceService": serving,
			"keelson.node.v1.TunnelService": healthv1.HealthCheckResponse_SERVING,
		} {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
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
		if err := until(time.Minute, func() (bool, error) { err := state(well); return err == nil, err }); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// Of two of a service one leads.
	leaders := func() (bool, error) {
		for _, service := range []string{"scheduler", "controller-manager", "cloud-controller"} {
			pages := ""
			for i := range 2 {
				code, page, err := c.ops(fmt.Sprintf("%s-%d", service, i))
				if err != nil || code != http.StatusOK || !strings.Contains(page, "[+]apiserver ok\n") {
					return false, errors.Join(err, fmt.Errorf("%s-%d: %s", service, i, page))
				}
				pages += page
			}
			if strings.Count(pages, "[+]leadership ok: leading\n") != 1 || strings.Count(pages, "[+]leadership ok: standby\n") != 1 {
				return false, errors.New(pages)
			}
		}
		return true, nil
	}
	expect("at first", true)
	if err := until(time.Minute, leaders); err != nil {
		t.Fatal(err)
	}
	resume := func() {
		for _, p := range list[1:] {
			_ = syscall.Kill(p.PID, syscall.SIGCONT)
		}
	}
	t.Cleanup(resume)
	for _, p := range list[1:] {
		if err := syscall.Kill(p.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	expect("two of three are stopped", false)
	resume()
	expect("all go on", true)
	if err := until(time.Minute, leaders); err != nil {
		t.Fatal(err)
	}
}
