package core

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ReplicationController returns the row of replicationcontrollers.
func ReplicationController() *resource.Kind {
	k := row.Namespaced[corev1.ReplicationController, corev1.ReplicationControllerList](
		corev1.SchemeGroupVersion, "replicationcontrollers", "controllers")
	k.ShortNames = []string{"rc"}
	k.Categories = []string{"all"}
	// As in Kubernetes: clients that predate propagation policies expect the pods to be kept.
	k.DefaultPropagation = metav1.DeletePropagationOrphan
	k.Columns, k.Cells = controllerColumns(), controllerCells
	k.Fields = map[string]func(resource.Object) string{
		"status.replicas": func(o resource.Object) string {
			return strconv.Itoa(int(o.(*corev1.ReplicationController).Status.Replicas))
		},
	}
	k.Rules = resource.Typed[*corev1.ReplicationController]{
		Default: defaultController,
		PrepareCreate: func(c *corev1.ReplicationController) {
			c.Status = corev1.ReplicationControllerStatus{}
			dropTemplate(c.Spec.Template)
		},
		PrepareUpdate: func(c, old *corev1.ReplicationController) {
			c.Status = old.Status
			dropTemplate(c.Spec.Template)
		},
		Warnings: controllerWarnings,
		Validate: validateController,
		ValidateUpdate: func(c, _ *corev1.ReplicationController) field.ErrorList {
			return validateController(c)
		},
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*corev1.ReplicationController]{
			Default:        defaultController,
			PrepareUpdate:  func(c, old *corev1.ReplicationController) { c.Spec = old.Spec },
			ValidateUpdate: validateControllerStatus,
		}.Rules()),
		"scale": row.Scale(resource.Scale{
			Get: func(o resource.Object) (int32, int32, string) {
				c := o.(*corev1.ReplicationController)
				return controllerReplicas(c), c.Status.Replicas, labels.Set(c.Spec.Selector).AsSelector().String()
			},
			Set: func(o resource.Object, n int32) { o.(*corev1.ReplicationController).Spec.Replicas = &n },
		}),
	}
	return k
}

func controllerReplicas(c *corev1.ReplicationController) int32 {
	if c.Spec.Replicas == nil {
		return 1
	}
	return *c.Spec.Replicas
}

func dropTemplate(t *corev1.PodTemplateSpec) {
	if t != nil {
		podspec.Drop(&t.Spec)
	}
}

func defaultController(c *corev1.ReplicationController) {
	if c.Spec.Replicas == nil {
		c.Spec.Replicas = new(int32(1))
	}
	t := c.Spec.Template
	if t == nil {
		return
	}
	if t.Labels != nil && len(c.Spec.Selector) == 0 {
		c.Spec.Selector = t.Labels
	}
	if t.Labels != nil && len(c.Labels) == 0 {
		c.Labels = t.Labels
	}
	podspec.DefaultTemplate(t)
}

func controllerWarnings(c, old *corev1.ReplicationController) []string {
	p := field.NewPath("spec", "template")
	if old != nil {
		// Kubernetes passes the two in reverse order, so the warnings are about the
		// template that is replaced.
		if check.Same(&c.Spec, &old.Spec) {
			return nil
		}
		return templateWarnings(old.Spec.Template, c.Spec.Template, p)
	}
	var list []string
	if m := check.Label(c.Name); m != nil {
		list = append(list, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, "+
			"which can result in surprising behavior; a DNS label is recommended: %v", m))
	}
	return append(list, templateWarnings(c.Spec.Template, nil, p)...)
}

// templateWarnings returns the warnings about a template that is new or has changed.
func templateWarnings(t, old *corev1.PodTemplateSpec, p *field.Path) []string {
	if t == nil || old != nil && check.Same(t, old) {
		return nil
	}
	return podspec.Warnings(&t.Spec, t.Annotations, p)
}

func validateController(c *corev1.ReplicationController) field.ErrorList {
	var e check.Errors
	s, p := &c.Spec, field.NewPath("spec")
	e.AtLeastZero(p, "minReadySeconds", int64(s.MinReadySeconds))
	e.AtLeastZero(p, "replicas", int64(controllerReplicas(c)))
	if len(s.Selector) == 0 {
		e.Required(p.Child("selector"), "")
	}
	if s.Template == nil {
		e.Required(p.Child("template"), "")
		return e.List
	}
	selector := &metav1.LabelSelector{MatchLabels: s.Selector}
	at := p.Child("template")
	if _, err := metav1.LabelSelectorAsSelector(selector); err != nil && !labels.SelectorFromSet(s.Selector).Matches(labels.Set(s.Template.Labels)) {
		e.Invalid(at.Child("metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`")
	}
	e.Append(podspec.ValidateLongRunning(s.Template, selector, at, "ReplicationController"))
	return e.List
}

func validateControllerStatus(c, _ *corev1.ReplicationController) field.ErrorList {
	var e check.Errors
	s, p := &c.Status, field.NewPath("status")
	e.AtLeastZero(p, "replicas", int64(s.Replicas))
	e.AtLeastZero(p, "fullyLabeledReplicas", int64(s.FullyLabeledReplicas))
	e.AtLeastZero(p, "readyReplicas", int64(s.ReadyReplicas))
	e.AtLeastZero(p, "availableReplicas", int64(s.AvailableReplicas))
	e.AtLeastZero(p, "observedGeneration", s.ObservedGeneration)
	notMore := func(child string, value, limit int32, of string) {
		if value > limit {
			e.Invalid(p.Child(child), value, "cannot be greater than "+of)
		}
	}
	notMore("fullyLabeledReplicas", s.FullyLabeledReplicas, s.Replicas, "status.replicas")
	notMore("readyReplicas", s.ReadyReplicas, s.Replicas, "status.replicas")
	notMore("availableReplicas", s.AvailableReplicas, s.Replicas, "status.replicas")
	notMore("availableReplicas", s.AvailableReplicas, s.ReadyReplicas, "readyReplicas")
	return e.List
}

func controllerColumns() []metav1.TableColumnDefinition {
	spec, status := corev1.ReplicationControllerSpec{}, corev1.ReplicationControllerStatus{}
	return []metav1.TableColumnDefinition{
		column.New("Desired", "integer", column.Doc(spec, "replicas")),
		column.New("Current", "integer", column.Doc(status, "replicas")),
		column.New("Ready", "integer", column.Doc(status, "readyReplicas")),
		column.AgeColumn(),
		column.Wide("Containers", "Names of each container in the template."),
		column.Wide("Images", "Images referenced by each container in the template."),
		column.Wide("Selector", column.Doc(spec, "selector")),
	}
}

func controllerCells(o resource.Object) []any {
	c := o.(*corev1.ReplicationController)
	var names, images string
	if c.Spec.Template != nil {
		names, images = column.Containers(c.Spec.Template.Spec.Containers)
	}
	return []any{
		int64(controllerReplicas(c)), int64(c.Status.Replicas), int64(c.Status.ReadyReplicas), column.Age(c.CreationTimestamp),
		names, images, column.Pairs(c.Spec.Selector),
	}
}
