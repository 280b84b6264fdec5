package volume

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// objects is a Lister.
type objects struct {
	claims  map[string]*corev1.PersistentVolumeClaim
	volumes map[string]*corev1.PersistentVolume
	classes map[string]*storagev1.StorageClass
}

func (o *objects) Claim(_, name string) (*corev1.PersistentVolumeClaim, bool) {
	c, ok := o.claims[name]
	return c, ok
}

func (o *objects) Volume(name string) (*corev1.PersistentVolume, bool) {
	v, ok := o.volumes[name]
	return v, ok
}

func (o *objects) VolumesOfClass(class string) []*corev1.PersistentVolume {
	var out []*corev1.PersistentVolume
	for _, v := range o.volumes {
		if v.Spec.StorageClassName == class {
			out = append(out, v)
		}
	}
	return out
}

func (o *objects) Class(name string) (*storagev1.StorageClass, bool) {
	c, ok := o.classes[name]
	return c, ok
}

func world(list ...any) *objects {
	o := &objects{map[string]*corev1.PersistentVolumeClaim{}, map[string]*corev1.PersistentVolume{}, map[string]*storagev1.StorageClass{}}
	for _, x := range list {
		switch x := x.(type) {
		case *corev1.PersistentVolumeClaim:
			o.claims[x.Name] = x
		case *corev1.PersistentVolume:
			o.volumes[x.Name] = x
		case *storagev1.StorageClass:
			o.classes[x.Name] = x
		}
	}
	return o
}

func claim(name, class, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), ResourceVersion: "5", Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func boundTo(v string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName = v
		c.Annotations[bindCompleted] = "yes"
	}
}

func chosen(node string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Annotations[selectedNode] = node }
}

func volume(name, class, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func at(key string, values ...string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values}}},
		}}}
	}
}

func heldBy(name string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: name, UID: types.UID(name)}
	}
}

func class(name, provisioner string, waits bool, zones ...string) *storagev1.StorageClass {
	mode := storagev1.VolumeBindingImmediate
	if waits {
		mode = storagev1.VolumeBindingWaitForFirstConsumer
	}
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	if len(zones) > 0 {
		c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: corev1.LabelTopologyZone, Values: zones}}}}
	}
	return c
}

func pod(claims ...string) *state.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}}
	for _, name := range claims {
		v := corev1.Volume{Name: name}
		if own, ok := strings.CutPrefix(name, "own:"); ok {
			v = corev1.Volume{Name: own, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}
		} else {
			v.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}
		}
		p.Spec.Volumes = append(p.Spec.Volumes, v)
	}
	return state.NewPod(p)
}

func cluster() *state.Cluster {
	c := state.New()
	for i, zone := range []string{"a", "b", ""} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i+1), Labels: map[string]string{corev1.LabelHostname: fmt.Sprint("n", i+1)}}}
		if zone != "" {
			n.Labels[corev1.LabelTopologyZone] = zone
		}
		c.SetNode(n)
	}
	return c
}

