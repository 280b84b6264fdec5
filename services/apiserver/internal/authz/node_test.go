package authz

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/request"
)

// fullPod returns a pod that references objects of each kind in every possible way.
func fullPod(name, node string) *corev1.Pod {
	local := func(s string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: s} }
	ref := func(s string) *corev1.LocalObjectReference { l := local(s); return &l }
	env := func(prefix string) ([]corev1.EnvFromSource, []corev1.EnvVar) {
		return []corev1.EnvFromSource{
				{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local(prefix + "-from-secret")}},
				{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local(prefix + "-from-config")}},
			}, []corev1.EnvVar{
				{Name: "plain", Value: "x"},
				{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local(prefix + "-key-secret")}}},
				{ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local(prefix + "-key-config")}}},
			}
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name, UID: "1"}}
	p.Spec.NodeName, p.Spec.ServiceAccountName = node, "sa"
	p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{local("pull-secret")}
	var c, i corev1.Container
	var e corev1.EphemeralContainer
	c.EnvFrom, c.Env = env("c")
	i.EnvFrom, i.Env = env("i")
	e.EnvFrom, e.Env = env("e")
	p.Spec.Containers, p.Spec.InitContainers, p.Spec.EphemeralContainers = []corev1.Container{c}, []corev1.Container{i}, []corev1.EphemeralContainer{e}
	volume := func(s corev1.VolumeSource) corev1.Volume { return corev1.Volume{Name: "v", VolumeSource: s} }
	p.Spec.Volumes = []corev1.Volume{
		volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "volume-secret"}}),
		volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("volume-config")}}),
		volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{Secret: &corev1.SecretProjection{LocalObjectReference: local("projected-secret")}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("projected-config")}},
		}}}),
		volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}),
		{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		volume(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{NodePublishSecretRef: ref("csi-secret")}}),
		volume(corev1.VolumeSource{CephFS: &corev1.CephFSVolumeSource{SecretRef: ref("ceph-secret")}}),
		volume(corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{SecretRef: ref("iscsi-secret")}}),
		volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
	}
	return p
}

func asNode(name, verb, target string) *request.Attributes {
	a := ask("system:node:"+name, verb, target)
	a.User.Groups = []string{"system:nodes", "system:authenticated"}
	return a
}

func allowed(z *Authorizers, a *request.Attributes) bool {
	ok, _, err := z.Authorize(context.Background(), a)
	return ok && err == nil
}

func TestNodeReachesWhatItsPodsNeed(t *testing.T) {
	z := New()
	g := z.Node.graph
	g.setPod(fullPod("p", "here"))
	secrets := "pull-secret c-from-secret c-key-secret i-from-secret i-key-secret e-from-secret e-key-secret volume-secret projected-secret csi-secret ceph-secret iscsi-secret"
	configs := "c-from-config c-key-config i-from-config i-key-config e-from-config e-key-config volume-config projected-config"
	type question struct{ verb, target string }
	var reachable []question
	for _, s := range strings.Fields(secrets) {
		reachable = append(reachable, question{"get", "n:secrets=" + s}, question{"watch", "n:secrets=" + s}, question{"list", "n:secrets=" + s})
	}
	for _, c := range strings.Fields(configs) {
		reachable = append(reachable, question{"get", "n:configmaps=" + c})
	}
	reachable = append(reachable,
		question{"get", "n:persistentvolumeclaims=claim"}, question{"get", "n:persistentvolumeclaims=p-scratch"},
		question{"patch", "n:persistentvolumeclaims/status=claim"},
		question{"get", "n:serviceaccounts=sa"}, question{"create", "n:serviceaccounts/token=sa"},
		question{"get", "n:pods=p"}, question{"watch", "n:pods=p"})
	check := func(node string, want bool) {
		t.Helper()
		for _, q := range reachable {
			if got := allowed(z, asNode(node, q.verb, q.target)); got != want {
				t.Errorf("node %s %s %s: %v, want %v", node, q.verb, q.target, got, want)
			}
		}
	}
	check("here", true)
	check("there", false)

	moved := fullPod("p", "there") // deleted and recreated on another node
	moved.UID = "2"
	g.setPod(moved)
	check("here", false)
	check("there", true)

	g.setPod(fullPod("q", "here"))
	g.remove(object{podKind, "n", "p"})
	reachable = reachable[:len(reachable)-2] // without p itself
	check("there", false)
	g.remove(object{podKind, "n", "q"})
	check("here", false)
	if len(g.direct)+len(g.sources) != 0 {
		t.Errorf("left in the graph: %v", g.direct)
	}

	mirror := fullPod("static", "here")
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	g.setPod(mirror)
	check("here", false)
	if !allowed(z, asNode("here", "get", "n:pods=static")) {
		t.Error("a node cannot read its mirror pod")
	}
	pending := fullPod("pending", "")
	g.setPod(pending)
	check("", false)
}

