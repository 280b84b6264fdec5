package command

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/client"
)

// fakeTokens holds Secrets by name.
type fakeTokens map[string]*corev1.Secret

func (f fakeTokens) Create(_ context.Context, s *corev1.Secret, _ ...client.WriteOption) (*corev1.Secret, error) {
	if f[s.Name] != nil {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "secrets"}, s.Name)
	}
	f[s.Name] = s
	return s, nil
}

func (f fakeTokens) Delete(_ context.Context, _, name string, _ ...client.DeleteOption) error {
	if f[name] == nil {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	delete(f, name)
	return nil
}

// fakeNodes contains the names of existing nodes. A nil map fails all calls.
type fakeNodes map[string]bool

func (f fakeNodes) Get(_ context.Context, _, name string) (*corev1.Node, error) {
	switch {
	case f == nil:
		return nil, errors.New("unavailable")
	case !f[name]:
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil
}

// Only nodes that do not exist get a token, each for its own name and once. A used token is
// replaced if its node was deleted.
func TestAdmit(t *testing.T) {
	tokens := map[string]string{"node-0": "aaaaaa.0123456789abcdef", "node-1": "bbbbbb.0123456789abcdef", "node-2": "cccccc.0123456789abcdef"}
	used := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-cccccc", Annotations: map[string]string{"keelson.dev/used-by": "x"}}}
	secrets := fakeTokens{used.Name: used}
	a := admission{secrets: secrets, nodes: fakeNodes{"node-1": true}}
	until := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 2 {
		got, err := a.admit(t.Context(), tokens, until)
		if err != nil || !slices.Equal(got, []string{"node-0", "node-2"}) {
			t.Fatalf("admitted %v, %v", got, err)
		}
	}
	for name, node := range map[string]string{"bootstrap-token-aaaaaa": "node-0", "bootstrap-token-cccccc": "node-2"} {
		s := secrets[name]
		if s == nil || len(s.Annotations) > 0 || s.StringData["node-name"] != node || s.StringData["single-use"] != "true" ||
			s.StringData["auth-extra-groups"] != nodeJoiners || s.StringData["expiration"] != "2030-01-01T00:00:00Z" {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if len(secrets) != 2 {
		t.Errorf("%d tokens, want 2: an existing node needs none", len(secrets))
	}
	if _, err := (&admission{secrets: secrets, nodes: fakeNodes(nil)}).admit(t.Context(), tokens, until); err == nil || !strings.Contains(err.Error(), "node-0") {
		t.Errorf("without an answer about the node: %v", err)
	}
}

func TestReadTokens(t *testing.T) {
	dir := t.TempDir()
	if _, err := readTokens(dir); err == nil || !strings.Contains(err.Error(), "keel pki") {
		t.Errorf("read an empty directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "node-0"), []byte("aaaaaa.0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readTokens(dir); err != nil || got["node-0"] != "aaaaaa.0123456789abcdef" {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "node-1"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readTokens(dir); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("read an invalid token: %v", err)
	}
}
