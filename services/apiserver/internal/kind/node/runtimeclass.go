package node

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// RuntimeClass returns the row of runtimeclasses.
func RuntimeClass() *resource.Kind {
	k := row.Cluster[nodev1.RuntimeClass, nodev1.RuntimeClassList](nodev1.SchemeGroupVersion, "runtimeclasses", "runtimeclasses")
	k.NoGeneration = true
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Handler", "The name of the configuration of the container runtime that runs the pods."),
		column.AgeColumn(),
	}
	k.Cells = func(o resource.Object) []any {
		return []any{o.(*nodev1.RuntimeClass).Handler, column.Age(o.GetCreationTimestamp())}
	}
	k.Rules = resource.Typed[*nodev1.RuntimeClass]{
		Warnings: func(c, _ *nodev1.RuntimeClass) []string { return runtimeClassWarnings(c) },
		Validate: validateRuntimeClass,
		ValidateUpdate: func(c, old *nodev1.RuntimeClass) field.ErrorList {
			e := check.Errors{List: validateRuntimeClass(c)}
			if c.Handler != old.Handler {
				e.Invalid(field.NewPath("handler"), nil, check.Immutable) // Kubernetes' error omits the value
			}
			return e.List
		},
		CreateOnUpdate:        true,
		NoUnconditionalUpdate: true,
	}.Rules()
	return k
}

func runtimeClassWarnings(c *nodev1.RuntimeClass) []string {
	if c.Scheduling == nil {
		return nil
	}
	var list []string
	for key := range c.Scheduling.NodeSelector {
		if why := check.DeprecatedNodeLabel(key); why != "" {
			list = append(list, "scheduling.nodeSelector: "+why)
		}
	}
	return list
}

func validateRuntimeClass(c *nodev1.RuntimeClass) field.ErrorList {
	var e check.Errors
	if c.Handler == "" {
		e.Required(field.NewPath("handler"), "")
	} else {
		e.Messages(nil, "handler", c.Handler, content.IsDNS1123Label(c.Handler))
	}
	if c.Overhead != nil {
		podspec.ValidateResources(&e, &corev1.ResourceRequirements{Limits: c.Overhead.PodFixed}, field.NewPath("overhead"))
	}
	if s := c.Scheduling; s != nil {
		p := field.NewPath("scheduling")
		e.Labels(p, "nodeSelector", s.NodeSelector)
		type key struct {
			key, value string
			operator   corev1.TolerationOperator
			effect     corev1.TaintEffect
		}
		seen := map[key]bool{}
		for i := range s.Tolerations {
			t, at := &s.Tolerations[i], p.Child("tolerations").Index(i)
			podspec.ValidateToleration(&e, t, at)
			k := key{t.Key, t.Value, t.Operator, t.Effect}
			if seen[k] {
				e.Duplicate(at, *t)
			}
			seen[k] = true
		}
	}
	return e.List
}
