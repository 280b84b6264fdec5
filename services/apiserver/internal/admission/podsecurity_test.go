package admission

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

func ptr[T any](v T) *T { return &v }

// restrictedPod returns a pod that satisfies every level.
func restrictedPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   ptr(true),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			InitContainers: []corev1.Container{{Name: "i", SecurityContext: restrictedContext()}},
			Containers:     []corev1.Container{{Name: "c", SecurityContext: restrictedContext()}},
		},
	}
}

func restrictedContext() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// security returns the plugin, with a namespace that has the given labels.
func security(labels map[string]string, log *slog.Logger, others ...*corev1.Pod) *PodSecurity {
	state := &objects{cached: map[string]resource.Object{
		"namespaces//ns": &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: labels}},
	}}
	for _, p := range others {
		state.cached["pods/ns/"+p.Name] = p
	}
	return NewPodSecurity(state, Exemptions{
		Users: []string{"exempt"}, RuntimeClasses: []string{"exempt"}, Namespaces: []string{"exempt"},
	}, log)
}

// admit runs the plugin and returns its warnings and its error.
func admit(t *testing.T, p *PodSecurity, obj, old resource.Object, change ...func(*Attributes)) (warnings []string, err error) {
	t.Helper()
	a := &Attributes{
		Operation: Create, Kind: kindOf(obj), Namespace: obj.GetNamespace(), Name: obj.GetName(), Object: obj,
		User: request.User{Name: "jane"}, Warn: func(w string) { warnings = append(warnings, w) },
	}
	if old != nil {
		a.Operation, a.Old = Update, old
	}
	for _, c := range change {
		c(a)
	}
	return warnings, p.Validate(context.Background(), a)
}

func enforced(level string) map[string]string {
	return map[string]string{"pod-security.kubernetes.io/enforce": level}
}

// TestPodSecurityControls has a pod for every control of the standards. The restricted level
// includes all controls of the baseline level.
func TestPodSecurityControls(t *testing.T) {
	first := func(f func(c *corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { f(&p.Spec.Containers[0]) }
	}
	context := func(f func(c *corev1.SecurityContext)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { f(p.Spec.Containers[0].SecurityContext) }
	}
	for name, test := range map[string]struct {
		change func(p *corev1.Pod)
		level  string // the least strict level that refuses the pod
		text   string
	}{
		"nothing": {func(*corev1.Pod) {}, "", ""},
		"host namespaces": {func(p *corev1.Pod) { p.Spec.HostNetwork, p.Spec.HostPID = true, true }, "baseline",
			`host namespaces (hostNetwork=true, hostPID=true)`},
		"host IPC":   {func(p *corev1.Pod) { p.Spec.HostIPC = true }, "baseline", `host namespaces (hostIPC=true)`},
		"privileged": {context(func(c *corev1.SecurityContext) { c.Privileged = ptr(true); c.AllowPrivilegeEscalation = nil }), "baseline", `privileged (container "c" must not set securityContext.privileged=true)`},
		"privileged init container": {func(p *corev1.Pod) { p.Spec.InitContainers[0].SecurityContext.Privileged = ptr(true) }, "baseline",
			`privileged (container "i" must not set securityContext.privileged=true)`},
		"added capability": {context(func(c *corev1.SecurityContext) { c.Capabilities.Add = []corev1.Capability{"SYS_ADMIN"} }), "baseline",
			`capabilities (container "c" must not include "SYS_ADMIN" in securityContext.capabilities.add)`},
		"host path": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
		}, "baseline", `(volume "v"`},
		"host port": {first(func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{HostPort: 80}} }), "baseline", `hostPort (container "c" uses hostPort 80)`},
		"host probe": {first(func(c *corev1.Container) {
			c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: "10.0.0.1", Port: intstr.FromInt32(80)}}}
		}), "baseline", `probe or lifecycle host (container "c" uses probe or lifecycle host "10.0.0.1")`},
		"AppArmor": {context(func(c *corev1.SecurityContext) {
			c.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
		}), "baseline", `forbidden AppArmor profile (container "c" must not set AppArmor profile type to "Unconfined")`},
		"SELinux": {func(p *corev1.Pod) { p.Spec.SecurityContext.SELinuxOptions = &corev1.SELinuxOptions{Type: "bad"} }, "baseline",
			`seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type "bad")`},
		"proc mount": {context(func(c *corev1.SecurityContext) { c.ProcMount = ptr(corev1.UnmaskedProcMount) }), "baseline",
			`procMount (container "c" must not set securityContext.procMount to "Unmasked")`},
		"seccomp unconfined": {func(p *corev1.Pod) { p.Spec.SecurityContext.SeccompProfile.Type = corev1.SeccompProfileTypeUnconfined }, "baseline",
			`seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")`},
		"sysctl": {func(p *corev1.Pod) {
			p.Spec.SecurityContext.Sysctls = []corev1.Sysctl{{Name: "kernel.panic", Value: "1"}}
		}, "baseline",
			`forbidden sysctls (kernel.panic)`},
		"Windows host process": {func(p *corev1.Pod) {
			p.Spec.SecurityContext.WindowsOptions = &corev1.WindowsSecurityContextOptions{HostProcess: ptr(true)}
		}, "baseline", `hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)`},
		"volume type": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}}}
		}, "restricted", `restricted volume types (volume "v" uses restricted volume type "nfs")`},
		"escalation": {context(func(c *corev1.SecurityContext) { c.AllowPrivilegeEscalation = nil }), "restricted",
			`allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false)`},
		"root": {func(p *corev1.Pod) { p.Spec.SecurityContext.RunAsNonRoot = nil }, "restricted",
			`runAsNonRoot != true (pod or containers "i", "c" must set securityContext.runAsNonRoot=true)`},
		"user 0": {func(p *corev1.Pod) { p.Spec.SecurityContext.RunAsUser = ptr(int64(0)) }, "restricted", `runAsUser=0 (pod must not set runAsUser=0)`},
		"no seccomp": {func(p *corev1.Pod) { p.Spec.SecurityContext.SeccompProfile = nil }, "restricted",
			`seccompProfile (pod or containers "i", "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")`},
		"capabilities kept": {context(func(c *corev1.SecurityContext) { c.Capabilities.Drop = nil }), "restricted",
			`unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"])`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, level := range []string{"privileged", "baseline", "restricted"} {
				pod := restrictedPod()
				test.change(pod)
				_, err := admit(t, security(enforced(level), nil), pod, nil)
				refused := test.level != "" && (level == test.level || level == "restricted")
				switch {
				case !refused && err != nil:
					t.Errorf("%s refused the pod: %v", level, err)
				case refused && (err == nil || !strings.HasPrefix(err.Error(), `violates PodSecurity "`+level+`:latest": `) || !strings.Contains(err.Error(), test.text)):
					t.Errorf("%s: got %v, want %q", level, err, test.text)
				}
				if _, err := admit(t, security(nil, nil), pod, nil); err != nil {
					t.Errorf("without labels: %v", err)
				}
			}
		})
	}
}

