package volume

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/scheduler/internal/state"
)

// Plan is how a pod's waiting claims get their volumes on its node.
type Plan struct {
	binder *Binder
	node   *state.Node
	steps  []step
}

// step binds a claim to an existing volume or, if volume is nil, has one provisioned.
type step struct {
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
	// written is the resource version of the claim after the node was written to it; 0
	// if it was there already, or if the volume is written instead.
	written uint64
}

func keyOf(c *corev1.PersistentVolumeClaim) state.Key {
	return state.Key{Namespace: c.Namespace, Name: c.Name}
}

// plan finds volumes for the waiting claims. It returns false if the node is not
// suitable.
func (d *Demand) plan(n *state.Node) ([]step, bool) {
	var steps []step
	for _, c := range d.delayed {
		chosen, given := c.Annotations[selectedNode]
		if node, ok := d.binder.selected[keyOf(c)]; ok {
			chosen, given = node, true
		}
		switch {
		case given && chosen != n.Name:
			return nil, false
		case !given:
			if v := d.binder.match(c, n, steps); v != nil {
				steps = append(steps, step{claim: c, volume: v})
				continue
			}
		}
		class, ok := d.binder.lister.Class(className(c))
		if !ok || class.Provisioner == "" || class.Provisioner == noProvisioner || !allowed(class.AllowedTopologies, n.Object.Labels) {
			return nil, false
		}
		steps = append(steps, step{claim: c})
	}
	return steps, true
}

// match returns the smallest volume that fits a claim and can be used on a node.
func (b *Binder) match(c *corev1.PersistentVolumeClaim, n *state.Node, taken []step) *corev1.PersistentVolume {
	var best *corev1.PersistentVolume
	for _, v := range b.lister.VolumesOfClass(className(c)) {
		if holder, ok := b.reserved[v.Name]; ok && holder != keyOf(c) {
			continue
		}
		if slices.ContainsFunc(taken, func(s step) bool { return s.volume != nil && s.volume.Name == v.Name }) || !fits(v, c) {
			continue
		}
		if f := affinityOf(v); f != nil && !f(n.Object.Labels, n.Name) {
			continue
		}
		if ref := v.Spec.ClaimRef; ref != nil {
			return v // made for this claim
		}
		if best == nil || smaller(v, best) {
			best = v
		}
	}
	return best
}

func smaller(a, b *corev1.PersistentVolume) bool {
	x, y := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
	if c := x.Cmp(y); c != 0 {
		return c < 0
	}
	return a.Name < b.Name
}

// fits reports whether a volume satisfies the claim and is free or reserved for it.
func fits(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	if ref := v.Spec.ClaimRef; ref != nil && (ref.Namespace != c.Namespace || ref.Name != c.Name || (ref.UID != "" && ref.UID != c.UID)) {
		return false
	}
	if v.DeletionTimestamp != nil || (v.Spec.ClaimRef == nil && v.Status.Phase != "" && v.Status.Phase != corev1.VolumeAvailable && v.Status.Phase != corev1.VolumePending) {
		return false
	}
	if modeOf(v.Spec.VolumeMode) != modeOf(c.Spec.VolumeMode) {
		return false
	}
	for _, m := range c.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, m) {
			return false
		}
	}
	have, want := v.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	if have.Cmp(want) < 0 {
		return false
	}
	return c.Spec.Selector == nil || state.Selector(c.Spec.Selector).Matches(labels.Set(v.Labels))
}

func modeOf(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if m == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *m
}

// Plan reserves what the pod's claims need on a node. It returns nil if nothing is to
// be done.
func (d *Demand) Plan(n *state.Node) *Plan {
	if d == nil || len(d.delayed) == 0 {
		return nil
	}
	steps, ok := d.plan(n)
	if !ok {
		return nil
	}
	p := &Plan{binder: d.binder, node: n, steps: steps}
	for _, s := range steps {
		if s.volume != nil {
			d.binder.reserved[s.volume.Name] = keyOf(s.claim)
		} else {
			d.binder.selected[keyOf(s.claim)] = n.Name
		}
	}
	return p
}