func TestSecretsOfEphemeralContainers(t *testing.T) {
	g := newGraph()
	p := fullPod("p", "here")
	later := p.Spec.EphemeralContainers
	p.Spec.EphemeralContainers = nil
	g.setPod(p)
	secret := object{secretKind, "n", "e-from-secret"}
	if g.reaches("here", secret) {
		t.Fatal("the secret is accessible before the container was added")
	}
	p = p.DeepCopy()
	p.Spec.EphemeralContainers = later
	g.setPod(p)
	if !g.reaches("here", secret) {
		t.Fatal("the secret is not accessible after the container was added")
	}
}

func TestNodeReachesVolumesOfItsClaims(t *testing.T) {
	z := New()
	g := z.Node.graph
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{
		NodePublishSecretRef:       &corev1.SecretReference{Namespace: "storage", Name: "publish"},
		NodeStageSecretRef:         &corev1.SecretReference{Namespace: "storage", Name: "stage"},
		ControllerExpandSecretRef:  &corev1.SecretReference{Namespace: "storage", Name: "controller"},
		ControllerPublishSecretRef: &corev1.SecretReference{Namespace: "storage", Name: "controller"},
	}
	get := func(target string) bool { return allowed(z, asNode("here", "get", target)) }
	g.setPod(fullPod("p", "here"))
	g.setVolume(pv)
	if get("persistentvolumes=pv") {
		t.Error("an unbound volume is accessible")
	}
	bound := pv.DeepCopy()
	bound.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "n", Name: "claim"}
	g.setVolume(bound)
	for target, want := range map[string]bool{
		"persistentvolumes=pv":       true,
		"persistentvolumes=other":    false,
		"storage:secrets=publish":    true,
		"storage:secrets=stage":      true,
		"storage:secrets=controller": false,
		"n:secrets=publish":          false,
	} {
		if got := get(target); got != want {
			t.Errorf("%s: %v, want %v", target, got, want)
		}
	}
	if allowed(z, asNode("there", "get", "persistentvolumes=pv")) {
		t.Error("another node may get the volume")
	}
	g.removeVolume("pv")
	if get("persistentvolumes=pv") || get("storage:secrets=publish") || len(g.holders)+len(g.volumes) != 0 {
		t.Error("a removed volume is still accessible")
	}

	g.setAttachment(&storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "va"}, Spec: storagev1.VolumeAttachmentSpec{NodeName: "here"}})
	if !get("volumeattachments.storage.k8s.io=va") || allowed(z, asNode("there", "get", "volumeattachments.storage.k8s.io=va")) {
		t.Error("an attachment must be readable by its node only")
	}
}

func TestNodeReleasesVolumesItKeeps(t *testing.T) {
	z := New()
	g := z.Node.graph
	g.setVolume(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Labels: map[string]string{volumeNode: "here"}}})
	for _, verb := range []string{"get", "update"} {
		if !allowed(z, asNode("here", verb, "persistentvolumes=pv")) {
			t.Errorf("its node may not %s the volume", verb)
		}
		if allowed(z, asNode("there", verb, "persistentvolumes=pv")) {
			t.Errorf("another node may %s the volume", verb)
		}
	}
	if allowed(z, asNode("here", "delete", "persistentvolumes=pv")) {
		t.Error("its node may delete the volume")
	}
	for selector, want := range map[string]bool{volumeNode + "=here": true, volumeNode + "=there": false, "": false, volumeNode: false} {
		a := asNode("here", "watch", "persistentvolumes")
		a.LabelSelector = selector
		if got := allowed(z, a); got != want {
			t.Errorf("watch with %q: %v, want %v", selector, got, want)
		}
	}
	g.removeVolume("pv")
	if allowed(z, asNode("here", "get", "persistentvolumes=pv")) {
		t.Error("a removed volume is still accessible")
	}
}

