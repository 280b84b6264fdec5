package manifest

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"keelson.dev/services/node/internal/pod"
)

// validate refuses what the node could not run, what would not be a valid name in the API
// or on disk, and what only API objects can provide. The API checks the pod's mirror fully.
func validate(p *corev1.Pod) error {
	var all []error
	bad := func(format string, args ...any) { all = append(all, fmt.Errorf(format, args...)) }
	if text := validation.IsDNS1123Subdomain(p.Name); len(text) > 0 {
		bad("metadata.name %q: %s", p.Name, text[0])
	}
	if text := validation.IsDNS1123Label(p.Namespace); len(text) > 0 {
		bad("metadata.namespace %q: %s", p.Namespace, text[0])
	}
	s := &p.Spec
	switch {
	case len(s.Containers) == 0:
		bad("spec.containers: at least one is required")
	case len(s.EphemeralContainers) > 0:
		bad("spec.ephemeralContainers: not allowed in a static pod")
	case s.ServiceAccountName != "" || s.DeprecatedServiceAccount != "":
		bad("spec.serviceAccountName: a static pod cannot have a service account")
	case len(s.ImagePullSecrets) > 0:
		bad("spec.imagePullSecrets: a static pod cannot use secrets")
	case len(s.ResourceClaims) > 0:
		bad("spec.resourceClaims: a static pod cannot use resource claims")
	case s.RuntimeClassName != nil:
		bad("spec.runtimeClassName: a static pod cannot use a runtime class")
	case len(s.SchedulingGates) > 0:
		bad("spec.schedulingGates: a static pod is not scheduled")
	}
	volumes := map[string]bool{}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if text := validation.IsDNS1123Label(v.Name); len(text) > 0 || volumes[v.Name] {
			bad("spec.volumes[%d].name %q: must be a label that no other volume has", i, v.Name)
		}
		volumes[v.Name] = true
		if known := v.EmptyDir != nil || v.HostPath != nil || v.DownwardAPI != nil || v.Image != nil; !known && v.VolumeSource != (corev1.VolumeSource{}) {
			bad("spec.volumes[%d]: a static pod's volume is an emptyDir, hostPath, downwardAPI or image", i)
		}
		if v.HostPath != nil && slices.Contains(strings.Split(v.HostPath.Path, "/"), "..") {
			bad("spec.volumes[%d].hostPath.path %q: must not contain '..'", i, v.HostPath.Path)
		}
	}
	names := map[string]bool{}
	for _, c := range pod.Containers(p) {
		if text := validation.IsDNS1123Label(c.Name); len(text) > 0 || names[c.Name] {
			bad("container %q: the name must be a label that no other container has", c.Name)
		}
		names[c.Name] = true
		if c.Image == "" || strings.TrimSpace(c.Image) != c.Image {
			bad("container %s: image %q", c.Name, c.Image)
		}
		if len(c.EnvFrom) > 0 {
			bad("container %s: envFrom refers to API objects, which a static pod cannot use", c.Name)
		}
		for _, e := range c.Env {
			if from := e.ValueFrom; from != nil && from.FieldRef == nil && from.ResourceFieldRef == nil {
				bad("container %s: variable %s refers to an API object, which a static pod cannot use", c.Name, e.Name)
			}
		}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] || m.MountPath == "" {
				bad("container %s: volumeMount %q: needs a volume of the pod and a mountPath", c.Name, m.Name)
			}
			if m.SubPath != "" && !filepath.IsLocal(m.SubPath) {
				bad("container %s: volumeMount %s: subPath %q leads out of the volume", c.Name, m.Name, m.SubPath)
			}
		}
		if len(c.VolumeDevices) > 0 {
			bad("container %s: volumeDevices are not supported", c.Name)
		}
	}
	return errors.Join(all...)
}

// priorities are the values of the classes that Kubernetes defines; a static pod cannot use others, whose
// value only the API knows.
var priorities = map[string]int32{"system-node-critical": 2000001000, "system-cluster-critical": 2000000000}

// complete sets the defaults of the API as far as they matter to the node.
func complete(s *corev1.PodSpec) {
	setDefault(&s.RestartPolicy, corev1.RestartPolicyAlways)
	setDefault(&s.DNSPolicy, corev1.DNSClusterFirst)
	setDefault(&s.SchedulerName, corev1.DefaultSchedulerName)
	point(&s.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	point(&s.EnableServiceLinks, true)
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	if value, ok := priorities[s.PriorityClassName]; ok {
		s.Priority = &value
	}
	for i := range s.Volumes {
		v := &s.Volumes[i].VolumeSource
		if *v == (corev1.VolumeSource{}) {
			v.EmptyDir = &corev1.EmptyDirVolumeSource{}
		}
		if v.DownwardAPI != nil {
			point(&v.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		}
		if v.Image != nil {
			setDefault(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
		}
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			completeContainer(&list[i], s.HostNetwork)
		}
	}
}

func completeContainer(c *corev1.Container, hostNetwork bool) {
	setDefault(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	setDefault(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	setDefault(&c.ImagePullPolicy, pullPolicy(c.Image))
	for i := range c.Ports {
		setDefault(&c.Ports[i].Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			setDefault(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
		}
	}
	for name, q := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = q.DeepCopy()
		}
	}
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if probe == nil {
			continue
		}
		setDefault(&probe.TimeoutSeconds, 1)
		setDefault(&probe.PeriodSeconds, 10)
		setDefault(&probe.SuccessThreshold, 1)
		setDefault(&probe.FailureThreshold, 3)
		completeGet(probe.HTTPGet)
	}
	if c.Lifecycle != nil {
		for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if hook != nil {
				completeGet(hook.HTTPGet)
			}
		}
	}
}

func completeGet(get *corev1.HTTPGetAction) {
	if get != nil {
		setDefault(&get.Path, "/")
		setDefault(&get.Scheme, corev1.URISchemeHTTP)
	}
}

// pullPolicy returns the default policy of an image: Always for the tag latest, also if the
// tag is left out.
func pullPolicy(image string) corev1.PullPolicy {
	name := image[strings.LastIndexByte(image, '/')+1:]
	if strings.Contains(name, "@") || strings.Contains(name, ":") && !strings.HasSuffix(name, ":latest") {
		return corev1.PullIfNotPresent
	}
	return corev1.PullAlways
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func point[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
