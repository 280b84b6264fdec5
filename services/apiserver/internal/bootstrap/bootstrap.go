// Package bootstrap creates what every cluster has: the system namespaces, the default roles and
// bindings, the system's priority classes, and the Service through which pods reach the
// apiservers.
//
// Missing objects and rules are added at each start; what operators have added is kept. The
// package must never remove anything that it did not write, and never change an object that opts
// out (rbac.authorization.kubernetes.io/autoupdate: "false").
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// manager is the field manager of this package's writes.
const manager = "apiserver"

// User is the identity of the apiserver itself.
var User = request.User{Name: "system:apiserver", Groups: []string{authz.MastersGroup}}

// Config configures Run.
type Config struct {
	API pipeline.API
	// ClientCA holds the CA certificates that client certificates are verified against, in PEM.
	// It is published for extension apiservers.
	ClientCA []byte
}

// attempts bounds how often Run starts over because an apiserver that started at the same time
// wrote first.
const attempts = 10

// Run adds what is missing, and returns when everything exists.
func Run(ctx context.Context, cfg Config) error {
	ctx = request.WithUser(ctx, User)
	p, err := defaults()
	if err != nil {
		return err
	}
	// Namespaces come first, because the other objects are in them.
	for _, desired := range [][]resource.Object{namespaces(), append(p.objects(), others(cfg)...)} {
		if err := ensure(ctx, cfg.API, desired); err != nil {
			return err
		}
	}
	return nil
}

