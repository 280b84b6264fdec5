package rest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/tunnel/tunneltest"
)

// TestProxyVerbs checks that the verb of a proxied method is that of Kubernetes' request info.
// The verb of OPTIONS is empty, so that only a rule for all verbs allows it.
func TestProxyVerbs(t *testing.T) {
	for method, want := range map[string]string{
		"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "OPTIONS": "",
	} {
		for _, path := range []string{"namespaces/a/pods/p", "namespaces/a/services/s", "nodes/n"} {
			f := newFront(t)
			asked := "none"
			f.fake.deny = func(verb string, target pipeline.Target, _ request.User) error {
				asked = verb + " " + target.Subresource
				return apierrors.NewForbidden(target.Resource.GroupResource(), target.Name, errors.New("no"))
			}
			r, err := http.NewRequest(method, f.url+"/api/v1/"+path+"/proxy/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusForbidden || asked != want+" proxy" {
				t.Errorf("%s %s: %d, authorized %q", method, path, resp.StatusCode, asked)
			}
		}
	}
}

// dialer is a node that connects every address to the same server and records the addresses.
type dialer struct {
	to    string
	mu    sync.Mutex
	asked []string
}

func (d *dialer) serve(open *nodev1.Open, s tunneltest.Session) {
	d.mu.Lock()
	d.asked = append(d.asked, open.GetDial().GetAddress())
	d.mu.Unlock()
	if strings.HasSuffix(open.GetDial().GetAddress(), ":81") {
		st := apierrors.NewServiceUnavailable("connection refused").Status()
		_ = s.Exit(0, &st)
		return
	}
	conn, err := net.Dial("tcp", d.to)
	if err != nil {
		return
	}
	received := make(chan struct{})
	defer func() {
		conn.Close()
		<-received // only one goroutine may read from the session
	}()
	go func() {
		defer close(received)
		defer conn.Close()
		for {
			m, err := s.Recv()
			if err != nil || m.GetCloseChannel() != 0 {
				return
			}
			if _, err := conn.Write(m.GetData().GetPayload()); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if n > 0 && s.Say(nodev1.Channel_CHANNEL_STDOUT, string(buf[:n])) != nil {
			return
		}
		if err != nil {
			_ = s.Exit(0, nil)
			return
		}
	}
}

func (d *dialer) last() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[len(d.asked)-1]
}

func TestProxy(t *testing.T) {
	f := newFront(t)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/page":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `<a href="/next">next</a>`)
		case "/moved":
			http.Redirect(w, r, "/page", http.StatusFound)
		default:
			fmt.Fprintf(w, "%s %s %q auth=%q", r.Method, r.URL, body, r.Header.Get("Authorization"))
		}
	}))
	defer target.Close()
	node := &dialer{to: target.Listener.Addr().String()}
	tunneltest.Connect(t, f.nodes, "n1", nil, node.serve)
	eventually(t, "the node connects", func() bool { return f.tunnel.Connected("n1") })

	pods := f.fake.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}}},
		Status:     corev1.PodStatus{PodIP: "10.244.1.5"},
	}
	f.fake.put(pods, pod)
	bad := pod.DeepCopy()
	bad.Name, bad.Status.PodIP = "loopback", "127.0.0.1"
	f.fake.put(pods, bad)
	f.fake.put(f.fake.table.ByKind(corev1.SchemeGroupVersion.WithKind("Service")), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80}, {Name: "other", Port: 81}}},
	})
	f.fake.put(f.fake.table.ByKind(discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice")), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		Ports:      []discoveryv1.EndpointPort{{Name: ptr("web"), Port: ptr(int32(9090))}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.1.6"}, NodeName: ptr("n1")},
			{Addresses: []string{"10.244.1.7"}, NodeName: ptr("n1"), Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}},
			{Addresses: []string{"10.244.1.8"}},
		},
	})

	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	do := func(method, path, body string) (int, http.Header, string) {
		r, err := http.NewRequest(method, f.url+"/api/v1/namespaces/default/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer admin")
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, resp.Header, string(text)
	}
	const base = "/api/v1/namespaces/default/"
	for _, tc := range []struct {
		method, path, body string
		code               int
		text, dialled      string
	}{
		{"GET", "pods/p/proxy/a/b?x=y", "", 200, `GET /a/b?x=y "" auth=""`, "10.244.1.5:8080"},
		{"POST", "pods/p:9000/proxy/a/", "hello", 200, `POST /a/ "hello" auth=""`, "10.244.1.5:9000"},
		{"DELETE", "pods/http:p:9000/proxy/", "", 200, `DELETE / "" auth=""`, "10.244.1.5:9000"},
		{"OPTIONS", "pods/p/proxy/a", "", 200, `OPTIONS /a "" auth=""`, "10.244.1.5:8080"},
		{"HEAD", "pods/p:9001/proxy/a", "", 200, "", "10.244.1.5:9001"},
		{"PUT", "pods/p/proxy/a", "x", 200, `PUT /a "x" auth=""`, "10.244.1.5:8080"},
		{"PATCH", "pods/p/proxy/a", "x", 200, `PATCH /a "x" auth=""`, "10.244.1.5:8080"},
		{"OPTIONS", "services/s:web/proxy/a", "", 200, `OPTIONS /a "" auth=""`, "10.244.1.6:9090"},
		{"TRACE", "pods/p/proxy/a", "", 405, "", ""},
		{"OPTIONS", "pods/p/exec", "", 405, "", ""},
		{"GET", "pods/p/proxy/page", "", 200, `<a href="` + base + `pods/p/proxy/next">next</a>`, "10.244.1.5:8080"},
		{"GET", "services/s:web/proxy/a", "", 200, `GET /a "" auth=""`, "10.244.1.6:9090"},
		{"GET", "services/s:80/proxy/a", "", 200, `GET /a "" auth=""`, "10.244.1.6:9090"},
		{"GET", "services/s:other/proxy/a", "", 503, `no endpoints available for service \"s\"`, ""},
		{"GET", "services/s:none/proxy/a", "", 503, `no endpoints available for service \"s\"`, ""},
		{"GET", "services/none/proxy/a", "", 404, `services \"none\" not found`, ""},
		{"GET", "pods/p:81/proxy/a", "", 503, "error trying to reach service: connection refused", "10.244.1.5:81"},
		{"GET", "pods/loopback/proxy/a", "", 400, "address 127.0.0.1 not allowed", ""},
		{"GET", "pods/p:http/proxy/a", "", 400, "port", ""},
		{"GET", "pods/ftp:p:21/proxy/a", "", 400, "invalid pod request", ""},
	} {
		code, _, text := do(tc.method, tc.path, tc.body)
		if code != tc.code || !strings.Contains(text, tc.text) {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, code, text)
		}
		if tc.dialled != "" && node.last() != tc.dialled {
			t.Errorf("%s %s: the node dialed %s", tc.method, tc.path, node.last())
		}
	}
	for path, location := range map[string]string{
		"pods/p/proxy":       base + "pods/p/proxy/",
		"pods/p/proxy/moved": base + "pods/p/proxy/page",
	} {
		if code, header, _ := do("GET", path, ""); code/100 != 3 || !strings.HasSuffix(header.Get("Location"), location) {
			t.Errorf("%s: %d %v", path, code, header)
		}
	}
}
