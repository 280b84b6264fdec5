// Package admission implements the checks and mutations of a write that look beyond the object
// itself: whether the namespace exists, which priority a class stands for, whether this node may
// make this change. Each plugin has a file of its own; Default lists them in the order in which
// they run.
//
// Plugins read other objects through State only. They must never write to the store, and a
// Validator must never change the object.
package admission

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// Operation is what a write does to an object.
type Operation string

// The operations. Kubernetes' CONNECT (exec, attach, port-forward and proxy) is missing: none
// of its plugins that Default lists handles that, so connections pass authorization only.
const (
	Create Operation = "CREATE"
	Update Operation = "UPDATE"
	Delete Operation = "DELETE"
)

// Attributes describes a write to the plugins.
type Attributes struct {
	Operation   Operation
	User        request.User
	Kind        *resource.Kind
	Subresource string
	Namespace   string
	Name        string
	// Object is the new state (nil for a delete) and Old the current one (nil for a create). Old
	// must not be changed.
	Object, Old resource.Object
	DryRun      bool
	// Warn adds a warning to the response.
	Warn func(message string)
}

// Is reports whether the write is to the given resource of the given group, and to one of the
// subresources. Without subresources it matches the object itself only.
func (a *Attributes) Is(group, name string, subresources ...string) bool {
	if a.Kind.GVK.Group != group || a.Kind.Resource != name {
		return false
	}
	for _, s := range subresources {
		if a.Subresource == s {
			return true
		}
	}
	return len(subresources) == 0 && a.Subresource == ""
}

// GroupResource returns the resource that is written.
func (a *Attributes) GroupResource() schema.GroupResource {
	return a.Kind.GVR().GroupResource()
}

// Mutator is a plugin that may change Attributes.Object.
type Mutator interface {
	Admit(ctx context.Context, a *Attributes) error
}

// Validator is a plugin that may refuse a write. An error that is not an *apierrors.StatusError
// becomes Forbidden.
type Validator interface {
	Validate(ctx context.Context, a *Attributes) error
}

// State reads other objects from the watch cache. The objects are shared and must not be changed.
type State interface {
	// Get returns an object from the cache, or false if the cache does not have it.
	Get(group, resource, namespace, name string) (resource.Object, bool)
	// GetFresh returns an object as of a consistent read, or false if it does not exist.
	GetFresh(ctx context.Context, group, resource, namespace, name string) (resource.Object, bool, error)
	// Each calls f for the objects of a namespace (of all namespaces, if it is empty) until f
	// returns false.
	Each(group, resource, namespace string, f func(resource.Object) bool)
}

// Chain is a list of plugins. All mutators run before all validators, each list in order.
type Chain struct {
	Mutators   []Mutator
	Validators []Validator
}

// Admit runs the mutators and stops at the first error.
func (c *Chain) Admit(ctx context.Context, a *Attributes) error {
	if c == nil {
		return nil
	}
	for _, m := range c.Mutators {
		if err := m.Admit(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// Validate runs the validators and stops at the first error.
func (c *Chain) Validate(ctx context.Context, a *Attributes) error {
	if c == nil {
		return nil
	}
	for _, v := range c.Validators {
		if err := v.Validate(ctx, a); err != nil {
			return err
		}
	}
	return nil
}
