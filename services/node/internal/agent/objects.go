package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/pod"
)

// objects provides the ConfigMaps and Secrets that this node's pods refer to. Each is
// watched individually for as long as a pod refers to it, because a node is not authorized
// to read any others.
type objects struct {
	client  *client.Client
	base    context.Context
	changed func(types.UID)

	mu         sync.Mutex
	configMaps map[objectKey]*watched[*corev1.ConfigMap]
	secrets    map[objectKey]*watched[*corev1.Secret]
	// updated is when any object that a pod refers to last changed.
	updated map[types.UID]time.Time
	wg      sync.WaitGroup
}

type objectKey struct{ namespace, name string }

// watched is one object and the pods that refer to it.
type watched[T client.Object] struct {
	users  map[types.UID]bool
	cancel context.CancelFunc
	// first is closed once the object's state is known. After that, some reports whether
	// the object exists and obj is the object.
	first chan struct{}
	obj   T
	some  bool
}

// newObjects returns an empty set. Its watches end with ctx.
func newObjects(ctx context.Context, c *client.Client, changed func(types.UID)) *objects {
	return &objects{
		client: c, base: ctx, changed: changed,
		configMaps: map[objectKey]*watched[*corev1.ConfigMap]{}, secrets: map[objectKey]*watched[*corev1.Secret]{},
		updated: map[types.UID]time.Time{},
	}
}

// refer starts watching the objects that a pod refers to.
func (o *objects) refer(p *corev1.Pod) {
	configMaps, secrets := references(p)
	for name := range configMaps {
		attach(o, o.configMaps, objectKey{p.Namespace, name}, p.UID)
	}
	for name := range secrets {
		attach(o, o.secrets, objectKey{p.Namespace, name}, p.UID)
	}
}

// release stops watching the objects that only this pod referred to.
func (o *objects) release(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	detach(o.configMaps, uid)
	detach(o.secrets, uid)
	delete(o.updated, uid)
}

// changedSince reports whether an object that a pod refers to has changed after t.
func (o *objects) changedSince(uid types.UID, t time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.updated[uid].After(t)
}

// wait returns when all watches have ended, which requires their context to have ended.
func (o *objects) wait() { o.wg.Wait() }

func attach[T client.Object](o *objects, set map[objectKey]*watched[T], key objectKey, uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := set[key]
	if w == nil {
		ctx, cancel := context.WithCancel(o.base)
		w = &watched[T]{users: map[types.UID]bool{}, cancel: cancel, first: make(chan struct{})}
		set[key] = w
		o.wg.Add(1)
		go func() {
			defer o.wg.Done()
			follow(ctx, o, w, key)
		}()
	}
	w.users[uid] = true
}

func detach[T client.Object](set map[objectKey]*watched[T], uid types.UID) {
	for key, w := range set {
		delete(w.users, uid)
		if len(w.users) == 0 {
			w.cancel()
			delete(set, key)
		}
	}
}

