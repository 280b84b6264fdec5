package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
)

// pair returns a self-signed certificate and its key.
func pair(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const kubeconfigHead = `apiVersion: v1
kind: Config
preferences: {}
current-context: one
contexts:
- {name: one, context: {cluster: c, user: u, namespace: shop}}
- {name: other, context: {cluster: missing, user: u}}
`

func TestFromKubeconfig(t *testing.T) {
	dir := t.TempDir()
	cert, key := pair(t)
	write(t, filepath.Join(dir, "tls.crt"), cert)
	write(t, filepath.Join(dir, "tls.key"), key)
	write(t, filepath.Join(dir, "token"), []byte("from a file\n"))
	inline := base64.StdEncoding.EncodeToString
	load := func(cluster, user string) (client.Config, error) {
		path := write(t, filepath.Join(dir, "config"), []byte(kubeconfigHead+"clusters:\n- {name: c, cluster: {"+cluster+"}}\nusers:\n- {name: u, user: {"+user+"}}\n"))
		return client.FromKubeconfig(path, "")
	}
	cfg, err := load("server: 'https://[::1]:6443', tls-server-name: kubernetes, certificate-authority: tls.crt",
		"client-certificate: tls.crt, client-key: tls.key, tokenFile: token, token: not this one")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Endpoints[0] != "[::1]:6443" || cfg.TLS.ServerName != "kubernetes" || cfg.TLS.RootCAs == nil || cfg.Namespace != "shop" {
		t.Errorf("got %+v", cfg)
	}
	if token, err := cfg.Token(); err != nil || token != "from a file" {
		t.Errorf("token: %q %v", token, err)
	}
	if got, err := cfg.TLS.GetClientCertificate(nil); err != nil || len(got.Certificate) != 1 {
		t.Errorf("certificate: %v", err)
	}
	renewed, newKey := pair(t)
	write(t, filepath.Join(dir, "tls.crt"), renewed)
	write(t, filepath.Join(dir, "tls.key"), newKey)
	if got, err := cfg.TLS.GetClientCertificate(nil); err != nil || string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: got.Certificate[0]})) != string(renewed) {
		t.Errorf("the renewed certificate: %v", err)
	}
	cfg, err = load("server: https://host, certificate-authority-data: "+inline(cert), "client-certificate-data: "+inline(cert)+", client-key-data: "+inline(key))
	if err != nil || cfg.Endpoints[0] != "host:443" || cfg.Token != nil {
		t.Errorf("inline: %+v %v", cfg, err)
	}
	if cfg, err = load("server: https://host:1", "token: abc"); err != nil {
		t.Error(err)
	} else if token, err := cfg.Token(); err != nil || token != "abc" {
		t.Errorf("token: %q %v", token, err)
	}
	t.Setenv("KUBECONFIG", filepath.Join(dir, "config"))
	if cfg, err := client.FromKubeconfig("", "one"); err != nil || cfg.Endpoints[0] != "host:1" {
		t.Errorf("KUBECONFIG: %+v %v", cfg, err)
	}

	for _, c := range []struct{ cluster, user, want string }{
		{"server: http://host", "", "https://HOST:PORT"},
		{"server: https://host/path", "", "without a path"},
		{"server: https://host, insecure-skip-tls-verify: true", "", "insecure-skip-tls-verify is not supported"},
		{"server: https://host, proxy-url: 'http://proxy'", "", "proxy-url is not supported"},
		{"server: https://host, certificate-authority: none.crt", "", "none.crt"},
		{"server: https://host, certificate-authority-data: " + inline([]byte("no PEM")), "", "no certificate in PEM"},
		{"server: https://host, certificate-authority-data: '%'", "", "certificate-authority"},
		{"server: https://host", "exec: {command: aws}", "exec is not supported"},
		{"server: https://host", "auth-provider: {name: gcp}", "auth-provider is not supported"},
		{"server: https://host", "username: root, password: secret", "is not supported"},
		{"server: https://host", "as: admin", "as is not supported"},
		{"server: https://host", "client-certificate: tls.crt", "client-certificate"},
		{"server: https://host, certificat-authority: x", "", "certificat-authority"},
	} {
		if _, err := load(c.cluster, c.user); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s, %s: %v; want %q", c.cluster, c.user, err, c.want)
		}
	}
	if _, err := load("server: https://host", ""); err != nil {
		t.Error(err)
	}
	if _, err := client.FromKubeconfig("", "other"); err == nil || !strings.Contains(err.Error(), `no cluster "missing"`) {
		t.Errorf("a context without its cluster: %v", err)
	}
	if _, err := client.FromKubeconfig("", "third"); err == nil || !strings.Contains(err.Error(), `no context "third"`) {
		t.Errorf("an unknown context: %v", err)
	}
	t.Setenv("KUBECONFIG", "a"+string(filepath.ListSeparator)+"b")
	if _, err := client.FromKubeconfig("", ""); err == nil {
		t.Error("several files were accepted")
	}
}

