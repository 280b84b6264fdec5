package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NamespaceLifecycle refuses creates in a namespace that does not exist or is terminating, and
// the deletion of the namespaces that every cluster needs.
type NamespaceLifecycle struct{ State State }

// immortal is the set of namespaces that may not be deleted.
var immortal = map[string]bool{
	metav1.NamespaceDefault: true, metav1.NamespaceSystem: true, metav1.NamespacePublic: true,
}

// Admit implements Mutator. It comes before every plugin that reads the namespace.
func (p *NamespaceLifecycle) Admit(ctx context.Context, a *Attributes) error {
	if a.Operation != Create || !a.Kind.Namespaced || a.Subresource != "" || a.Kind.Virtual() {
		return nil
	}
	obj, ok := p.State.Get("", "namespaces", "", a.Namespace)
	if !ok {
		var err error
		if obj, ok, err = p.State.GetFresh(ctx, "", "namespaces", "", a.Namespace); err != nil {
			return err
		}
	}
	if !ok {
		return apierrors.NewNotFound(corev1.Resource("namespaces"), a.Namespace)
	}
	ns, ok := obj.(*corev1.Namespace)
	if !ok || ns.Status.Phase != corev1.NamespaceTerminating {
		return nil
	}
	err := apierrors.NewForbidden(a.GroupResource(), a.Name,
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.Namespace))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", a.Namespace),
		Field:   "metadata.namespace",
	})
	return err
}

// Validate implements Validator.
func (p *NamespaceLifecycle) Validate(_ context.Context, a *Attributes) error {
	if a.Operation == Delete && a.Is("", "namespaces") && immortal[a.Name] {
		return errors.New("this namespace may not be deleted")
	}
	return nil
}
