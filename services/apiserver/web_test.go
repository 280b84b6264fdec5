package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// TestWebOrigins calls an apiserver by gRPC-Web on its HTTPS port, as a page does.
func TestWebOrigins(t *testing.T) {
	const page = "https://console.example.com"
	c := newCluster(t)
	at := c.startBoth(t, "--memory", "--web-origins", page)
	admin := c.client(t, at.grpc, "kubernetes-admin", "system:masters")
	if _, err := client.For[*corev1.ServiceAccount](admin).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "page"}}); err != nil {
		t.Fatal(err)
	}
	_, err := client.For[*rbacv1.RoleBinding](admin).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "page"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "page"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := client.Post[*corev1.ServiceAccount, *authenticationv1.TokenRequest](t.Context(), admin, "default", "page", "token", &authenticationv1.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	message, err := proto.Marshal(&resourcev1.GetRequest{Ref: &resourcev1.Ref{Version: "v1", Resource: "serviceaccounts", Namespace: "default", Name: "page"}})
	if err != nil {
		t.Fatal(err)
	}
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	// A client certificate does not count: a browser would send it for any page.
	config := c.ca.Source(t, "kubernetes-admin", "system:masters").ClientTLS("localhost")
	for _, http2 := range []bool{false, true} {
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: http2}}
		defer web.CloseIdleConnections()
		for name, tc := range map[string]struct {
			origin, token, address string
			code                   int
			status                 string // in the trailers
		}{
			"token":          {page, issued.Status.Token, at.https, 200, "grpc-status: 0\r\n"},
			"wrong token":    {page, issued.Status.Token + "x", at.https, 200, "grpc-status: 16\r\n"},
			"no token":       {page, "", at.https, 200, "grpc-status: 7\r\n"},
			"another origin": {"https://evil.example.com", issued.Status.Token, at.https, 403, ""},
			"no origin":      {"", issued.Status.Token, at.https, 200, "grpc-status: 0\r\n"},
		} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+tc.address+"/keelson.resource.v1.ResourceService/Get", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/grpc-web+proto")
			if tc.origin != "" {
				r.Header.Set("Origin", tc.origin)
			}
			if tc.token != "" {
				r.Header.Set("Authorization", "Bearer "+tc.token)
			}
			resp, err := web.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != tc.code || !strings.Contains(string(got), tc.status) || (resp.ProtoMajor == 2) != http2 {
				t.Errorf("%s, HTTP/2 %t: %s %s, %q, %v; want %d with %q", name, http2, resp.Proto, resp.Status, got, err, tc.code, tc.status)
			}
		}
	}
}

// TestWebIsOffByDefault checks that without origins there is no gRPC-Web, not even for programs that are
// no browsers.
func TestWebIsOffByDefault(t *testing.T) {
	c := newCluster(t)
	at := c.startBoth(t, "--memory")
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: c.ca.Source(t, "kubernetes-admin", "system:masters").ClientTLS("localhost")}}
	defer web.CloseIdleConnections()
	for _, method := range []string{http.MethodPost, http.MethodOptions} {
		r, err := http.NewRequestWithContext(t.Context(), method, "https://"+at.https+"/keelson.resource.v1.ResourceService/Get", strings.NewReader("\x00\x00\x00\x00\x00"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/grpc-web+proto")
		r.Header.Set("Origin", "https://console.example.com")
		r.Header.Set("Access-Control-Request-Method", http.MethodPost)
		resp, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound || resp.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %s, %v", method, resp.Status, resp.Header)
		}
	}
}
