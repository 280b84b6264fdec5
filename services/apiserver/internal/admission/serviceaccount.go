package admission

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// ServiceAccount gives every pod its service account, a token for it, and its pull secrets.
type ServiceAccount struct {
	State State
	// Wait bounds the wait for the default account of a new namespace, which a controller
	// creates. 0 does not wait. Kubernetes waits for 0.9 to 1.8 s.
	Wait time.Duration
}

const (
	// newNamespace is the namespace age up to which its default account is waited for. It bounds
	// the total wait of a batch of pods, however many there are.
	newNamespace = 10 * time.Second
	// accountPoll is how often the cache is polled for the account.
	accountPoll = 20 * time.Millisecond
)

const (
	defaultServiceAccount = "default"
	tokenMountPath        = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenVolumePrefix     = "kube-api-access-"
	rootCAConfigMap       = "kube-root-ca.crt"
	// tokenSeconds is the lifetime of injected tokens in Kubernetes, which its apiserver
	// recognizes them by (WarnOnlyBoundTokenExpirationSeconds, KEP-1205).
	tokenSeconds = 60*60 + 7
	tokenMode    = int32(0o644)
)

// Admit implements Mutator.
func (p *ServiceAccount) Admit(ctx context.Context, a *Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || a.Operation != Create || !a.Is("", "pods") {
		return nil
	}
	if isMirror(pod) {
		return checkMirror(pod)
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = defaultServiceAccount
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	sa, err := p.account(ctx, a.Namespace, pod.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if mountsToken(sa, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = append([]corev1.LocalObjectReference(nil), sa.ImagePullSecrets...)
	}
	return nil
}

func (p *ServiceAccount) account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	obj, ok := p.State.Get("", "serviceaccounts", namespace, name)
	if !ok {
		var err error
		if obj, ok, err = p.State.GetFresh(ctx, "", "serviceaccounts", namespace, name); err != nil {
			return nil, err
		}
	}
	if !ok && name == defaultServiceAccount {
		obj, ok = p.await(ctx, namespace)
	}
	sa, is := obj.(*corev1.ServiceAccount)
	if !ok || !is {
		return nil, fmt.Errorf("error looking up service account %s/%s: serviceaccount %q not found", namespace, name, name)
	}
	return sa, nil
}

// await polls the cache for the default account of a namespace that was created recently.
func (p *ServiceAccount) await(ctx context.Context, namespace string) (resource.Object, bool) {
	ns, ok := p.State.Get("", "namespaces", "", namespace)
	if !ok || p.Wait <= 0 || time.Since(ns.GetCreationTimestamp().Time) > newNamespace {
		return nil, false
	}
	end := time.NewTimer(p.Wait)
	defer end.Stop()
	tick := time.NewTicker(accountPoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-end.C:
			return nil, false
		case <-ctx.Done():
			return nil, false
		}
		if obj, ok := p.State.Get("", "serviceaccounts", namespace, defaultServiceAccount); ok {
			return obj, true
		}
	}
}

// isMirror reports whether the pod is the mirror of a node's static pod.
func isMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// checkMirror refuses mirror pods that reference a service account or secrets.
func checkMirror(pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return errors.New("a mirror pod may not reference service accounts")
	}
	for i := range pod.Spec.Volumes {
		if projected := pod.Spec.Volumes[i].Projected; projected != nil {
			for _, s := range projected.Sources {
				if s.ServiceAccountToken != nil {
					return errors.New("a mirror pod may not use ServiceAccountToken volume projections")
				}
			}
		}
		if pod.Spec.Volumes[i].Secret != nil {
			return errors.New("a mirror pod may not reference secrets")
		}
	}
	return nil
}

// mountsToken reports whether the pod gets a token. The pod's own setting overrides the
// account's.
func mountsToken(sa *corev1.ServiceAccount, pod *corev1.Pod) bool {
	if v := pod.Spec.AutomountServiceAccountToken; v != nil {
		return *v
	}
	return sa.AutomountServiceAccountToken == nil || *sa.AutomountServiceAccountToken
}

// mountToken adds the projected token volume and mounts it in every container that has no other
// mount at that path.
func mountToken(pod *corev1.Pod) {
	name, exists := "", false
	taken := make(map[string]bool, len(pod.Spec.Volumes))
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		taken[v.Name] = true
		if v.Projected != nil && strings.HasPrefix(v.Name, tokenVolumePrefix) {
			name, exists = v.Name, true
			break
		}
	}
	for name == "" || !exists && taken[name] {
		name = tokenVolumePrefix + suffix()
	}
	mounted := false
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			mounted = mountInto(&list[i], name) || mounted
		}
	}
	if mounted && !exists {
		pod.Spec.Volumes = append(pod.Spec.Volumes, tokenVolume(name))
	}
}

func mountInto(c *corev1.Container, volume string) bool {
	for i := range c.VolumeMounts {
		if c.VolumeMounts[i].MountPath == tokenMountPath {
			return false
		}
	}
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, ReadOnly: true, MountPath: tokenMountPath})
	return true
}

func tokenVolume(name string) corev1.Volume {
	seconds, mode := int64(tokenSeconds), tokenMode
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCAConfigMap},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
				Path:     "namespace",
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
			}}}},
		},
	}}}
}

// suffix returns the random part of a generated name.
func suffix() string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	var b [5]byte
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b[:])
}
