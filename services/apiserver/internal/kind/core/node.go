package core

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Node returns the row of nodes. A node's agent registers the node together with its status, so a
// create may contain a status.
func Node() *resource.Kind {
	k := row.Cluster[corev1.Node, corev1.NodeList](corev1.SchemeGroupVersion, "nodes", "minions")
	k.ShortNames = []string{"no"}
	k.NoGeneration = true
	k.Columns, k.Cells = nodeColumns(), nodeCells
	k.Fields = map[string]func(resource.Object) string{
		"spec.unschedulable": func(o resource.Object) string {
			return strconv.FormatBool(o.(*corev1.Node).Spec.Unschedulable)
		},
	}
	k.Rules = resource.Typed[*corev1.Node]{
		Default:       defaultNode,
		PrepareCreate: dropUnused,
		PrepareUpdate: func(n, old *corev1.Node) {
			n.Status = old.Status
			dropUnused(n)
		},
		Warnings: func(n, _ *corev1.Node) []string {
			if n.Spec.DoNotUseExternalID != "" {
				return []string{"spec.externalID: this field is deprecated, and is unused by Kubernetes"}
			}
			return nil
		},
		Validate:       validateNode,
		ValidateUpdate: validateNodeUpdate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"proxy": row.Connect(corev1.SchemeGroupVersion.WithKind("NodeProxyOptions"), resource.Proxy, "create", "delete", "get", "patch", "update"),
		"status": row.View(resource.Typed[*corev1.Node]{
			Default:        defaultNode,
			PrepareUpdate:  func(n, old *corev1.Node) { n.Spec = old.Spec },
			ValidateUpdate: validateNodeUpdate,
		}.Rules()),
	}
	return k
}

// defaultNode sets allocatable to capacity if it is not set, and keeps podCIDR equal to the first
// of podCIDRs.
func defaultNode(n *corev1.Node) {
	if n.Status.Allocatable == nil && len(n.Status.Capacity) > 0 {
		n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	}
	podspec.DefaultResources(n.Status.Capacity)
	podspec.DefaultResources(n.Status.Allocatable)
	switch s := &n.Spec; {
	case s.PodCIDR != "" && (len(s.PodCIDRs) == 0 || s.PodCIDRs[0] != s.PodCIDR):
		s.PodCIDRs = []string{s.PodCIDR}
	case s.PodCIDR == "" && len(s.PodCIDRs) > 0:
		s.PodCIDR = s.PodCIDRs[0]
	}
}

// dropUnused clears the fields of dynamic configuration, which no longer exists, and of a feature
// that is off in Kubernetes as well.
func dropUnused(n *corev1.Node) {
	n.Spec.ConfigSource = nil
	n.Spec.PodPreemptionPolicy = nil
}

func validateNode(n *corev1.Node) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	validateTaints(&e, n.Spec.Taints, taintsPath)
	validateCapacity(&e, n, field.NewPath("status"))
	validatePodCIDRs(&e, &n.Spec, p.Child("podCIDRs"))
	return e.List
}

// taintsPath is the path of taints in Kubernetes' errors.
var taintsPath = field.NewPath("metadata", "taints")

