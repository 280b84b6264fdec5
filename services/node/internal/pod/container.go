package pod

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

// ContainerInput holds what a container's configuration is built from in addition to its
// spec.
type ContainerInput struct {
	Start  Start
	Env    []EnvVar
	Mounts []*runtimev1.Mount
	// ImageRef is the runtime's reference to the image; Image describes it.
	ImageRef string
	Image    *runtimev1.Image
}

// ContainerConfig returns a container's CRI configuration, or an error that explains why
// the container's configuration is invalid.
func ContainerConfig(p *corev1.Pod, s Settings, in ContainerInput) (*runtimev1.ContainerConfig, error) {
	c := in.Start.Container
	security, err := containerSecurity(p, c, s, in.Image)
	if err != nil {
		return nil, err
	}
	lookup := Lookup(in.Env)
	labels := map[string]string{
		cri.LabelPodName: p.Name, cri.LabelPodNamespace: p.Namespace, cri.LabelPodUID: string(p.UID), cri.LabelContainerName: c.Name,
	}
	grace := int64(30)
	if p.Spec.TerminationGracePeriodSeconds != nil {
		grace = *p.Spec.TerminationGracePeriodSeconds
	}
	config := &runtimev1.ContainerConfig{
		Metadata:   &runtimev1.ContainerMetadata{Name: c.Name, Attempt: uint32(in.Start.RestartCount)},
		Image:      &runtimev1.ImageSpec{Image: in.ImageRef, UserSpecifiedImage: c.Image},
		Command:    ExpandAll(c.Command, lookup),
		Args:       ExpandAll(c.Args, lookup),
		WorkingDir: c.WorkingDir,
		Mounts:     in.Mounts,
		Labels:     labels,
		Annotations: map[string]string{
			cri.AnnotationRestartCount: strconv.Itoa(in.Start.RestartCount),
			cri.AnnotationHash:         Hash(c),
			cri.AnnotationGrace:        strconv.FormatInt(grace, 10),
			cri.AnnotationMessagePath:  c.TerminationMessagePath,
			cri.AnnotationMessageMode:  string(c.TerminationMessagePolicy),
			cri.AnnotationBackoff:      strconv.FormatInt(int64(in.Start.Backoff), 10),
		},
		LogPath:   LogName(c.Name, in.Start.RestartCount),
		Stdin:     c.Stdin,
		StdinOnce: c.StdinOnce,
		Tty:       c.TTY,
		Linux: &runtimev1.LinuxContainerConfig{
			Resources:       ContainerResources(p, c, s.MemoryCapacity, s.Unified),
			SecurityContext: security,
		},
	}
	var images []string
	for _, m := range in.Mounts {
		if id := m.GetImage().GetImage(); id != "" {
			images = append(images, id)
		}
	}
	if len(images) > 0 {
		config.Annotations[cri.AnnotationImages] = strings.Join(images, ",")
	}
	for _, e := range in.Env {
		config.Envs = append(config.Envs, &runtimev1.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	if ns := security.NamespaceOptions; in.Start.Target != "" && ns.Pid == runtimev1.NamespaceMode_CONTAINER {
		ns.Pid, ns.TargetId = runtimev1.NamespaceMode_TARGET, in.Start.Target
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		config.StopSignal = runtimev1.Signal(runtimev1.Signal_value["SIGNAL_"+strings.ReplaceAll(strings.ReplaceAll(string(*c.Lifecycle.StopSignal), "+", "PLUS"), "-", "MINUS")])
	}
	return config, nil
}

// The paths under /proc and /sys that are masked or read-only in a container, unless it is
// privileged or asks for an unmasked /proc. They are the defaults that container runtimes
// share.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// containerSecurity merges the security contexts of the pod and the container.
func containerSecurity(p *corev1.Pod, c *corev1.Container, s Settings, image *runtimev1.Image) (*runtimev1.LinuxContainerSecurityContext, error) {
	psc, csc := p.Spec.SecurityContext, c.SecurityContext
	if psc == nil {
		psc = &corev1.PodSecurityContext{}
	}
	if csc == nil {
		csc = &corev1.SecurityContext{}
	}
	out := &runtimev1.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(p),
		Privileged:       isTrue(csc.Privileged),
		ReadonlyRootfs:   isTrue(csc.ReadOnlyRootFilesystem),
		NoNewPrivs:       csc.AllowPrivilegeEscalation != nil && !*csc.AllowPrivilegeEscalation,
		Seccomp:          seccomp(psc.SeccompProfile, csc.SeccompProfile, s.SeccompDir),
		Apparmor:         apparmor(psc.AppArmorProfile, csc.AppArmorProfile),
	}
	user := first(csc.RunAsUser, psc.RunAsUser)
	group := first(csc.RunAsGroup, psc.RunAsGroup)
	if nonRoot := firstBool(csc.RunAsNonRoot, psc.RunAsNonRoot); isTrue(nonRoot) {
		if err := verifyNonRoot(p, c, user, image); err != nil {
			return nil, err
		}
	}
	switch {
	case user != nil:
		out.RunAsUser = &runtimev1.Int64Value{Value: *user}
	case image.GetUid() != nil:
		out.RunAsUser = &runtimev1.Int64Value{Value: image.GetUid().Value}
	case image.GetUsername() != "":
		out.RunAsUsername = image.GetUsername()
	}
	if group != nil {
		out.RunAsGroup = &runtimev1.Int64Value{Value: *group}
		if out.RunAsUser == nil && out.RunAsUsername == "" {
			out.RunAsUser = &runtimev1.Int64Value{Value: 0}
		}
	}
	if psc.FSGroup != nil {
		out.SupplementalGroups = append(out.SupplementalGroups, *psc.FSGroup)
	}
	out.SupplementalGroups = append(out.SupplementalGroups, psc.SupplementalGroups...)
	if psc.SupplementalGroupsPolicy != nil && *psc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		out.SupplementalGroupsPolicy = runtimev1.SupplementalGroupsPolicy_Strict
	}
	if caps := csc.Capabilities; caps != nil {
		out.Capabilities = &runtimev1.Capability{}
		for _, name := range caps.Add {
			out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(name))
		}
		for _, name := range caps.Drop {
			out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(name))
		}
	}
	if se := firstSELinux(csc.SELinuxOptions, psc.SELinuxOptions); se != nil {
		out.SelinuxOptions = &runtimev1.SELinuxOption{User: se.User, Role: se.Role, Type: se.Type, Level: se.Level}
	}
	if !out.Privileged && (csc.ProcMount == nil || *csc.ProcMount == corev1.DefaultProcMount) {
		out.MaskedPaths, out.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	return out, nil
}