func TestInCluster(t *testing.T) {
	dir := t.TempDir()
	cert, _ := pair(t)
	write(t, filepath.Join(dir, "ca.crt"), cert)
	write(t, filepath.Join(dir, "token"), []byte("t"))
	write(t, filepath.Join(dir, "namespace"), []byte("shop"))
	env := map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
	cfg, err := client.InClusterFrom(func(name string) string { return env[name] }, dir)
	if err != nil || cfg.Endpoints[0] != "10.0.0.1:443" || cfg.Namespace != "shop" || cfg.TLS.RootCAs == nil {
		t.Errorf("got %+v %v", cfg, err)
	}
	if token, err := cfg.Token(); err != nil || token != "t" {
		t.Errorf("token: %q %v", token, err)
	}
	if _, err := client.InClusterFrom(func(string) string { return "" }, dir); err == nil {
		t.Error("outside of a pod: no error")
	}
}

func TestDynamic(t *testing.T) {
	c := clienttest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	maps, err := client.Dynamic(c, schema.GroupVersionResource{Version: "v1", Resource: "configmaps"})
	if err != nil {
		t.Fatal(err)
	}
	object := func(content map[string]any) *client.Unstructured {
		t.Helper()
		u, err := client.NewUnstructured(maps.Kind(), content)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	made, err := maps.Create(ctx, object(map[string]any{
		"metadata": map[string]any{"namespace": "ns", "name": "a"}, "data": map[string]any{"k": "v"},
	}))
	if err != nil || made.GetUID() == "" || made.GetKind() != "ConfigMap" {
		t.Fatal(made, err)
	}
	typed, err := client.For[*corev1.ConfigMap](c).Get(ctx, "ns", "a")
	if err != nil || typed.Data["k"] != "v" {
		t.Errorf("typed: %v %v", typed, err)
	}
	next := made.DeepCopyObject().(*client.Unstructured)
	next.Object["data"] = map[string]any{"k": "w"}
	if _, err := maps.Update(ctx, next); err != nil {
		t.Error(err)
	}
	if _, err := maps.Update(ctx, next); !apierrors.IsConflict(err) {
		t.Errorf("a stale update: %v", err)
	}
	if got, err := maps.Patch(ctx, "ns", "a", types.MergePatchType, []byte(`{"data":{"p":"1"}}`)); err != nil || got.Object["data"].(map[string]any)["p"] != "1" {
		t.Errorf("patch: %v %v", got, err)
	}
	applied := object(map[string]any{"metadata": map[string]any{"namespace": "ns", "name": "b"}, "data": map[string]any{"k": "1"}})
	if _, err := maps.Apply(ctx, applied, "test"); err != nil {
		t.Errorf("apply: %v", err)
	}
	if items, _, err := maps.List(ctx, client.ListOptions{Namespace: "ns"}); err != nil || len(items) != 2 {
		t.Errorf("list: %v %v", items, err)
	}
	if results, err := c.Commit(ctx, client.CreateWrite(object(map[string]any{"metadata": map[string]any{"namespace": "ns", "name": "c"}}))); err != nil || results[0].Err != nil {
		t.Errorf("commit: %v %v", results, err)
	}
	for ev, err := range maps.Watch(ctx, client.WatchOptions{Namespace: "ns", Name: "a"}) {
		if err != nil || ev.Object.GetName() != "a" {
			t.Errorf("watch: %v %v", ev, err)
		}
		break
	}
	if err := maps.Delete(ctx, "ns", "a"); err != nil {
		t.Error(err)
	}
	if _, err := maps.Create(ctx, object(map[string]any{"metadata": map[string]any{"namespace": "ns", "name": "x"}, "dat": map[string]any{}})); err == nil {
		t.Error("an unknown field was accepted")
	}
	if _, err := maps.Create(ctx, &client.Unstructured{}); err == nil {
		t.Error("an object without a kind was accepted")
	}
	if _, err := client.NewUnstructured(maps.Kind(), map[string]any{"apiVersion": "v1", "kind": "Secret"}); err == nil {
		t.Error("another kind was accepted")
	}
	if _, err := client.Dynamic(c, schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "things"}); err == nil {
		t.Error("an unknown resource was accepted")
	}
}

// counted counts the connections that it accepts.
type counted struct {
	net.Listener
	n *atomic.Int32
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

// TestFollowEndpoints checks that a client that knows one apiserver reaches another when that one
// is gone.
func TestFollowEndpoints(t *testing.T) {
	s := clienttest.NewServer()
	var accepted atomic.Int32
	listen := func() (address string, port int32, stop func()) {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, p, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(p, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return l.Addr().String(), int32(n), s.Serve(counted{l, &accepted})
	}
	first, _, stopFirst := listen()
	_, port, stopSecond := listen()
	defer stopSecond()
	c, err := client.Dial(client.Config{Endpoints: []string{first}, FollowEndpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	name, ready := "https", true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
	if _, err := client.For[*discoveryv1.EndpointSlice](c).Create(ctx, slice); err != nil {
		t.Fatal(err)
	}
	// The client connects to the second server once it has learned of it.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for accepted.Load() < 2 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the second apiserver was not found")
		}
	}
	stopFirst()
	for {
		if _, err = client.For[*discoveryv1.EndpointSlice](c).Get(ctx, "default", "kubernetes"); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}
