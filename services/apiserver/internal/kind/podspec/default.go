// Package podspec contains the rules of PodSpec and PodTemplateSpec, which Pod and all kinds with
// a pod template share: defaults, validation and quality of service.
//
// It must never read another object, and never refuse what Kubernetes accepts unless
// DIFFERENCES.md lists it.
package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Defaults of a spec. GracePeriodSeconds and TokenExpirationSeconds are in seconds.
const (
	GracePeriodSeconds     = 30
	FileMode               = 0o644
	TokenExpirationSeconds = 3600
)

func set[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func setZero[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Default sets the defaults of a spec, in a pod or in a template.
func Default(s *corev1.PodSpec) {
	setZero(&s.RestartPolicy, corev1.RestartPolicyAlways)
	setZero(&s.DNSPolicy, corev1.DNSClusterFirst)
	setZero(&s.SchedulerName, corev1.DefaultSchedulerName)
	set(&s.TerminationGracePeriodSeconds, GracePeriodSeconds)
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	// Both names of the service account are kept equal. The newer field takes precedence.
	setZero(&s.ServiceAccountName, s.DeprecatedServiceAccount)
	s.DeprecatedServiceAccount = s.ServiceAccountName
	for i := range s.Volumes {
		DefaultVolume(&s.Volumes[i])
	}
	for i := range s.InitContainers {
		defaultContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		defaultContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		defaultContainer(plain(&s.EphemeralContainers[i]))
	}
	if r := s.Resources; r != nil {
		DefaultResources(r.Limits)
		DefaultResources(r.Requests)
	}
}

// DefaultPod sets defaults that only pods get, not templates: a missing request is set to the
// limit, and ports of a pod in the host's network are host ports.
func DefaultPod(s *corev1.PodSpec) {
	set(&s.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	if g := s.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		one := int64(1) // also for pods that are already stored, so that they can be updated
		s.TerminationGracePeriodSeconds = &one
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			c := &list[i]
			for name, limit := range c.Resources.Limits {
				if _, ok := c.Resources.Requests[name]; ok {
					continue
				}
				if c.Resources.Requests == nil {
					c.Resources.Requests = make(corev1.ResourceList, len(c.Resources.Limits))
				}
				c.Resources.Requests[name] = limit.DeepCopy()
			}
			if s.HostNetwork {
				for j := range c.Ports {
					setZero(&c.Ports[j].HostPort, c.Ports[j].ContainerPort)
				}
			}
		}
	}
}

func defaultContainer(c *corev1.Container) {
	setZero(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	setZero(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = pullPolicy(c.Image)
	}
	for i := range c.Ports {
		setZero(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			setZero(&from.FieldRef.APIVersion, "v1")
		}
	}
	DefaultResources(c.Resources.Limits)
	DefaultResources(c.Resources.Requests)
	defaultProbe(c.LivenessProbe)
	defaultProbe(c.ReadinessProbe)
	defaultProbe(c.StartupProbe)
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				defaultHTTPGet(h.HTTPGet)
			}
		}
	}
}

// pullPolicy returns Always for the tag latest, which an image with neither tag nor digest has
// implicitly. An invalid image name has no tag.
func pullPolicy(image string) corev1.PullPolicy {
	name, _, digest := strings.Cut(image, "@")
	tag := ""
	if !imageName(name) {
		return corev1.PullIfNotPresent
	}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		tag = name[colon+1:]
	}
	if tag == "latest" || tag == "" && !digest {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// imageName reports whether name consists of characters that are valid in an image name with a
// tag: upper case is only valid in the registry's host and in the tag.
func imageName(name string) bool {
	rest, tag := name, ""
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		rest, tag = name[:colon], name[colon+1:]
	}
	host, path, found := strings.Cut(rest, "/")
	if !found || !strings.ContainsAny(host, ".:") && host != "localhost" && host == strings.ToLower(host) {
		host, path = "", rest
	}
	for i := range len(path) {
		if c := path[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("._/-", c) < 0 {
			return false
		}
	}
	return path != "" && !strings.ContainsAny(host, " \t\n") && !strings.ContainsAny(tag, " \t\n")
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	setZero(&p.TimeoutSeconds, 1)
	setZero(&p.PeriodSeconds, 10)
	setZero(&p.SuccessThreshold, 1)
	setZero(&p.FailureThreshold, 3)
	defaultHTTPGet(p.HTTPGet)
	if p.GRPC != nil {
		set(&p.GRPC.Service, "")
	}
}

func defaultHTTPGet(a *corev1.HTTPGetAction) {
	if a != nil {
		setZero(&a.Path, "/")
		setZero(&a.Scheme, corev1.URISchemeHTTP)
	}
}

// DefaultResources rounds quantities up to thousandths, the highest precision that is kept.
func DefaultResources(list corev1.ResourceList) {
	for name, q := range list {
		before := q
		if q.RoundUp(resource.Milli); q.Cmp(before) != 0 {
			list[name] = q
		}
	}
}

// DefaultVolume sets the defaults of a volume. A volume without a source is an empty directory.
func DefaultVolume(v *corev1.Volume) {
	switch s := &v.VolumeSource; {
	case s.Secret != nil:
		set(&s.Secret.DefaultMode, FileMode)
	case s.ConfigMap != nil:
		set(&s.ConfigMap.DefaultMode, FileMode)
	case s.DownwardAPI != nil:
		set(&s.DownwardAPI.DefaultMode, FileMode)
		defaultDownward(s.DownwardAPI.Items)
	case s.Projected != nil:
		set(&s.Projected.DefaultMode, FileMode)
		for i := range s.Projected.Sources {
			source := &s.Projected.Sources[i]
			if source.ServiceAccountToken != nil {
				set(&source.ServiceAccountToken.ExpirationSeconds, TokenExpirationSeconds)
			}
			if source.DownwardAPI != nil {
				defaultDownward(source.DownwardAPI.Items)
			}
		}
	case s.HostPath != nil:
		set(&s.HostPath.Type, corev1.HostPathUnset)
	case s.Image != nil:
		setZero(&s.Image.PullPolicy, pullPolicy(s.Image.Reference))
	case *s == corev1.VolumeSource{}:
		s.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
}

func defaultDownward(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			setZero(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}
