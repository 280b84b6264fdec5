package resource

import (
	"context"

	"k8s.io/apimachinery/pkg/labels"
)

// Source computes the objects of a computed kind.
type Source interface {
	// Get returns one object, or an error that satisfies apierrors.IsNotFound.
	Get(ctx context.Context, namespace, name string) (Object, error)
	// List returns all objects of a namespace, or of all namespaces if it is empty, that match the
	// selector.
	List(ctx context.Context, namespace string, selector labels.Selector) ([]Object, error)
}
