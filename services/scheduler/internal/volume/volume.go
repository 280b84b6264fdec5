// Package volume decides what a pod's PersistentVolumeClaims require of its node, and
// binds claims that wait for their first pod: it writes either the chosen node to the
// claim (volume.kubernetes.io/selected-node), for a provisioner, or the claim to an
// existing volume.
//
// It must never wait: it returns what to write, and whether all claims are bound.
package volume

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// Annotations through which the scheduler and the volume controller communicate.
const (
	selectedNode  = "volume.kubernetes.io/selected-node"
	bindCompleted = "pv.kubernetes.io/bind-completed"
	boundByUs     = "pv.kubernetes.io/bound-by-controller"
)

// noProvisioner is the provisioner of classes whose volumes are created by an
// administrator.
const noProvisioner = "kubernetes.io/no-provisioner"

// Lister returns objects from the caches. They are shared and must not be modified.
type Lister interface {
	Claim(namespace, name string) (*corev1.PersistentVolumeClaim, bool)
	Volume(name string) (*corev1.PersistentVolume, bool)
	VolumesOfClass(class string) []*corev1.PersistentVolume
	Class(name string) (*storagev1.StorageClass, bool)
}

// Binder holds the reservations for pods whose binding is in progress, which the caches
// do not show yet.
type Binder struct {
	lister Lister
	// reserved maps volumes to the claims that they are reserved for, and selected maps
	// claims to the nodes chosen for them.
	reserved map[string]state.Key
	selected map[state.Key]string
}

// NewBinder returns a binder without reservations.
func NewBinder(l Lister) *Binder {
	return &Binder{lister: l, reserved: map[string]state.Key{}, selected: map[state.Key]string{}}
}

// Demand is what the claims of one pod require of a node.
type Demand struct {
	binder  *Binder
	cluster *state.Cluster
	pod     *state.Pod
	bound   []bound
	missing bool // a claim is bound to a volume that does not exist
	delayed []*corev1.PersistentVolumeClaim
	// sole are the claims that only one pod may use.
	sole []string
}

// bound is a claim's volume, prepared for checks against nodes.
type bound struct {
	affinity func(labels.Set, string) bool
	zones    map[string]map[string]bool
}

// Read looks up a pod's claims. If they rule out every node, reason says why, and d is
// nil; d is also nil for a pod without claims.
func (b *Binder) Read(c *state.Cluster, p *state.Pod) (d *Demand, reason string) {
	if len(p.Claims) == 0 {
		return nil, ""
	}
	d = &Demand{binder: b, cluster: c, pod: p}
	for _, name := range p.Claims {
		claim, ok := b.lister.Claim(p.Namespace, name)
		switch {
		case !ok && ephemeral(p, name):
			return nil, fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case !ok:
			return nil, fmt.Sprintf("persistentvolumeclaim %q not found", name)
		case claim.Status.Phase == corev1.ClaimLost:
			return nil, fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		case claim.DeletionTimestamp != nil:
			return nil, fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		}
		if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
			d.sole = append(d.sole, name)
		}
		switch {
		case complete(claim):
			v, ok := b.lister.Volume(claim.Spec.VolumeName)
			if !ok {
				d.missing = true
				continue
			}
			d.bound = append(d.bound, bound{affinity: affinityOf(v), zones: zonesOf(v)})
		case claim.Spec.VolumeName == "" && b.waits(claim):
			d.delayed = append(d.delayed, claim)
		default:
			return nil, "pod has unbound immediate PersistentVolumeClaims"
		}
	}
	// The smallest come first, so that larger volumes are left for the other claims.
	slices.SortFunc(d.delayed, func(x, y *corev1.PersistentVolumeClaim) int {
		a, b := x.Spec.Resources.Requests[corev1.ResourceStorage], y.Spec.Resources.Requests[corev1.ResourceStorage]
		return cmp.Or(a.Cmp(b), cmp.Compare(x.Name, y.Name))
	})
	return d, ""
}

func ephemeral(p *state.Pod, claim string) bool {
	return slices.ContainsFunc(p.Object.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Ephemeral != nil && p.Name+"-"+v.Name == claim
	})
}

func complete(c *corev1.PersistentVolumeClaim) bool {
	return c.Spec.VolumeName != "" && c.Annotations[bindCompleted] != ""
}

func (b *Binder) waits(c *corev1.PersistentVolumeClaim) bool {
	class, ok := b.lister.Class(className(c))
	return ok && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

func className(c *corev1.PersistentVolumeClaim) string {
	if name, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return name
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

// Filters returns the demand as filters.
func (d *Demand) Filters() []plugin.Filter {
	if d == nil {
		return nil
	}
	var out []plugin.Filter
	if len(d.sole) > 0 {
		out = append(out, inUse{d})
	}
	if d.missing || len(d.bound)+len(d.delayed) > 0 {
		out = append(out, binding{d})
	}
	if slices.ContainsFunc(d.bound, func(b bound) bool { return b.zones != nil }) {
		out = append(out, zone{d})
	}
	return out
}

// inUse refuses every node while another pod uses a claim that only one pod may use.
type inUse struct{ d *Demand }

func (inUse) Name() string { return plugin.VolumeRestrictions }

func (f inUse) Check(*state.Node) bool {
	return !slices.ContainsFunc(f.d.sole, func(name string) bool {
		return f.d.cluster.PodsWithClaim(f.d.pod.Namespace, name) > 0
	})
}

// Curable implements plugin.Curable.
func (inUse) Curable(*state.Node) bool { return true }

func (inUse) Explain(*state.Node) []string {
	return []string{"node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"}
}

// binding refuses nodes on which the claims' volumes cannot be used, or on which no
// volume can be found or provisioned for a claim that waits.
type binding struct{ d *Demand }

func (binding) Name() string { return plugin.VolumeBinding }

func (f binding) Check(n *state.Node) bool {
	if f.d.missing || !f.d.reachable(n) {
		return false
	}
	_, ok := f.d.plan(n)
	return ok
}

func (f binding) Explain(n *state.Node) []string {
	var out []string
	if !f.d.reachable(n) {
		out = append(out, "node(s) didn't match PersistentVolume's node affinity")
	}
	if _, ok := f.d.plan(n); !ok {
		out = append(out, "node(s) didn't find available persistent volumes to bind")
	}
	if f.d.missing {
		out = append(out, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
	}
	return out
}

func (d *Demand) reachable(n *state.Node) bool {
	for i := range d.bound {
		if d.bound[i].affinity != nil && !d.bound[i].affinity(n.Object.Labels, n.Name) {
			return false
		}
	}
	return true
}

// zone refuses nodes outside the zones that a volume's labels name.
type zone struct{ d *Demand }

func (zone) Name() string { return plugin.VolumeZone }

func (f zone) Check(n *state.Node) bool {
	set := n.Object.Labels
	if set[corev1.LabelTopologyZone]+set[corev1.LabelTopologyRegion]+set[corev1.LabelFailureDomainBetaZone]+set[corev1.LabelFailureDomainBetaRegion] == "" {
		return true // the cluster has no zones
	}
	for i := range f.d.bound {
		for key, values := range f.d.bound[i].zones {
			v, ok := set[key]
			if !ok {
				v, ok = set[stable[key]]
			}
			if !ok || !values[v] {
				return false
			}
		}
	}
	return true
}

func (zone) Explain(*state.Node) []string { return []string{"node(s) had no available volume zone"} }
