package volume

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/testkit"
)

func pv(name, size, className string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName:       className,
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/data/" + name}},
		},
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func pvc(name, size, className string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Finalizers: []string{claimProtection}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: &className,
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func TestBest(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	claimed := func(namespace, name string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: namespace, Name: name}
		}
	}
	labelled := func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"tier": "gold"} }
	gold := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "gold"}}
	}
	shared := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	}
	for name, c := range map[string]struct {
		claim   *corev1.PersistentVolumeClaim
		volumes []*corev1.PersistentVolume
		want    string
	}{
		"the smallest that fits": {pvc("c", "2Gi", ""), []*corev1.PersistentVolume{pv("big", "10Gi", ""), pv("fits", "3Gi", ""), pv("small", "1Gi", "")}, "fits"},
		"nothing fits":           {pvc("c", "20Gi", ""), []*corev1.PersistentVolume{pv("big", "10Gi", "")}, ""},
		"another class":          {pvc("c", "1Gi", "fast"), []*corev1.PersistentVolume{pv("v", "1Gi", "")}, ""},
		"reserved for it":        {pvc("c", "1Gi", ""), []*corev1.PersistentVolume{pv("free", "1Gi", ""), pv("mine", "5Gi", "", claimed("default", "c"))}, "mine"},
		"reserved for another":   {pvc("c", "1Gi", ""), []*corev1.PersistentVolume{pv("theirs", "1Gi", "", claimed("default", "d"))}, ""},
		"selector":               {pvc("c", "1Gi", "", gold), []*corev1.PersistentVolume{pv("plain", "1Gi", ""), pv("golden", "2Gi", "", labelled)}, "golden"},
		"access mode":            {pvc("c", "1Gi", "", shared), []*corev1.PersistentVolume{pv("v", "1Gi", "")}, ""},
		"block":                  {pvc("c", "1Gi", ""), []*corev1.PersistentVolume{pv("v", "1Gi", "", func(v *corev1.PersistentVolume) { v.Spec.VolumeMode = &block })}, ""},
	} {
		got := ""
		if v := Best(c.claim, c.volumes); v != nil {
			got = v.Name
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestLocalRefuses(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	block := corev1.PersistentVolumeBlock
	for want, change := range map[string]func(*corev1.PersistentVolumeClaim){
		"volumeMode Block": func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block },
		"ReadWriteMany": func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		},
		"selector":   func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} },
		"dataSource": func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} },
	} {
		if _, err := Local(pvc("c", "1Gi", "local", change), DefaultClass(), node, "/v"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func run(t *testing.T) *testkit.World {
	w := testkit.Start(t)
	w.Run(NewClaims(w.Cluster, Options{Dir: "/var/volumes"}), NewVolumes(w.Cluster))
	return w
}

func phases(w *testkit.World, claim, volume string) (corev1.PersistentVolumeClaimPhase, corev1.PersistentVolumePhase) {
	c := testkit.Get[*corev1.PersistentVolumeClaim](w, "default", claim)
	for _, v := range testkit.List[*corev1.PersistentVolume](w, "") {
		if v.Name == volume {
			return c.Status.Phase, v.Status.Phase
		}
	}
	return c.Status.Phase, ""
}

func TestBindsByHand(t *testing.T) {
	w := run(t)
	testkit.Create(w, pv("v", "2Gi", ""))
	w.Eventually("the volume is free", func() bool {
		return testkit.Get[*corev1.PersistentVolume](w, "", "v").Status.Phase == corev1.VolumeAvailable
	})
	testkit.Create(w, pvc("c", "1Gi", ""))
	w.Eventually("both are bound", func() bool {
		c, v := phases(w, "c", "v")
		return c == corev1.ClaimBound && v == corev1.VolumeBound
	})
	// A second claim finds nothing, and gets the volume that comes later.
	testkit.Create(w, pvc("d", "1Gi", ""))
	w.Eventually("the second waits", func() bool { c, _ := phases(w, "d", ""); return c == corev1.ClaimPending })
	testkit.Create(w, pv("w", "1Gi", ""))
	w.Eventually("the second is bound", func() bool { c, v := phases(w, "d", "w"); return c == corev1.ClaimBound && v == corev1.VolumeBound })
	// Retained data stays when its claim goes.
	testkit.Update(w, "", "v", func(v *corev1.PersistentVolume) {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	})
	testkit.Delete[*corev1.PersistentVolumeClaim](w, "default", "c")
	w.Eventually("the volume is released", func() bool {
		return testkit.Get[*corev1.PersistentVolume](w, "", "v").Status.Phase == corev1.VolumeReleased
	})
}

func TestLocalVolumeFromFirstConsumerToItsEnd(t *testing.T) {
	w := run(t)
	w.Run(NewDefaultClass(w.Cluster))
	w.Eventually("a default class", func() bool { return testkit.Exists[*storagev1.StorageClass](w, "", "local") })
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelHostname: "host-n"}}})
	c := testkit.Create(w, pvc("c", "1Gi", "local"))
	w.Eventually("it waits", func() bool { p, _ := phases(w, "c", ""); return p == corev1.ClaimPending })
	p := testkit.Create(w, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}},
	})
	testkit.Update(w, "default", "c", func(c *corev1.PersistentVolumeClaim) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, selectedNode, "n")
	})
	name := "pvc-" + string(c.UID)
	w.Eventually("a volume is made and bound", func() bool {
		c, v := phases(w, "c", name)
		return c == corev1.ClaimBound && v == corev1.VolumeBound
	})
	v := testkit.Get[*corev1.PersistentVolume](w, "", name)
	if v.Spec.Local == nil || v.Spec.Local.Path != "/var/volumes/"+name {
		t.Errorf("local path: %+v", v.Spec.PersistentVolumeSource)
	}
	if got := v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]; got != "host-n" {
		t.Errorf("node affinity to %q", got)
	}
	// In use, the claim stays; then it goes, and its volume once the node has
	// deleted the data.
	testkit.Delete[*corev1.PersistentVolumeClaim](w, "default", "c")
	w.Never("a claim in use goes", func() bool { return !testkit.Exists[*corev1.PersistentVolumeClaim](w, "default", "c") })
	testkit.Delete[*corev1.Pod](w, "default", p.Name)
	w.Eventually("the claim is deleted", func() bool { return !testkit.Exists[*corev1.PersistentVolumeClaim](w, "default", "c") })
	w.Eventually("the node alone holds the volume", func() bool {
		v := testkit.Get[*corev1.PersistentVolume](w, "", name)
		return v.DeletionTimestamp != nil && len(v.Finalizers) == 1 && v.Finalizers[0] == DataFinalizer
	})
	testkit.Update(w, "", name, func(v *corev1.PersistentVolume) { v.Finalizers = nil })
	w.Eventually("the volume is deleted", func() bool { return !testkit.Exists[*corev1.PersistentVolume](w, "", name) })
}

