package core

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const appArmor = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + "c"

// newPod returns a defaulted pod with one container, c.
func newPod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i:1"}}},
	}
	for _, f := range change {
		f(p)
	}
	defaultPod(p)
	return p
}

// TestAppArmorAnnotations has the fields and warnings of kube-apiserver 1.37.2.
func TestAppArmorAnnotations(t *testing.T) {
	ofPod := func(kind corev1.AppArmorProfileType) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: kind}}
		}
	}
	none := func(*corev1.Pod) {}
	for name, c := range map[string]struct {
		annotation string
		change     func(*corev1.Pod)
		want       string
		warns      bool
	}{
		"runtime default":      {"runtime/default", none, "RuntimeDefault", true},
		"a profile":            {"localhost/x", none, "Localhost x", true},
		"unconfined":           {"unconfined", none, "Unconfined", true},
		"empty":                {"", none, "", true},
		"a profile, no name":   {"localhost/", none, "", true},
		"a profile, blanks":    {"localhost/ x", none, "", true},
		"unknown":              {"foo", none, "", true},
		"the pod's":            {"unconfined", ofPod(corev1.AppArmorProfileTypeUnconfined), "", false},
		"another than the pod": {"runtime/default", ofPod(corev1.AppArmorProfileTypeUnconfined), "RuntimeDefault", true},
		"windows":              {"runtime/default", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, "", false},
		"a field as well": {"runtime/default", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}}
		}, "RuntimeDefault", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(func(p *corev1.Pod) { p.Annotations[appArmor] = c.annotation }, c.change)
			k := Pod()
			warnings := k.Rules.Notices(p)
			k.Rules.PrepareCreate(p)
			got := ""
			if s := p.Spec.Containers[0].SecurityContext; s != nil && s.AppArmorProfile != nil {
				got = string(s.AppArmorProfile.Type)
				if s.AppArmorProfile.LocalhostProfile != nil {
					got += " " + *s.AppArmorProfile.LocalhostProfile
				}
			}
			if got != c.want {
				t.Errorf("profile %q, want %q", got, c.want)
			}
			var want []string
			if c.warns {
				want = []string{"metadata.annotations[" + appArmor + `]: deprecated since v1.30; use the "appArmorProfile" field instead`}
			}
			if !slices.Equal(warnings, want) {
				t.Errorf("warnings %q, want %q", warnings, want)
			}
		})
	}
}

// TestPodUpdateIsValidatedAsAWhole has the errors of kube-apiserver 1.37.2, in its order; FORBIDDEN
// stands for that of fields which may not change.
func TestPodUpdateIsValidatedAsAWhole(t *testing.T) {
	const label = "a lowercase RFC 1123 label must consist of"
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   []string // how each error begins
	}{
		"labels":        {func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }, nil},
		"deletion cost": {func(p *corev1.Pod) { p.Annotations[corev1.PodDeletionCost] = "x" }, []string{`metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "x": must be a 32bit integer`}},
		"no image":      {func(p *corev1.Pod) { p.Spec.Containers[0].Image = "" }, []string{"spec.containers[0].image: Required value"}},
		"image with blanks": {func(p *corev1.Pod) { p.Spec.Containers[0].Image = " i:1 " },
			[]string{`spec.containers[0].image: Invalid value: " i:1 ": must not have leading or trailing whitespace`}},
		"deadline": {func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(-1)) }, []string{
			"spec.activeDeadlineSeconds: Invalid value: -1: must be between 1 and 2147483647, inclusive",
			"spec.activeDeadlineSeconds: Invalid value: -1: must be between 0 and 2147483647, inclusive",
		}},
		"name of a container": {func(p *corev1.Pod) { p.Spec.Containers[0].Name = "B_" }, []string{
			`metadata.annotations[` + appArmor + `]: Invalid value: "c": container not found`,
			`spec.containers[0].name: Invalid value: "B_": ` + label, "FORBIDDEN",
		}},
		"environment": {func(p *corev1.Pod) { p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "="}} }, []string{
			`spec.containers[0].env[0].name: Invalid value: "=": a valid environment variable name`, "FORBIDDEN",
		}},
		"volume": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "V", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		}, []string{`spec.volumes[0].name: Invalid value: "V": ` + label, "FORBIDDEN"}},
		"image and toleration": {func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpEqual, Effect: "X"}}
			p.Spec.Containers[0].Image = ""
		}, []string{"spec.containers[0].image: Required value", `spec.tolerations[0].effect: Unsupported value: "X"`}},
		"restart policy": {func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }, []string{"FORBIDDEN"}},
		"no restart policy": {func(p *corev1.Pod) { p.Spec.RestartPolicy = "No" }, []string{
			`spec.restartPolicy: Unsupported value: "No"`, "FORBIDDEN",
		}},
		"gate": {func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "a b"}} }, []string{
			`spec.schedulingGates[0]: Invalid value: "a b": name part must consist of`,
			"spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'a b'",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			k := Pod()
			old := newPod(func(p *corev1.Pod) { p.Annotations[appArmor] = "runtime/default" })
			k.Rules.PrepareCreate(old)
			p := old.DeepCopy()
			c.change(p)
			errs := k.Rules.ValidateUpdate(p, old)
			if len(errs) != len(c.want) {
				t.Fatalf("got %d errors, want %d: %v", len(errs), len(c.want), errs)
			}
			for i, want := range c.want {
				if want == "FORBIDDEN" {
					want = "spec: Forbidden: pod updates may not change fields other than"
				}
				if !strings.HasPrefix(errs[i].Error(), want) {
					t.Errorf("error %d: %s\nwant %s", i, errs[i].Error(), want)
				}
			}
		})
	}
}
