package chart

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Label marks what the chart's tool and the StatefulSet create besides the release, with the name
// of the control plane, so that uninstalling finds it.
const Label = "keelson.dev/control-plane"

// Store keeps files in Secrets of the outer cluster.
type Store struct {
	Outer *Outer
	// Name is the control plane's name, which begins the names of its Secrets.
	Name   string
	Labels map[string]string
}

// inside are the directories within a Secret: a key cannot contain a slash.
var inside = []string{"peer-authority", "peer", "tokens"}

// key returns the key of a file, and file the reverse.
func key(path string) string {
	dir, name := filepath.Split(path)
	if dir == "" {
		return name
	}
	return strings.TrimSuffix(dir, "/") + "." + name
}

func file(key string) string {
	for _, dir := range inside {
		if name, ok := strings.CutPrefix(key, dir+"."); ok {
			return filepath.Join(dir, name)
		}
	}
	return key
}

// Load writes the files of the Secret NAME-what, if there is one, to a directory.
func (s *Store) Load(ctx context.Context, what, dir string) error {
	secret, err := s.Outer.Secret(ctx, s.Name+"-"+what)
	if err != nil || secret == nil {
		return err
	}
	for k, data := range secret.Data {
		path := filepath.Join(dir, file(k))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Keep writes the Secret NAME-what, unless it has these contents. changed is true if it was
// written.
func (s *Store) Keep(ctx context.Context, what string, data map[string][]byte) (changed bool, err error) {
	name := s.Name + "-" + what
	old, err := s.Outer.Secret(ctx, name)
	if err != nil {
		return false, err
	}
	labels := maps.Clone(s.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[Label] = s.Name
	if old != nil && maps.EqualFunc(old.Data, data, slices.Equal) && old.Labels[Label] == s.Name {
		return false, nil
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Type: corev1.SecretTypeOpaque, Data: data}
	return true, s.Outer.WriteSecret(ctx, secret, old)
}

// Files reads files of a directory for Keep: those directly in it, and those in the given
// directories below it. Directories that are missing are left out.
func Files(dir string, below ...string) (map[string][]byte, error) {
	data := map[string][]byte{}
	for _, sub := range append([]string{""}, below...) {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if !entry.Type().IsRegular() {
				continue
			}
			path := filepath.Join(sub, entry.Name())
			if data[key(path)], err = os.ReadFile(filepath.Join(dir, path)); err != nil {
				return nil, err
			}
		}
	}
	return data, nil
}

// Claim creates the claim NAME-what, unless it exists. It is no object of the release: helm would wait
// until it is bound, which may take until a pod uses it.
func (s *Store) Claim(ctx context.Context, what, class, size string) error {
	storage, err := resource.ParseQuantity(size)
	if err != nil {
		return fmt.Errorf("size of the claim %s-%s: %w", s.Name, what, err)
	}
	labels := maps.Clone(s.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[Label] = s.Name
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: s.Name + "-" + what, Labels: labels},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: storage}},
		},
	}
	if class != "" {
		c.Spec.StorageClassName = &class
	}
	return s.Outer.EnsureClaim(ctx, c)
}

// jobs are the hooks' Jobs, which stay when they have failed.
var jobs = []string{"certificates", "settle", "test"}

// Clean deletes the Secrets of the control plane, the claims of its volumes, and the Jobs of hooks
// that have failed.
func (s *Store) Clean(ctx context.Context) (deleted []string, err error) {
	secrets, err := s.Outer.Secrets(ctx, Label, s.Name)
	if err != nil {
		return nil, err
	}
	claims, err := s.Outer.Claims(ctx, Label, s.Name)
	if err != nil {
		return nil, err
	}
	for i := range secrets {
		if err := s.Outer.Delete(ctx, "secrets", secrets[i].Name); err != nil {
			return deleted, err
		}
		deleted = append(deleted, "secret "+secrets[i].Name)
	}
	for _, claim := range claims {
		if err := s.Outer.Delete(ctx, "persistentvolumeclaims", claim); err != nil {
			return deleted, err
		}
		deleted = append(deleted, "claim "+claim)
	}
	for _, job := range jobs {
		if err := s.Outer.DeleteJob(ctx, s.Name+"-"+job); err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// Prune deletes the Secrets of the control plane other than those of Keep's names.
func (s *Store) Prune(ctx context.Context, kept []string) error {
	secrets, err := s.Outer.Secrets(ctx, Label, s.Name)
	if err != nil {
		return err
	}
	for i := range secrets {
		if what := strings.TrimPrefix(secrets[i].Name, s.Name+"-"); !slices.Contains(kept, what) {
			if err := s.Outer.Delete(ctx, "secrets", secrets[i].Name); err != nil {
				return err
			}
		}
	}
	return nil
}
