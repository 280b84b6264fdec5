package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Lease returns the row of leases.
func Lease() *resource.Kind {
	k := row.Namespaced[coordinationv1.Lease, coordinationv1.LeaseList](coordinationv1.SchemeGroupVersion, "leases", "leases")
	k.NoGeneration, k.Transient = true, true
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Holder", column.Doc(coordinationv1.LeaseSpec{}, "holderIdentity")), column.AgeColumn(),
	}
	k.Cells = func(o resource.Object) []any {
		l := o.(*coordinationv1.Lease)
		holder := ""
		if l.Spec.HolderIdentity != nil {
			holder = *l.Spec.HolderIdentity
		}
		return []any{holder, column.Age(l.CreationTimestamp)}
	}
	k.Rules = resource.Typed[*coordinationv1.Lease]{
		PrepareCreate:  dropElection,
		PrepareUpdate:  func(l, _ *coordinationv1.Lease) { dropElection(l) },
		Validate:       validate,
		ValidateUpdate: func(l, _ *coordinationv1.Lease) field.ErrorList { return validate(l) },
		CreateOnUpdate: true,
		// A client that renews a lease without having read it would take it from its holder.
		NoUnconditionalUpdate: true,
	}.Rules()
	return k
}

// dropElection clears the fields of coordinated leader election, which is off in Kubernetes by
// default.
func dropElection(l *coordinationv1.Lease) {
	l.Spec.Strategy = nil
	l.Spec.PreferredHolder = nil
}

func validate(l *coordinationv1.Lease) field.ErrorList {
	var e check.Errors
	s, p := &l.Spec, field.NewPath("spec")
	if d := s.LeaseDurationSeconds; d != nil && *d <= 0 {
		e.Invalid(p.Child("leaseDurationSeconds"), *d, "must be greater than 0")
	}
	if t := s.LeaseTransitions; t != nil {
		e.AtLeastZero(p, "leaseTransitions", int64(*t))
	}
	return e.List
}