// verifyNonRoot returns an error if a container that must not run as root would run as
// root, or might.
func verifyNonRoot(p *corev1.Pod, c *corev1.Container, user *int64, image *runtimev1.Image) error {
	where := fmt.Sprintf("(pod: \"%s_%s(%s)\", container: %s)", p.Name, p.Namespace, p.UID, c.Name)
	switch {
	case user != nil && *user == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
	case user != nil:
		return nil
	case image.GetUid() != nil && image.GetUid().Value == 0, image.GetUid() == nil && image.GetUsername() == "":
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	case image.GetUid() == nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", image.GetUsername(), where)
	}
	return nil
}

func seccomp(pod, container *corev1.SeccompProfile, dir string) *runtimev1.SecurityProfile {
	profile := container
	if profile == nil {
		profile = pod
	}
	if profile == nil {
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
	}
	switch profile.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}
	case corev1.SeccompProfileTypeLocalhost:
		name := ""
		if profile.LocalhostProfile != nil {
			name = *profile.LocalhostProfile
		}
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: filepath.Join(dir, filepath.Clean("/"+name))}
	}
	return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
}

func apparmor(pod, container *corev1.AppArmorProfile) *runtimev1.SecurityProfile {
	profile := container
	if profile == nil {
		profile = pod
	}
	if profile == nil {
		return nil
	}
	switch profile.Type {
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}
	case corev1.AppArmorProfileTypeLocalhost:
		name := ""
		if profile.LocalhostProfile != nil {
			name = *profile.LocalhostProfile
		}
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: name}
	}
	return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
}

func first(values ...*int64) *int64 {
	for _, v := range values {
		if v != nil {
			return v
		}
	}
	return nil
}

func firstBool(values ...*bool) *bool {
	for _, v := range values {
		if v != nil {
			return v
		}
	}
	return nil
}

func firstSELinux(values ...*corev1.SELinuxOptions) *corev1.SELinuxOptions {
	for _, v := range values {
		if v != nil {
			return v
		}
	}
	return nil
}