// Await waits until the authorizer has the default policy.
func Await(ctx context.Context, z *authz.Authorizers) error {
	p, err := defaults()
	if err != nil {
		return err
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !known(p, z.RBAC) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func known(p *policy, r *authz.RBAC) bool {
	for _, o := range p.objects() {
		_, isRole := o.(*rbacv1.Role)
		_, isClusterRole := o.(*rbacv1.ClusterRole)
		if isRole || isClusterRole {
			if !r.HasRole(o.GetNamespace(), o.GetName()) {
				return false
			}
		} else if !r.HasBinding(o.GetNamespace(), o.GetName()) {
			return false
		}
	}
	return true
}

func namespaces() (list []resource.Object) {
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		list = append(list, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return list
}

func others(cfg Config) []resource.Object {
	list := []resource.Object{
		&schedulingv1.PriorityClass{
			ObjectMeta:  metav1.ObjectMeta{Name: "system-node-critical"},
			Value:       2000001000,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		&schedulingv1.PriorityClass{
			ObjectMeta:  metav1.ObjectMeta{Name: "system-cluster-critical"},
			Value:       2000000000,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
	if len(cfg.ClientCA) > 0 {
		list = append(list, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"},
			Data:       map[string]string{"client-ca-file": string(cfg.ClientCA)},
		})
	}
	return list
}

// ensure creates or updates the desired objects, with a single batch of writes if nothing
// conflicts.
func ensure(ctx context.Context, api pipeline.API, desired []resource.Object) error {
	var last error
	for range attempts {
		writes, err := plan(ctx, api, desired)
		if err != nil || len(writes) == 0 {
			return err
		}
		last = nil
		for i, r := range api.Commit(ctx, writes) {
			switch {
			case r.Err == nil:
			case ctx.Err() != nil:
				return ctx.Err()
			case apierrors.IsConflict(r.Err), apierrors.IsAlreadyExists(r.Err), apierrors.IsNotFound(r.Err), apierrors.IsTooManyRequests(r.Err), apierrors.IsTimeout(r.Err):
				last = r.Err // try again
			default:
				return fmt.Errorf("bootstrap %s %s: %w", writes[i].Target.Resource.Resource, writes[i].Target.Name, r.Err)
			}
		}
	}
	if last == nil {
		last = errors.New("conflicting writes in every attempt")
	}
	return fmt.Errorf("bootstrap: %w", last)
}

// plan returns the writes that are needed.
func plan(ctx context.Context, api pipeline.API, desired []resource.Object) ([]pipeline.Write, error) {
	existing := make(map[*resource.Kind]map[string]found)
	var writes []pipeline.Write
	for _, want := range desired {
		kind, err := kindOf(api.Table(), want)
		if err != nil {
			return nil, err
		}
		if existing[kind] == nil {
			if existing[kind], err = all(ctx, api, kind); err != nil {
				return nil, err
			}
		}
		have, ok := existing[kind][want.GetNamespace()+"/"+want.GetName()]
		more, err := planOne(kind, want, have, ok)
		if err != nil {
			return nil, err
		}
		writes = append(writes, more...)
	}
	return writes, nil
}

func planOne(kind *resource.Kind, want resource.Object, have found, exists bool) ([]pipeline.Write, error) {
	if !exists {
		w, err := write("create", kind, want)
		return []pipeline.Write{w}, err
	}
	if have.object.GetDeletionTimestamp() != nil {
		return nil, nil // it is being deleted; the next start adds it again
	}
	next, action := reconcile(want, have.object)
	switch action {
	case change:
		next.SetResourceVersion(have.version)
		w, err := write("update", kind, next)
		return []pipeline.Write{w}, err
	case replace:
		w, err := write("create", kind, next)
		return []pipeline.Write{{Verb: "delete", Target: w.Target, Delete: pipeline.DeleteOptions{
			Preconditions: &metav1.Preconditions{ResourceVersion: &have.version},
		}}, w}, err
	}
	return nil, nil
}

// found is an object of the cluster. It is shared and must not be changed.
type found struct {
	object  resource.Object
	version string
}

func all(ctx context.Context, api pipeline.API, kind *resource.Kind) (map[string]found, error) {
	list, err := api.List(ctx, pipeline.Target{Resource: kind.GVR()}, pipeline.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: list %s: %w", kind.Resource, err)
	}
	m := make(map[string]found, len(list.Items))
	for _, item := range list.Items {
		m[item.Object().GetNamespace()+"/"+item.Object().GetName()] = found{item.Object(), versionOf(item)}
	}
	return m, nil
}

// versionOf returns an item's resourceVersion, which its decoded object does not contain.
func versionOf(item *watchcache.Item) string { return strconv.FormatInt(int64(item.Revision), 10) }

func kindOf(table *resource.Table, o resource.Object) (*resource.Kind, error) {
	gvr, ok := resourceOf(o)
	kind := table.ByResource(gvr)
	if !ok || kind == nil {
		return nil, fmt.Errorf("bootstrap: %T is not served", o)
	}
	return kind, nil
}

func write(verb string, kind *resource.Kind, o resource.Object) (pipeline.Write, error) {
	data, err := o.Marshal()
	if err != nil {
		return pipeline.Write{}, fmt.Errorf("bootstrap: encode %s %s: %w", kind.Resource, o.GetName(), err)
	}
	return pipeline.Write{
		Verb:    verb,
		Target:  pipeline.Target{Resource: kind.GVR(), Namespace: o.GetNamespace(), Name: nameFor(verb, o)},
		Body:    pipeline.Body{Data: data, Type: pipeline.Message, GVK: kind.GVK},
		Options: pipeline.WriteOptions{FieldManager: manager, UserAgent: manager},
	}, nil
}

// nameFor returns the name of the write's target. A create targets the collection.
func nameFor(verb string, o resource.Object) string {
	if verb == "create" {
		return ""
	}
	return o.GetName()
}

func resourceOf(o resource.Object) (schema.GroupVersionResource, bool) {
	core, rbac := corev1.SchemeGroupVersion, rbacv1.SchemeGroupVersion
	switch o.(type) {
	case *corev1.Namespace:
		return core.WithResource("namespaces"), true
	case *corev1.ConfigMap:
		return core.WithResource("configmaps"), true
	case *schedulingv1.PriorityClass:
		return schedulingv1.SchemeGroupVersion.WithResource("priorityclasses"), true
	case *rbacv1.ClusterRole:
		return rbac.WithResource("clusterroles"), true
	case *rbacv1.ClusterRoleBinding:
		return rbac.WithResource("clusterrolebindings"), true
	case *rbacv1.Role:
		return rbac.WithResource("roles"), true
	case *rbacv1.RoleBinding:
		return rbac.WithResource("rolebindings"), true
	}
	return schema.GroupVersionResource{}, false
}
