package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/component-helpers/nodedeclaredfeatures"
	"k8s.io/component-helpers/nodedeclaredfeatures/types"
	resourcehelper "k8s.io/component-helpers/resource"
)

// PodResize refuses a resize that the pod's node can never make: the node declares no support for
// it, or is too small for the pod alone. Whether there is room beside the other pods is the node's
// decision. Error texts are Kubernetes'.
type PodResize struct{ State State }

// Causes of a refused resize.
const (
	causeNodeCapacity        metav1.CauseType = "NodeCapacity"
	causeUnsupportedPlatform metav1.CauseType = "UnsupportedPlatform"
)

// resizeVersion is the version of Kubernetes whose nodes have to declare features.
var resizeVersion = version.MustParseGeneric("1.37.0")

// Validate implements Validator.
func (p *PodResize) Validate(ctx context.Context, a *Attributes) error {
	if a.Operation != Update || !a.Is("", "pods", "", "resize") {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	old, was := a.Old.(*corev1.Pod)
	if !ok || !was || pod.Spec.NodeName == "" || pod.Generation == old.Generation {
		return nil
	}
	features := nodedeclaredfeatures.DefaultFramework
	required, err := features.InferForPodUpdate(
		&types.PodInfo{Spec: &old.Spec, Status: &old.Status}, &types.PodInfo{Spec: &pod.Spec, Status: &pod.Status}, resizeVersion)
	if err != nil {
		return fmt.Errorf("failed to infer pod capability requirements: %w", err)
	}
	if required.IsEmpty() && a.Subresource == "" {
		return nil
	}
	node, err := p.node(ctx, pod.Spec.NodeName)
	if err != nil {
		return err
	}
	match, err := features.MatchNode(required, node)
	switch {
	case err != nil:
		return fmt.Errorf("failed to match pod requirements against node %q: %w", node.Name, err)
	case !match.IsMatch:
		return fmt.Errorf("pod update requires features %s which are not available on node %q", strings.Join(match.UnsatisfiedRequirements, ", "), node.Name)
	case a.Subresource == "":
		return nil
	}
	if os := node.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
		return because(a, causeUnsupportedPlatform, fmt.Errorf("pod resize is only supported on linux nodes, node %q is %q", node.Name, os))
	}
	if err := fits(pod, node); err != nil {
		return because(a, causeNodeCapacity, err)
	}
	return nil
}

func (p *PodResize) node(ctx context.Context, name string) (*corev1.Node, error) {
	obj, ok := p.State.Get("", "nodes", "", name)
	if !ok {
		var err error
		if obj, ok, err = p.State.GetFresh(ctx, "", "nodes", "", name); err != nil {
			return nil, err
		}
	}
	node, is := obj.(*corev1.Node)
	if !ok || !is {
		return nil, fmt.Errorf("node %q not found", name)
	}
	return node, nil
}

// fits reports as an error what a pod requests beyond the whole of a node.
func fits(pod *corev1.Pod, node *corev1.Node) error {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	var lacks []string
	if want, have := requests.Cpu(), node.Status.Allocatable.Cpu(); want.Cmp(*have) > 0 {
		lacks = append(lacks, fmt.Sprintf("cpu, requested: %d, allocatable: %d", want.MilliValue(), have.MilliValue()))
	}
	if want, have := requests.Memory(), node.Status.Allocatable.Memory(); want.Cmp(*have) > 0 {
		lacks = append(lacks, fmt.Sprintf("memory, requested: %d, allocatable: %d", want.Value(), have.Value()))
	}
	if len(lacks) == 0 {
		return nil
	}
	return errors.New("node didn't have enough allocatable resources: " + strings.Join(lacks, "; "))
}

// because returns Forbidden with a cause that programs can read.
func because(a *Attributes, cause metav1.CauseType, err error) error {
	status := apierrors.NewForbidden(a.GroupResource(), a.Name, err)
	status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause})
	return status
}
