// Package volume sets up pods' volumes before the first container starts, keeps volumes
// made of API objects up to date, and tears volumes down after the last container has
// ended.
//
// Everything is stored under <data dir>/pods/<uid>/volumes. The package must never delete
// through a mount: it unmounts first, and deletes nothing if that fails.
package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/pod"
)

// Objects reads the API objects that volumes are made of. A missing object is returned as
// nil without an error.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
	PersistentVolume(ctx context.Context, name string) (*corev1.PersistentVolume, error)
	Token(ctx context.Context, namespace, serviceAccount string, spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error)
}

// Config configures a Set.
type Config struct {
	// Dir holds one directory per pod.
	Dir     string
	Objects Objects
	// HostIPs returns the node's addresses, for the downward API.
	HostIPs func() []string
	// Allocatable returns the node's allocatable resources, for the downward API.
	Allocatable func() corev1.ResourceList
}

// Set manages the volumes of the node's pods. It is safe for concurrent use, except for
// concurrent calls for the same pod.
type Set struct {
	cfg    Config
	tokens tokenCache

	mu    sync.Mutex
	ready map[types.UID]map[string]Mounted
}

// Mounted is a volume that is ready for containers.
type Mounted struct {
	// Path is the volume's path on the node.
	Path string
	// ReadOnly is true if the volume is read-only whatever the container's mount says.
	ReadOnly bool
	// image is the volume if the runtime mounts it from an image; it then has no Path.
	image *corev1.Volume
}

// New returns a Set.
func New(cfg Config) *Set {
	return &Set{cfg: cfg, tokens: tokenCache{objects: cfg.Objects, now: time.Now}, ready: map[types.UID]map[string]Mounted{}}
}

// PodDir returns a pod's directory.
func (s *Set) PodDir(uid types.UID) string { return filepath.Join(s.cfg.Dir, string(uid)) }

// dir returns the directory of one volume, in the kubelet's layout.
func (s *Set) dir(uid types.UID, plugin, name string) string {
	return filepath.Join(s.PodDir(uid), "volumes", "kubernetes.io~"+plugin, name)
}

// mount is the setup of one volume of a pod.
type mount struct {
	set   *Set
	pod   *corev1.Pod
	v     *corev1.Volume
	group *int64
	// user is the user that all containers run as, or nil if they differ.
	user *int64
}

// Mount sets up a pod's volumes and updates those that exist already. If one of them fails,
// Mount returns an error and may be called again.
func (s *Set) Mount(ctx context.Context, p *corev1.Pod) error {
	var all []error
	mounted := map[string]Mounted{}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		m, err := s.mountOne(ctx, p, v)
		if err != nil {
			all = append(all, fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", v.Name, err))
			continue
		}
		mounted[v.Name] = m
	}
	s.mu.Lock()
	s.ready[p.UID] = mounted
	s.mu.Unlock()
	return errors.Join(all...)
}

// Refresh updates the volumes that are made of API objects. It returns when it should be
// called again even if no object changes.
func (s *Set) Refresh(ctx context.Context, p *corev1.Pod) (time.Time, error) {
	var all []error
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if !live(v) {
			continue
		}
		if _, err := s.mountOne(ctx, p, v); err != nil {
			all = append(all, fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", v.Name, err))
		}
	}
	return s.tokens.next(p.UID), errors.Join(all...)
}

func live(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

func (s *Set) mountOne(ctx context.Context, p *corev1.Pod, v *corev1.Volume) (Mounted, error) {
	m := mount{set: s, pod: p, v: v}
	if sc := p.Spec.SecurityContext; sc != nil {
		m.group = sc.FSGroup
	}
	m.user = commonUser(p)
	switch {
	case v.EmptyDir != nil:
		return m.emptyDir()
	case v.HostPath != nil:
		return m.hostPath()
	case v.ConfigMap != nil:
		return m.configMap(ctx)
	case v.Secret != nil:
		return m.secret(ctx)
	case v.DownwardAPI != nil:
		return m.downwardAPI()
	case v.Projected != nil:
		return m.projected(ctx)
	case v.Image != nil:
		return Mounted{ReadOnly: true, image: v}, nil
	case v.PersistentVolumeClaim != nil:
		return m.claim(ctx, v.PersistentVolumeClaim.ClaimName, v.PersistentVolumeClaim.ReadOnly)
	case v.Ephemeral != nil:
		return m.claim(ctx, p.Name+"-"+v.Name, false)
	}
	return Mounted{}, errors.New("the volume type is not supported")
}

// commonUser returns the user that every container of a pod runs as, or nil if there is
// none.
func commonUser(p *corev1.Pod) *int64 {
	var user *int64
	for role, c := range pod.Containers(p) {
		if role == pod.Ephemeral {
			continue // the volumes are mounted before it is added
		}
		var u *int64
		if sc := c.SecurityContext; sc != nil && sc.RunAsUser != nil {
			u = sc.RunAsUser
		} else if p.Spec.SecurityContext != nil {
			u = p.Spec.SecurityContext.RunAsUser
		}
		if u == nil || (user != nil && *user != *u) {
			return nil
		}
		user = u
	}
	return user
}

// Ready returns a pod's mounted volumes by name.
func (s *Set) Ready(uid types.UID) map[string]Mounted {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready[uid]
}

// Pods returns the UIDs of the pods that have a directory.
func (s *Set) Pods() []types.UID {
	entries, _ := os.ReadDir(s.cfg.Dir)
	var out []types.UID
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, types.UID(e.Name()))
		}
	}
	return out
}

// Unmount tears down a pod's volumes and removes the pod's directory.
func (s *Set) Unmount(uid types.UID) error {
	if uid == "" || strings.ContainsAny(string(uid), "/\x00") || strings.HasPrefix(string(uid), ".") {
		return fmt.Errorf("invalid pod UID %q", uid)
	}
	dir := s.PodDir(uid)
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if err := RemoveAll(dir); err != nil {
		return err
	}
	s.tokens.forget(uid)
	s.mu.Lock()
	delete(s.ready, uid)
	s.mu.Unlock()
	return nil
}