func validateTaints(e *check.Errors, taints []corev1.Taint, p *field.Path) {
	type key struct {
		key    string
		effect corev1.TaintEffect
	}
	seen := make(map[key]bool, len(taints))
	for i := range taints {
		t, at := &taints[i], p.Index(i)
		e.Messages(at, "key", t.Key, check.LabelKey(t.Key))
		e.Messages(at, "value", t.Value, check.LabelValue(t.Value))
		check.OneOf(e, at, "effect", t.Effect,
			corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
		if k := (key{t.Key, t.Effect}); seen[k] {
			twice := field.Duplicate(at, *t)
			twice.Detail = "taints must be unique by key and effect pair"
			e.List = append(e.List, twice)
		} else {
			seen[k] = true
		}
	}
}

func validateCapacity(e *check.Errors, n *corev1.Node, p *field.Path) {
	for name, q := range n.Status.Capacity {
		if problem := podspec.QuantityProblem(name, &q); problem != "" {
			e.Invalid(p.Child("capacity", string(name)), q.String(), problem)
		}
	}
	for name, q := range n.Status.Allocatable {
		if problem := podspec.QuantityProblem(name, &q); problem != "" {
			e.Invalid(p.Child("allocatable", string(name)), q.String(), problem)
		}
	}
}

func validatePodCIDRs(e *check.Errors, s *corev1.NodeSpec, p *field.Path) {
	for i, cidr := range s.PodCIDRs {
		e.Append(validationutil.IsValidCIDRForLegacyField(p.Index(i), cidr, true, nil))
	}
	if len(e.List) > 0 || len(s.PodCIDRs) < 2 {
		return
	}
	a, _ := netip.ParsePrefix(s.PodCIDRs[0])
	b, _ := netip.ParsePrefix(s.PodCIDRs[1])
	if len(s.PodCIDRs) > 2 || a.Addr().Is4() == b.Addr().Is4() {
		e.Invalid(p, s.PodCIDRs, "may specify no more than one CIDR for each IP family")
	}
}

func validateNodeUpdate(n, old *corev1.Node) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	validateCapacity(&e, n, field.NewPath("status"))
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(n.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		e.Forbidden(p.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid")
	} else {
		validatePodCIDRs(&e, &n.Spec, p.Child("podCIDRs"))
	}
	if old.Spec.ProviderID != "" && n.Spec.ProviderID != old.Spec.ProviderID {
		e.Invalid(p.Child("providerID"), nil, "field cannot be modified once set")
	}
	if !slices.EqualFunc(n.Spec.Taints, old.Spec.Taints, func(a, b corev1.Taint) bool { return check.Same(&a, &b) }) {
		validateTaints(&e, n.Spec.Taints, taintsPath)
	}
	var seen check.Seen
	for i, a := range n.Status.Addresses {
		if seen.Add(string(a.Type) + "\x00" + a.Address) {
			e.Duplicate(field.NewPath("status", "addresses").Index(i), a)
		}
	}
	return e.List
}

func nodeColumns() []metav1.TableColumnDefinition {
	info, status := corev1.NodeSystemInfo{}, corev1.NodeStatus{}
	return []metav1.TableColumnDefinition{
		column.Text("Status", "The status of the node"),
		column.Text("Roles", "The roles of the node"),
		column.AgeColumn(),
		column.Text("Version", column.Doc(info, "kubeletVersion")),
		column.Wide("Internal-IP", column.Doc(status, "addresses")),
		column.Wide("External-IP", column.Doc(status, "addresses")),
		column.Wide("OS-Image", column.Doc(info, "osImage")),
		column.Wide("Kernel-Version", column.Doc(info, "kernelVersion")),
		column.Wide("Container-Runtime", column.Doc(info, "containerRuntimeVersion")),
	}
}

func nodeCells(o resource.Object) []any {
	n := o.(*corev1.Node)
	info := &n.Status.NodeInfo
	return []any{
		nodeState(n), nodeRoles(n), column.Age(n.CreationTimestamp), info.KubeletVersion,
		nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP),
		column.Or(info.OSImage, column.Unknown), kernel(info),
		column.Or(info.ContainerRuntimeVersion, column.Unknown),
	}
}

func kernel(info *corev1.NodeSystemInfo) string {
	if info.KernelVersion == "" {
		return column.Unknown
	}
	if info.Architecture == "" {
		return info.KernelVersion
	}
	return info.KernelVersion + " (" + info.Architecture + ")"
}

func nodeState(n *corev1.Node) string {
	state := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		state = "NotReady"
		if c.Status == corev1.ConditionTrue {
			state = "Ready"
		}
	}
	if n.Spec.Unschedulable {
		state += ",SchedulingDisabled"
	}
	return state
}

// Labels that determine the roles of a node.
const (
	roleLabelPrefix = "node-role.kubernetes.io/"
	roleLabelOld    = "kubernetes.io/role"
)

func nodeRoles(n *corev1.Node) string {
	var roles []string
	for key, value := range n.Labels {
		role, isRole := strings.CutPrefix(key, roleLabelPrefix)
		if key == roleLabelOld {
			role, isRole = value, true
		}
		if isRole && role != "" && !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return column.List(roles)
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return column.None
}