// follow watches one object until ctx ends. Each watch starts with the current state, so no
// change is missed between two watches.
func follow[T client.Object](ctx context.Context, o *objects, w *watched[T], key objectKey) {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		seen := false
		for ev, err := range client.For[T](o.client).Watch(ctx, client.WatchOptions{
			Namespace: key.namespace, Name: key.name, SendInitialEvents: true, AllowBookmarks: true,
		}) {
			if err != nil {
				break
			}
			delay = 0
			switch {
			case ev.Type == client.Added || ev.Type == client.Modified:
				seen = true
				o.update(func() (users map[types.UID]bool) {
					w.obj, w.some = ev.Object, true
					w.done()
					return w.users
				})
			case ev.Type == client.Deleted, ev.InitialEnd && !seen:
				o.update(func() map[types.UID]bool {
					var none T
					w.obj, w.some = none, false
					w.done()
					return w.users
				})
			}
		}
		delay = min(max(2*delay, 100*time.Millisecond), 10*time.Second)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

func (w *watched[T]) done() {
	select {
	case <-w.first:
	default:
		close(w.first)
	}
}

// update changes an object's state and wakes the pods that refer to it.
func (o *objects) update(f func() map[types.UID]bool) {
	o.mu.Lock()
	var users []types.UID
	for uid := range f() {
		users = append(users, uid)
		o.updated[uid] = time.Now()
	}
	o.mu.Unlock()
	for _, uid := range users {
		o.changed(uid)
	}
}

// objectPatience is how long a read waits for a watch to deliver the object's first state.
const objectPatience = 5 * time.Second

func read[T client.Object](ctx context.Context, o *objects, set map[objectKey]*watched[T], key objectKey) (T, error) {
	var none T
	o.mu.Lock()
	w := set[key]
	o.mu.Unlock()
	if w == nil {
		obj, err := client.For[T](o.client).Get(ctx, key.namespace, key.name)
		if apierrors.IsNotFound(err) {
			return none, nil
		}
		return obj, err
	}
	ctx, cancel := context.WithTimeout(ctx, objectPatience)
	defer cancel()
	select {
	case <-w.first:
	case <-ctx.Done():
		// The watch has delivered nothing. Ask the API directly: its answer explains why.
		obj, err := client.For[T](o.client).Get(o.base, key.namespace, key.name)
		switch {
		case apierrors.IsNotFound(err):
			return none, nil
		case err != nil:
			return none, err
		}
		return obj, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !w.some {
		return none, nil
	}
	return w.obj, nil
}

// ConfigMap implements volume.Objects.
func (o *objects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	return read(ctx, o, o.configMaps, objectKey{namespace, name})
}

// Secret implements volume.Objects.
func (o *objects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return read(ctx, o, o.secrets, objectKey{namespace, name})
}

// Claim implements volume.Objects.
func (o *objects) Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	obj, err := client.For[*corev1.PersistentVolumeClaim](o.client).Get(ctx, namespace, name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return obj, err
}

// PersistentVolume implements volume.Objects.
func (o *objects) PersistentVolume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	obj, err := client.For[*corev1.PersistentVolume](o.client).Get(ctx, "", name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return obj, err
}

// RuntimeClass returns a RuntimeClass, or nil if it does not exist.
func (o *objects) RuntimeClass(ctx context.Context, name string) (*nodev1.RuntimeClass, error) {
	obj, err := client.For[*nodev1.RuntimeClass](o.client).Get(ctx, "", name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return obj, err
}

// Token implements volume.Objects.
func (o *objects) Token(ctx context.Context, namespace, account string, spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
	request := &authenticationv1.TokenRequest{Spec: spec}
	resp, err := client.Post[*corev1.ServiceAccount, *authenticationv1.TokenRequest](ctx, o.client, namespace, account, "token", request)
	if err == nil && resp.Status.Token == "" {
		return nil, fmt.Errorf("service account %s/%s: the server returned no token", namespace, account)
	}
	if err != nil {
		return nil, fmt.Errorf("service account %s/%s: %w", namespace, account, err)
	}
	return resp, nil
}

// references returns the names of the ConfigMaps and Secrets in a pod's spec.
func references(p *corev1.Pod) (configMaps, secrets map[string]bool) {
	configMaps, secrets = map[string]bool{}, map[string]bool{}
	for _, c := range pod.Containers(p) {
		for _, from := range c.EnvFrom {
			if from.ConfigMapRef != nil {
				configMaps[from.ConfigMapRef.Name] = true
			}
			if from.SecretRef != nil {
				secrets[from.SecretRef.Name] = true
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
				configMaps[r.Name] = true
			}
			if r := e.ValueFrom.SecretKeyRef; r != nil {
				secrets[r.Name] = true
			}
		}
	}
	for _, s := range p.Spec.ImagePullSecrets {
		secrets[s.Name] = true
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.ConfigMap != nil {
			configMaps[v.ConfigMap.Name] = true
		}
		if v.Secret != nil {
			secrets[v.Secret.SecretName] = true
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				configMaps[s.ConfigMap.Name] = true
			}
			if s.Secret != nil {
				secrets[s.Secret.Name] = true
			}
		}
	}
	delete(configMaps, "")
	delete(secrets, "")
	return configMaps, secrets
}