// Release drops the plan's reservations.
func (p *Plan) Release() {
	for _, s := range p.steps {
		if s.volume != nil {
			delete(p.binder.reserved, s.volume.Name)
		} else {
			delete(p.binder.selected, keyOf(s.claim))
		}
	}
}

// Writes returns the writes with which the claims get their volumes. Their results are
// to be passed to Written.
func (p *Plan) Writes() []client.Write {
	var out []client.Write
	for i := range p.steps {
		s := &p.steps[i]
		switch {
		case p.chooses(s):
			patch := fmt.Sprintf(`{"metadata":{"uid":%q,"annotations":{%q:%q}}}`, s.claim.UID, selectedNode, p.node.Name)
			out = append(out, client.PatchWrite[*corev1.PersistentVolumeClaim](s.claim.Namespace, s.claim.Name, types.MergePatchType, []byte(patch)))
		case s.volume != nil && (s.volume.Spec.ClaimRef == nil || s.volume.Spec.ClaimRef.UID == ""):
			v := s.volume.DeepCopy()
			if v.Spec.ClaimRef == nil {
				metav1.SetMetaDataAnnotation(&v.ObjectMeta, boundByUs, "yes")
			}
			v.Spec.ClaimRef = &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: s.claim.Namespace, Name: s.claim.Name,
				UID: s.claim.UID, ResourceVersion: s.claim.ResourceVersion,
			}
			out = append(out, client.UpdateWrite(v))
		}
	}
	return out
}

// chooses reports whether a step writes the node to the claim.
func (p *Plan) chooses(s *step) bool {
	return s.volume == nil && s.claim.Annotations[selectedNode] != p.node.Name
}

// Written processes the results of Writes.
func (p *Plan) Written(results []client.WriteResult) error {
	for i := range p.steps {
		s := &p.steps[i]
		if !p.chooses(s) && (s.volume == nil || (s.volume.Spec.ClaimRef != nil && s.volume.Spec.ClaimRef.UID != "")) {
			continue
		}
		if len(results) == 0 {
			return errors.New("the choice of volumes was not written")
		}
		r := results[0]
		results = results[1:]
		if r.Err != nil {
			return fmt.Errorf("claim %s: %w", s.claim.Name, r.Err)
		}
		if p.chooses(s) {
			s.written, _ = strconv.ParseUint(r.ResourceVersion, 10, 64)
		}
	}
	return nil
}

// Progress reports whether all claims are bound. An error means that they will not be,
// and the pod must be decided again.
func (p *Plan) Progress() (done bool, err error) {
	done = true
	for _, s := range p.steps {
		c, ok := p.binder.lister.Claim(s.claim.Namespace, s.claim.Name)
		if !ok || c.UID != s.claim.UID {
			return false, fmt.Errorf("claim %s is gone", s.claim.Name)
		}
		if complete(c) {
			v, ok := p.binder.lister.Volume(c.Spec.VolumeName)
			if !ok {
				done = false // its news is under way
				continue
			}
			if f := affinityOf(v); f != nil && !f(p.node.Object.Labels, p.node.Name) {
				return false, fmt.Errorf("volume %s cannot be used on node %s", v.Name, p.node.Name)
			}
			continue
		}
		done = false
		// A provisioner that fails removes the node's name.
		if s.volume == nil && version(c) >= s.written && c.Annotations[selectedNode] != p.node.Name {
			return false, fmt.Errorf("no volume could be made for claim %s on node %s", c.Name, p.node.Name)
		}
	}
	return done, nil
}

func version(c *corev1.PersistentVolumeClaim) uint64 {
	v, err := strconv.ParseUint(c.ResourceVersion, 10, 64)
	if err != nil {
		return 0
	}
	return v
}
