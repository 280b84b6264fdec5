package rest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/tunnel/tunneltest"
)

// apiNode is a node that connects its read API, and every address, to the same server.
type apiNode struct {
	dialer
	apiMu sync.Mutex
	opens []string
}

func (n *apiNode) serve(open *nodev1.Open, s tunneltest.Session) {
	n.apiMu.Lock()
	if open.GetApi() != nil {
		n.opens = append(n.opens, "api")
	} else {
		n.opens = append(n.opens, open.GetDial().GetAddress())
	}
	n.apiMu.Unlock()
	n.dialer.serve(open, s)
}

// taken returns what was opened since the last call.
func (n *apiNode) taken() string {
	n.apiMu.Lock()
	defer n.apiMu.Unlock()
	out := fmt.Sprint(n.opens)
	n.opens = nil
	return out
}

func TestNodeProxy(t *testing.T) {
	f := newFront(t)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s auth=%q", r.Method, r.URL, r.Header.Get("Authorization"))
	}))
	defer target.Close()
	node := &apiNode{dialer: dialer{to: target.Listener.Addr().String()}}
	tunneltest.Connect(t, f.nodes, "n1", nil, node.serve)
	eventually(t, "the node connects", func() bool { return f.tunnel.Connected("n1") })
	nodes := f.fake.table.ByKind(corev1.SchemeGroupVersion.WithKind("Node"))
	for _, name := range []string{"n1", "n2"} {
		f.fake.put(nodes, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}}},
		})
	}
	f.fake.put(nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}})

	// granted is what the user may get; nil allows everything.
	for _, tc := range []struct {
		method, path string
		granted      []string
		code         int
		text, opened string
	}{
		{"GET", "n1/proxy/stats/summary?only_cpu_and_memory=true", nil, 200, `GET /stats/summary?only_cpu_and_memory=true auth=""`, "[api]"},
		{"GET", "n1:10250/proxy/logs/", nil, 200, `GET /logs/ auth=""`, "[api]"},
		{"GET", "https:n1:10250/proxy/metrics", nil, 200, `GET /metrics auth=""`, "[api]"},
		{"GET", "n1/proxy", nil, 301, "", "[]"},
		{"GET", "n1:9100/proxy/metrics", nil, 200, `GET /metrics auth=""`, "[10.0.0.1:9100]"},
		{"GET", "n1:ssh/proxy/", nil, 400, "not a port number", "[]"},
		{"GET", "n3:9100/proxy/", nil, 503, "node n3 has no internal address", "[]"},
		{"GET", "n2/proxy/healthz", nil, 503, "is not connected", "[]"},
		{"GET", "none/proxy/healthz", nil, 404, `nodes \"none\" not found`, "[]"},
		{"GET", "n1/proxy/metrics", []string{"proxy"}, 200, "GET /metrics", "[api]"},
		{"GET", "n1/proxy/metrics/cadvisor", []string{"metrics"}, 200, "GET /metrics/cadvisor", "[api]"},
		{"GET", "n1:10250/proxy/stats/summary", []string{"stats"}, 200, "GET /stats/summary", "[api]"},
		{"GET", "n1/proxy/logs/pods/", []string{"log"}, 200, "GET /logs/pods/", "[api]"},
		{"GET", "n1/proxy/pods", []string{"pods"}, 200, "GET /pods", "[api]"},
		{"GET", "n1/proxy/configz", []string{"configz"}, 200, "GET /configz", "[api]"},
		{"GET", "n1/proxy/healthz", []string{"healthz"}, 200, "GET /healthz", "[api]"},
		{"GET", "n1/proxy/pods", []string{"metrics"}, 403, "forbidden", "[]"},
		{"GET", "n1/proxy/metricsandmore", []string{"metrics"}, 403, "forbidden", "[]"},
		{"GET", "n1/proxy/metrics/%2e%2e/pods", []string{"metrics"}, 403, "forbidden", "[]"},
		{"GET", "n1/proxy/metrics//pods", []string{"metrics"}, 403, "forbidden", "[]"},
		{"GET", "n1:9100/proxy/metrics", []string{"metrics"}, 403, "forbidden", "[]"},
		{"POST", "n1/proxy/metrics", []string{"metrics"}, 403, "forbidden", "[]"},
		{"GET", "n1/proxy/", []string{"metrics", "stats"}, 403, "forbidden", "[]"},
	} {
		f.fake.deny = func(verb string, target pipeline.Target, user request.User) error {
			if tc.granted == nil || user.Name == "system:apiserver" {
				return nil
			}
			for _, sub := range tc.granted {
				if verb == "get" && target.Subresource == sub && (sub == "proxy" || target.Name == "n1") {
					return nil
				}
			}
			return apierrors.NewForbidden(target.Resource.GroupResource(), target.Name, errors.New("no"))
		}
		r, err := http.NewRequest(tc.method, f.url+"/api/v1/nodes/"+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer admin")
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tc.code || !strings.Contains(string(text), tc.text) {
			t.Errorf("%s %s with %v: %d %s, %v; want %d %s", tc.method, tc.path, tc.granted, resp.StatusCode, text, err, tc.code, tc.text)
		}
		if opened := node.taken(); opened != tc.opened {
			t.Errorf("%s %s with %v: opened %s, want %s", tc.method, tc.path, tc.granted, opened, tc.opened)
		}
	}
}