func TestDemand(t *testing.T) {
	const (
		conflict = "VolumeBinding node(s) didn't match PersistentVolume's node affinity"
		nothing  = "VolumeBinding node(s) didn't find available persistent volumes to bind"
	)
	rwop := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	}
	inZone := func(z string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Labels[corev1.LabelTopologyZone] = z }
	}
	now := metav1.Now()
	for _, c := range []struct {
		name string
		have *objects
		pod  *state.Pod
		want string
	}{
		{"no claims", world(), pod(), "n1 n2 n3"},
		{"no such claim", world(), pod("c"), `persistentvolumeclaim "c" not found`},
		{"ephemeral, not made yet", world(), pod("own:data"), `waiting for ephemeral volume controller to create the persistentvolumeclaim "p-data"`},
		{"being deleted", world(claim("c", "s", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &now })), pod("c"), `persistentvolumeclaim "c" is being deleted`},
		{"lost", world(claim("c", "s", "1Gi", boundTo("v"), func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost })), pod("c"), `persistentvolumeclaim "c" bound to non-existent persistentvolume "v"`},
		{"to be bound at once", world(claim("c", "s", "1Gi"), class("s", "x", false)), pod("c"), "pod has unbound immediate PersistentVolumeClaims"},
		{"without a class", world(claim("c", "", "1Gi")), pod("c"), "pod has unbound immediate PersistentVolumeClaims"},
		{"bound, anywhere", world(claim("c", "s", "1Gi", boundTo("v")), volume("v", "s", "1Gi")), pod("c"), "n1 n2 n3"},
		{"bound, on one node", world(claim("c", "s", "1Gi", boundTo("v")), volume("v", "s", "1Gi", at(corev1.LabelHostname, "n2"))), pod("c"), "n1: " + conflict + " n2 n3: " + conflict},
		{
			"bound, by a less simple affinity",
			world(claim("c", "s", "1Gi", boundTo("v")), volume("v", "s", "1Gi", at(corev1.LabelTopologyZone, "a"), func(v *corev1.PersistentVolume) {
				v.Spec.NodeAffinity.Required.NodeSelectorTerms = append(v.Spec.NodeAffinity.Required.NodeSelectorTerms, corev1.NodeSelectorTerm{
					MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"n3"}}},
				})
			})), pod("c"), "n1 n2: " + conflict + " n3",
		},
		{"bound in a zone", world(claim("c", "s", "1Gi", boundTo("v")), volume("v", "s", "1Gi", inZone("b__c"))), pod("c"), "n1: VolumeZone node(s) had no available volume zone n2 n3"},
		{"the volume is gone", world(claim("c", "s", "1Gi", boundTo("v"))), pod("c"), strings.TrimSuffix(strings.Repeat("n%: VolumeBinding node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s) ", 3), " ")},
		{"waits, is made anywhere", world(claim("c", "s", "1Gi"), class("s", "x", true)), pod("c"), "n1 n2 n3"},
		{"waits, is made in one zone", world(claim("c", "s", "1Gi"), class("s", "x", true, "b")), pod("c"), "n1: " + nothing + " n2 n3: " + nothing},
		{"waits, none can be made", world(claim("c", "s", "1Gi"), class("s", noProvisioner, true)), pod("c"), "n1: " + nothing + " n2: " + nothing + " n3: " + nothing},
		{"waits, its node is chosen", world(claim("c", "s", "1Gi", chosen("n3")), class("s", "x", true)), pod("c"), "n1: " + nothing + " n2: " + nothing + " n3"},
		{
			"waits, volumes are there",
			world(claim("c", "s", "1Gi"), class("s", noProvisioner, true), volume("v1", "s", "2Gi", at(corev1.LabelHostname, "n1")), volume("v2", "s", "500Mi", at(corev1.LabelHostname, "n2")), volume("v3", "s", "2Gi", at(corev1.LabelHostname, "n3"), heldBy("other"))),
			pod("c"), "n1 n2: " + nothing + " n3: " + nothing,
		},
		{
			"two wait, one volume",
			world(claim("c", "s", "1Gi"), claim("d", "s", "1Gi"), class("s", noProvisioner, true), volume("v1", "s", "2Gi")),
			pod("c", "d"), "n1: " + nothing + " n2: " + nothing + " n3: " + nothing,
		},
		{"one pod only", world(claim("used", "s", "1Gi", boundTo("v"), rwop), volume("v", "s", "1Gi")), pod("used"), strings.TrimSuffix(strings.Repeat("n%: VolumeRestrictions node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod ", 3), " ")},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := cluster()
			other := pod("used").On("n1")
			other.Name = "other"
			cl.SetPod(other)
			d, reason := NewBinder(c.have).Read(cl, c.pod)
			var got []string
			if reason != "" {
				got = append(got, reason)
			} else {
				for _, n := range cl.Nodes {
					s := n.Name
					for _, f := range d.Filters() {
						if !f.Check(n) {
							s += ": " + f.Name() + " " + strings.Join(f.Explain(n), ", ")
							break
						}
					}
					got = append(got, s)
				}
			}
			want := c.want
			for i := 1; strings.Contains(want, "n%"); i++ {
				want = strings.Replace(want, "n%", fmt.Sprint("n", i), 1)
			}
			if s := strings.Join(got, " "); s != want {
				t.Errorf("\n got %s\nwant %s", s, want)
			}
		})
	}
}

