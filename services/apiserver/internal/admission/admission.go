// Package admission is what looks at a write beyond the object itself: does the
// namespace exist, which priority has the class, may this node do that. One
// plugin a file; New lists them in the order they run.
//
// Plugins see other objects through State only. They must never write to the
// store, and a Validator must never change the object.
package admission

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// Operation is what a write does to an object.
type Operation string

// The operations.
const (
	Create  Operation = "CREATE"
	Update  Operation = "UPDATE"
	Delete  Operation = "DELETE"
	Connect Operation = "CONNECT"
)

// Attributes are a write as plugins see it.
type Attributes struct {
	Operation   Operation
	User        request.User
	Kind        *resource.Kind
	Subresource string
	Namespace   string
	Name        string
	// Object is the new state (nil for a delete), Old the present one (nil for a
	// create). Old must not be changed.
	Object, Old resource.Object
	DryRun      bool
	// Warn adds a warning to the answer.
	Warn func(message string)
}

// Is tells whether the write is to a resource of a group, and to one of the
// subresources ("" is the object itself).
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

// GroupResource is the written resource.
func (a *Attributes) GroupResource() schema.GroupResource {
	return a.Kind.GVR().GroupResource()
}

// Mutator may change Attributes.Object.
type Mutator interface {
	Admit(ctx context.Context, a *Attributes) error
}

// Validator may refuse. Errors that are no *apierrors.StatusError become
// Forbidden.
type Validator interface {
	Validate(ctx context.Context, a *Attributes) error
}

// State reads other objects from the watch cache. What it returns is shared and
// must not be changed.
type State interface {
	// Get reads one object as the cache has it; false if there is none.
	Get(group, resource, namespace, name string) (resource.Object, bool)
	// GetFresh reads one object consistently.
	GetFresh(ctx context.Context, group, resource, namespace, name string) (resource.Object, bool, error)
	// Each calls f for the objects of a namespace (all, if empty) until it
	// returns false.
	Each(group, resource, namespace string, f func(resource.Object) bool)
}

// Chain is the plugins in order: all mutators, then all validators.
type Chain struct {
	Mutators   []Mutator
	Validators []Validator
}

// Admit runs the mutators.
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

// Validate runs the validators.
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