func TestNodeByName(t *testing.T) {
	z := New()
	z.Node.graph.setPod(fullPod("p", "me"))
	tests := []struct {
		verb, target, selector string
		want                   bool
		reason                 string
	}{
		{"create", "nodes", "", true, ""},
		{"patch", "nodes/status=me", "", true, ""},
		{"list", "nodes", "", true, ""},
		{"delete", "nodes=me", "", false, ""},
		{"get", "kube-node-lease:leases.coordination.k8s.io=me", "", true, ""},
		{"create", "kube-node-lease:leases.coordination.k8s.io", "", true, ""},
		{"update", "kube-node-lease:leases.coordination.k8s.io=you", "", false, "can only access node lease with the same name as the requesting node"},
		{"get", "kube-system:leases.coordination.k8s.io=me", "", false, `can only access leases in the "kube-node-lease" system namespace`},
		{"list", "kube-node-lease:leases.coordination.k8s.io", "", false, "can only get, create, update, patch, or delete a node lease"},
		{"list", "pods", "spec.nodeName=me", true, ""},
		{"watch", "pods", "spec.nodeName=me,status.phase=Running", true, ""},
		{"list", "pods", "spec.nodeName=you", false, "can only list/watch pods with spec.nodeName field selector"},
		{"list", "pods", "spec.nodeName!=me", false, ""},
		{"list", "pods", "", false, ""},
		{"watch", "n:pods", "metadata.name=p", true, ""},
		{"watch", "n:pods", "metadata.name=q", false, "no relationship found between node 'me' and this object"},
		{"create", "n:pods", "", true, ""},
		{"delete", "n:pods=p", "", true, ""},
		{"update", "n:pods=p", "", false, ""},
		{"patch", "n:pods/status=p", "", true, ""},
		{"create", "n:pods/eviction=p", "", true, ""},
		{"create", "n:pods/exec=p", "", false, ""},
		{"list", "pods/network", "", true, ""},
		{"watch", "pods/network", "", true, ""},
		{"get", "n:pods/network=q", "", false, ""},
		{"watch", "networkpolicies.networking.k8s.io", "", true, ""},
		{"update", "n:networkpolicies.networking.k8s.io=x", "", false, ""},
		{"create", "n:pods/binding=p", "", false, ""},
		{"get", "n:secrets=nobodys", "", false, "no relationship found between node 'me' and this object"},
		{"list", "n:secrets", "", false, "No Object name found"},
		{"watch", "n:secrets", "metadata.name=volume-secret", true, ""},
		{"list", "secrets", "", false, "can only read namespaced object of this type"},
		{"update", "n:secrets=volume-secret", "", false, "can only read resources of this type"},
		{"get", "csinodes.storage.k8s.io=me", "", true, ""},
		{"get", "csinodes.storage.k8s.io=you", "", false, ""},
		{"create", "certificatesigningrequests.certificates.k8s.io", "", true, ""},
		{"update", "certificatesigningrequests/approval.certificates.k8s.io=x", "", false, ""},
		{"create", "n:events", "", true, ""},
		{"patch", "n:events.events.k8s.io=x", "", true, ""},
		{"watch", "services", "", true, ""},
		{"watch", "endpointslices.discovery.k8s.io", "", true, ""},
		{"create", "n:serviceaccounts/token=other", "", false, ""},
		{"delete", "n:services=x", "", false, ""},
		{"list", "clusterroles.rbac.authorization.k8s.io", "", false, ""},
		{"get", "/metrics", "", false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.verb+" "+tt.target+" "+tt.selector, func(t *testing.T) {
			a := asNode("me", tt.verb, tt.target)
			a.FieldSelector = tt.selector
			got, reason, err := z.Authorize(context.Background(), a)
			if err != nil || got != tt.want || tt.reason != "" && reason != tt.reason {
				t.Fatalf("%v %q %v; want %v %q", got, reason, err, tt.want, tt.reason)
			}
		})
	}
}

func TestNodeName(t *testing.T) {
	tests := []struct {
		name   string
		groups []string
		node   string
		isNode bool
	}{
		{"system:node:a", []string{"system:nodes"}, "a", true},
		{"system:node:", []string{"system:nodes"}, "", true},
		{"system:node:a", []string{"system:authenticated"}, "", false},
		{"a", []string{"system:nodes"}, "", false},
	}
	for _, tt := range tests {
		node, isNode := NodeName(request.User{Name: tt.name, Groups: tt.groups})
		if node != tt.node || isNode != tt.isNode {
			t.Errorf("%s %v: %q %v", tt.name, tt.groups, node, isNode)
		}
	}
	z := New()
	if allowed(z, asNode("", "create", "nodes")) {
		t.Error("a node without a name was allowed")
	}
}
