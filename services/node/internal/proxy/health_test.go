package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestHealthCheckNodePort(t *testing.T) {
	t.Parallel()
	h := newHealthServer(slog.New(slog.DiscardHandler))
	addresses := map[uint16]string{}
	h.listen = func(port uint16) (net.Listener, error) {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", "127.0.0.1:0")
		if err == nil {
			addresses[port] = l.Addr().String()
		}
		return l, err
	}
	defer h.close()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	expect := func(status, endpoints int) {
		t.Helper()
		resp, err := client.Get("http://" + addresses[31000])
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body struct {
			Service        struct{ Namespace, Name string }
			LocalEndpoints int
		}
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status || body.LocalEndpoints != endpoints || body.Service.Name != "web" ||
			resp.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(endpoints) {
			t.Errorf("%d %+v %v, want %d with %d endpoints", resp.StatusCode, body, resp.Header, status, endpoints)
		}
	}
	svc := service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5"), externalLocal, func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 31000 })
	set := func(eps ...string) {
		f := plan(testNode(), svc, []*discoveryv1.EndpointSlice{slice(svc, 8080, eps...)})
		h.set(t.Context(), []localHealth{*f.health})
	}
	set("10.244.1.2@node-1", "10.244.1.3@node-1", "10.244.2.2@node-2")
	expect(http.StatusOK, 2)
	set("10.244.2.2@node-2")
	expect(http.StatusServiceUnavailable, 0)
	h.set(t.Context(), nil)
	if _, err := client.Get("http://" + addresses[31000]); err == nil {
		t.Error("the port of the removed Service is still open")
	}
}