func TestPodSecurityModes(t *testing.T) {
	bad := restrictedPod()
	bad.Spec.HostNetwork = true
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	p := security(map[string]string{
		"pod-security.kubernetes.io/warn": "baseline", "pod-security.kubernetes.io/warn-version": "v1.30",
		"pod-security.kubernetes.io/audit": "restricted",
	}, log)
	warnings, err := admit(t, p, bad, nil)
	if want := `would violate PodSecurity "baseline:v1.30": host namespaces (hostNetwork=true)`; err != nil || len(warnings) != 1 || warnings[0] != want {
		t.Errorf("got %q, %v; want the warning %s", warnings, err, want)
	}
	if !strings.Contains(text.String(), "level=restricted:latest") || !strings.Contains(text.String(), "namespace=ns name=p") {
		t.Errorf("the log misses the violation: %s", text.String())
	}

	// The enforced level also applies to workloads, as a warning: they are never refused.
	p = security(enforced("baseline"), log)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns"}}
	deployment.Spec.Template.Spec = bad.Spec
	if warnings, err := admit(t, p, deployment, nil); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "hostNetwork=true") {
		t.Errorf("deployment: got warnings %q, error %v", warnings, err)
	}
	if warnings, err := admit(t, p, deployment, nil, func(a *Attributes) { a.Subresource = "status" }); err != nil || len(warnings) > 0 {
		t.Errorf("status of a deployment: got warnings %q, error %v", warnings, err)
	}
	// An old version of the standards has fewer controls.
	seccomp := restrictedPod()
	seccomp.Spec.SecurityContext.SeccompProfile = nil
	p = security(map[string]string{"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "v1.18"}, log)
	if _, err := admit(t, p, seccomp, nil); err != nil {
		t.Errorf("restricted at v1.18 refused a pod without a seccomp profile: %v", err)
	}
}

func TestPodSecurityUpdates(t *testing.T) {
	p := security(enforced("baseline"), nil)
	old := restrictedPod()
	old.Spec.HostNetwork = true
	labelled := old.DeepCopy()
	labelled.Labels = map[string]string{"a": "b"}
	if _, err := admit(t, p, labelled, old); err != nil {
		t.Errorf("changing a label of an existing pod: %v", err)
	}
	image := old.DeepCopy()
	image.Spec.InitContainers[0].Image = "other"
	if _, err := admit(t, p, image, old); err == nil {
		t.Error("a changed image was not checked")
	}
	if _, err := admit(t, p, image, old, func(a *Attributes) { a.Subresource = "status" }); err != nil {
		t.Errorf("updating the status: %v", err)
	}
	added := old.DeepCopy()
	added.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}}
	if _, err := admit(t, p, added, old, func(a *Attributes) { a.Subresource = "ephemeralcontainers" }); err == nil {
		t.Error("an added ephemeral container was not checked")
	}
}