func TestNodeOfTheChoiceHasGone(t *testing.T) {
	w := run(t)
	testkit.Create(w, DefaultClass())
	testkit.Create(w, pvc("c", "1Gi", "local", func(c *corev1.PersistentVolumeClaim) {
		c.Annotations = map[string]string{selectedNode: "gone"}
	}))
	w.Eventually("the choice is withdrawn", func() bool {
		return testkit.Get[*corev1.PersistentVolumeClaim](w, "default", "c").Annotations[selectedNode] == ""
	})
}

func TestClassThatBindsAtOnce(t *testing.T) {
	w := run(t)
	sc := DefaultClass()
	now := storagev1.VolumeBindingImmediate
	sc.VolumeBindingMode = &now
	testkit.Create(w, sc)
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	testkit.Create(w, pvc("c", "1Gi", "local"))
	w.Eventually("it is bound", func() bool { p, _ := phases(w, "c", ""); return p == corev1.ClaimBound })
}

// A claim that no node could hold a volume for gets one when a node is there.
func TestNodeThatComesAfterTheClaim(t *testing.T) {
	w := run(t)
	sc := DefaultClass()
	now := storagev1.VolumeBindingImmediate
	sc.VolumeBindingMode = &now
	testkit.Create(w, sc)
	tainted := testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "starts", Effect: corev1.TaintEffectNoSchedule}}}})
	testkit.Create(w, pvc("c", "1Gi", "local"))
	w.Eventually("it waits", func() bool { p, _ := phases(w, "c", ""); return p == corev1.ClaimPending })
	w.CatchUp()
	w.Never("it is bound without a node", func() bool { p, _ := phases(w, "c", ""); return p == corev1.ClaimBound })
	testkit.Update(w, "", tainted.Name, func(n *corev1.Node) { n.Spec.Taints = nil })
	w.Eventually("it is bound", func() bool { p, _ := phases(w, "c", ""); return p == corev1.ClaimBound })
}

func TestClassThatComesAfterTheClaim(t *testing.T) {
	w := run(t)
	testkit.Create(w, pvc("c", "1Gi", "", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }))
	testkit.Create(w, pvc("none", "1Gi", ""))
	w.Eventually("it waits", func() bool { p, _ := phases(w, "c", ""); return p == corev1.ClaimPending })
	testkit.Create(w, DefaultClass())
	w.Eventually("it has the default class", func() bool {
		name := testkit.Get[*corev1.PersistentVolumeClaim](w, "default", "c").Spec.StorageClassName
		return name != nil && *name == "local"
	})
	if name := testkit.Get[*corev1.PersistentVolumeClaim](w, "default", "none").Spec.StorageClassName; *name != "" {
		t.Errorf("a claim that wants no class was given %q", *name)
	}
}