func TestPlansDoNotGiveOneVolumeTwice(t *testing.T) {
	have := world(claim("c", "s", "1Gi"), claim("d", "s", "1Gi"), class("s", noProvisioner, true), volume("small", "s", "1Gi"), volume("large", "s", "2Gi"))
	b := NewBinder(have)
	cl := cluster()
	first := plan(t, b, cl, "c", "n1")
	if got := first.steps[0].volume.Name; got != "small" {
		t.Fatalf("took %s", got)
	}
	second := plan(t, b, cl, "d", "n1")
	if got := second.steps[0].volume.Name; got != "large" {
		t.Fatalf("took %s", got)
	}
	first.Release()
	second.Release()
	if got := plan(t, b, cl, "d", "n1").steps[0].volume.Name; got != "small" {
		t.Fatalf("after release took %s", got)
	}
}

func TestAClaimUnderWayKeepsItsNode(t *testing.T) {
	have := world(claim("c", "s", "1Gi"), class("s", "x", true))
	b := NewBinder(have)
	cl := cluster()
	p := plan(t, b, cl, "c", "n2")
	d, _ := b.Read(cl, pod("c"))
	var ok []string
	for _, n := range cl.Nodes {
		if !slices.ContainsFunc(d.Filters(), func(f plugin.Filter) bool { return !f.Check(n) }) {
			ok = append(ok, n.Name)
		}
	}
	if !slices.Equal(ok, []string{"n2"}) {
		t.Fatalf("another pod of the claim may go to %v", ok)
	}
	p.Release()
}

func plan(t *testing.T, b *Binder, c *state.Cluster, claim, node string) *Plan {
	t.Helper()
	d, reason := b.Read(c, pod(claim))
	if reason != "" {
		t.Fatal(reason)
	}
	p := d.Plan(c.Node(node))
	if p == nil {
		t.Fatal("no plan")
	}
	return p
}

func TestProgress(t *testing.T) {
	version := func(rv string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.ResourceVersion = rv }
	}
	for _, c := range []struct {
		name string
		now  []any
		done bool
		err  string
	}{
		{"not visible yet", []any{claim("c", "s", "1Gi")}, false, ""},
		{"visible", []any{claim("c", "s", "1Gi", chosen("n1"), version("7"))}, false, ""},
		{"bound", []any{claim("c", "s", "1Gi", chosen("n1"), version("9"), boundTo("v")), volume("v", "s", "1Gi", at(corev1.LabelHostname, "n1"))}, true, ""},
		{"bound, volume not visible", []any{claim("c", "s", "1Gi", version("9"), boundTo("v"))}, false, ""},
		{"bound elsewhere", []any{claim("c", "s", "1Gi", version("9"), boundTo("v")), volume("v", "s", "1Gi", at(corev1.LabelHostname, "n2"))}, false, "volume v cannot be used on node n1"},
		{"could not be made", []any{claim("c", "s", "1Gi", version("8"))}, false, "no volume could be made for claim c on node n1"},
		{"gone", nil, false, "claim c is gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			have := world(claim("c", "s", "1Gi"), class("s", "x", true))
			b := NewBinder(have)
			p := plan(t, b, cluster(), "c", "n1")
			if len(p.Writes()) != 1 {
				t.Fatal("nothing to write")
			}
			p.steps[0].written = 7
			*have = *world(append(c.now, class("s", "x", true))...)
			done, err := p.Progress()
			if done != c.done || (err == nil) != (c.err == "") || (err != nil && err.Error() != c.err) {
				t.Fatalf("%v, %v", done, err)
			}
		})
	}
}