func TestPodSecurityExemptions(t *testing.T) {
	p := security(enforced("restricted"), nil)
	bad := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}}
	bad.Spec.HostNetwork = true
	if _, err := admit(t, p, bad, nil); err == nil {
		t.Fatal("the pod was admitted without an exemption")
	}
	if _, err := admit(t, p, bad, nil, func(a *Attributes) { a.User.Name = "exempt" }); err != nil {
		t.Errorf("exempt user: %v", err)
	}
	if _, err := admit(t, p, bad, nil, func(a *Attributes) { a.Namespace = "exempt" }); err != nil {
		t.Errorf("exempt namespace: %v", err)
	}
	classed := bad.DeepCopy()
	classed.Spec.RuntimeClassName = ptr("exempt")
	if _, err := admit(t, p, classed, nil); err != nil {
		t.Errorf("exempt runtime class: %v", err)
	}
	if _, err := admit(t, p, bad, nil, func(a *Attributes) { a.Namespace = "unknown" }); err == nil || !strings.Contains(err.Error(), `failed to lookup namespace "unknown"`) {
		t.Errorf("missing namespace: %v", err)
	}
	if (Exemptions{Users: []string{"a", ""}}).Check() == nil {
		t.Error("an empty exemption was accepted")
	}
}

func TestPodSecurityLabels(t *testing.T) {
	pods := []*corev1.Pod{restrictedPod(), restrictedPod(), restrictedPod(), restrictedPod()}
	for i, p := range pods {
		p.Name = string(rune('d' - i))
		if i < 3 {
			p.Spec.HostNetwork = true
		}
	}
	p := security(nil, nil, pods...)
	namespace := func(name string, labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	for label, value := range map[string]string{"enforce": "strict", "enforce-version": "1.30", "audit": "", "audit-version": "v1", "warn": "Baseline", "warn-version": "v2.0"} {
		ns := namespace("ns", map[string]string{"pod-security.kubernetes.io/" + label: value})
		if _, err := admit(t, p, ns, nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "metadata.labels[pod-security.kubernetes.io/"+label+"]: Invalid value") {
			t.Errorf("%s=%s: %v", label, value, err)
		}
		if _, err := admit(t, p, ns, ns.DeepCopy()); err != nil {
			t.Errorf("%s=%s, unchanged: %v", label, value, err)
		}
	}
	warnings, err := admit(t, p, namespace("ns", enforced("baseline")), namespace("ns", nil))
	want := []string{`existing pods in namespace "ns" violate the new PodSecurity enforce level "baseline:latest"`, `b (and 2 other pods): host namespaces`}
	if err != nil || strings.Join(warnings, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, %v; want %q", warnings, err, want)
	}
	for name, test := range map[string]struct{ old, now map[string]string }{
		"relaxed":   {enforced("restricted"), enforced("baseline")},
		"removed":   {enforced("restricted"), nil},
		"unchanged": {enforced("restricted"), enforced("restricted")},
	} {
		if warnings, err := admit(t, p, namespace("ns", test.now), namespace("ns", test.old)); err != nil || len(warnings) > 0 {
			t.Errorf("%s: %q, %v", name, warnings, err)
		}
	}
	warnings, err = admit(t, p, namespace("exempt", enforced("baseline")), nil)
	if want := `namespace "exempt" is exempt from Pod Security, and the policy (enforce=baseline:latest, warn=baseline:latest) will be ignored`; err != nil || len(warnings) != 1 || !strings.HasPrefix(warnings[0], `namespace "exempt" is exempt from Pod Security, and the policy (enforce=baseline:latest`) {
		t.Errorf("got %q, %v; want %q", warnings, err, want)
	}
}
