package chart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	restclient "k8s.io/client-go/rest"
)

const (
	// namespaceFile is where a pod finds its namespace.
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
	// outerTimeout bounds one request to the outer cluster.
	outerTimeout = 10 * time.Second
	// maxAnswer bounds one answer of the outer cluster, in bytes.
	maxAnswer = 16 << 20
)

// Outer is the cluster that runs the chart, in the namespace of the release. Only the few kinds
// that the chart's hooks use are reached, by the REST API, because it can be any Kubernetes.
type Outer struct {
	web       *http.Client
	base      string
	Namespace string
}

// InCluster returns the cluster that this process is a pod of, with its service account.
func InCluster() (*Outer, error) {
	config, err := restclient.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("reach the cluster that runs this pod: %w", err)
	}
	namespace, err := os.ReadFile(namespaceFile)
	if err != nil {
		return nil, err
	}
	web, err := restclient.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	return NewOuter(web, config.Host, strings.TrimSpace(string(namespace))), nil
}

// NewOuter returns the cluster at a base URL.
func NewOuter(web *http.Client, base, namespace string) *Outer {
	return &Outer{web: web, base: strings.TrimSuffix(base, "/"), Namespace: namespace}
}

// StatefulSet returns spec.replicas of a StatefulSet, and whether it is gone or being deleted.
func (o *Outer) StatefulSet(ctx context.Context, name string) (replicas int, deleted bool, err error) {
	set := &appsv1.StatefulSet{}
	err = o.do(ctx, http.MethodGet, o.path("apps/v1", "statefulsets", name), nil, set)
	if apierrors.IsNotFound(err) {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("statefulset %s: %w", name, err)
	}
	replicas = 1
	if set.Spec.Replicas != nil {
		replicas = int(*set.Spec.Replicas)
	}
	return replicas, set.DeletionTimestamp != nil, nil
}

// Service returns a Service, or nil if there is none.
func (o *Outer) Service(ctx context.Context, name string) (*corev1.Service, error) {
	s := &corev1.Service{}
	err := o.do(ctx, http.MethodGet, o.path("v1", "services", name), nil, s)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return s, err
}

// foundedKey is the key of the ConfigMap that records who founded the control plane.
const foundedKey = "founded"

// Founder returns the pod that founded the control plane, as the ConfigMap records it; empty if
// none has.
func (o *Outer) Founder(ctx context.Context, configMap string) (string, error) {
	m := &corev1.ConfigMap{}
	if err := o.do(ctx, http.MethodGet, o.path("v1", "configmaps", configMap), nil, m); err != nil {
		return "", fmt.Errorf("configmap %s: %w", configMap, err)
	}
	return m.Data[foundedKey], nil
}

// RecordFounder records in the ConfigMap who founded the control plane. It fails if another one
// has done so meanwhile.
func (o *Outer) RecordFounder(ctx context.Context, configMap, pod string) error {
	m := &corev1.ConfigMap{}
	path := o.path("v1", "configmaps", configMap)
	if err := o.do(ctx, http.MethodGet, path, nil, m); err != nil {
		return fmt.Errorf("configmap %s: %w", configMap, err)
	}
	switch m.Data[foundedKey] {
	case pod:
		return nil
	case "":
	default:
		return fmt.Errorf("configmap %s: %s has founded this control plane", configMap, m.Data[foundedKey])
	}
	patch := map[string]any{
		"metadata": map[string]any{"resourceVersion": m.ResourceVersion},
		"data":     map[string]string{foundedKey: pod},
	}
	if err := o.do(ctx, http.MethodPatch, path, patch, nil); err != nil {
		return fmt.Errorf("configmap %s: %w", configMap, err)
	}
	return nil
}

// Secret returns a Secret, or nil if there is none.
func (o *Outer) Secret(ctx context.Context, name string) (*corev1.Secret, error) {
	s := &corev1.Secret{}
	err := o.do(ctx, http.MethodGet, o.path("v1", "secrets", name), nil, s)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	return s, nil
}

// WriteSecret creates or replaces a Secret. old is the present one, or nil.
func (o *Outer) WriteSecret(ctx context.Context, s, old *corev1.Secret) error {
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}
	s.Namespace = o.Namespace
	method, path := http.MethodPost, o.path("v1", "secrets", "")
	if old != nil {
		s.ResourceVersion, s.UID = old.ResourceVersion, old.UID
		method, path = http.MethodPut, o.path("v1", "secrets", s.Name)
	}
	if err := o.do(ctx, method, path, s, nil); err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	return nil
}

// Secrets lists the Secrets with a label.
func (o *Outer) Secrets(ctx context.Context, label, value string) ([]corev1.Secret, error) {
	list := &corev1.SecretList{}
	path := o.path("v1", "secrets", "") + "?labelSelector=" + url.QueryEscape(label+"="+value)
	if err := o.do(ctx, http.MethodGet, path, nil, list); err != nil {
		return nil, fmt.Errorf("list the secrets of %s: %w", value, err)
	}
	return list.Items, nil
}

// Claims lists the names of the PersistentVolumeClaims with a label.
func (o *Outer) Claims(ctx context.Context, label, value string) (names []string, err error) {
	list := &corev1.PersistentVolumeClaimList{}
	path := o.path("v1", "persistentvolumeclaims", "") + "?labelSelector=" + url.QueryEscape(label+"="+value)
	if err := o.do(ctx, http.MethodGet, path, nil, list); err != nil {
		return nil, fmt.Errorf("list the claims of %s: %w", value, err)
	}
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names, nil
}

// EnsureClaim creates a PersistentVolumeClaim, unless it exists.
func (o *Outer) EnsureClaim(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	path := o.path("v1", "persistentvolumeclaims", "")
	err := o.do(ctx, http.MethodGet, path+"/"+c.Name, nil, nil)
	if apierrors.IsNotFound(err) {
		c.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}
		err = o.do(ctx, http.MethodPost, path, c, nil)
	}
	if err != nil {
		return fmt.Errorf("claim %s: %w", c.Name, err)
	}
	return nil
}

// Delete deletes an object of the core group; one that is gone is no error.
func (o *Outer) Delete(ctx context.Context, resource, name string) error {
	err := o.do(ctx, http.MethodDelete, o.path("v1", resource, name), nil, nil)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %s: %w", resource, name, err)
	}
	return nil
}

// DeleteJob deletes a Job with its pods; one that is gone is no error.
func (o *Outer) DeleteJob(ctx context.Context, name string) error {
	background := metav1.DeletePropagationBackground
	options := &metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"}, PropagationPolicy: &background}
	err := o.do(ctx, http.MethodDelete, o.path("batch/v1", "jobs", name), options, nil)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete job %s: %w", name, err)
	}
	return nil
}

func (o *Outer) path(version, resource, name string) string {
	group := "/apis/"
	if version == "v1" {
		group = "/api/"
	}
	path := group + version + "/namespaces/" + o.Namespace + "/" + resource
	if name != "" {
		path += "/" + name
	}
	return path
}

// do sends one request. Refusals are errors that apierrors understands.
func (o *Outer) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, outerTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, o.base+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "keel")
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
		if method == http.MethodPatch {
			r.Header.Set("Content-Type", "application/merge-patch+json")
		}
	}
	answer, err := o.web.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return err
	}
	if answer.StatusCode >= http.StatusBadRequest {
		st := &metav1.Status{}
		if json.Unmarshal(data, st) == nil && st.Kind == "Status" {
			return &apierrors.StatusError{ErrStatus: *st}
		}
		return errors.New(answer.Status)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}
