package podspec

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// warner collects warnings about what is accepted but may be surprising.
type warner struct{ list []string }

func (w *warner) add(p *field.Path, format string, args ...any) {
	w.list = append(w.list, p.String()+": "+fmt.Sprintf(format, args...))
}

// deadAnnotations no longer have any effect.
var deadAnnotations = []struct{ key, warning string }{
	{"seccomp.security.alpha.kubernetes.io/pod", `non-functional in v1.27+; use the "seccompProfile" field instead`},
	{"scheduler.alpha.kubernetes.io/critical-pod", `non-functional in v1.16+; use the "priorityClassName" field instead`},
}

// Warnings returns warnings about what is accepted in a spec and its annotations but may be
// surprising. p is the path of the object that contains metadata and spec; nil is the root.
func Warnings(s *corev1.PodSpec, annotations map[string]string, p *field.Path) []string {
	w := &warner{}
	for _, a := range deadAnnotations {
		if _, set := annotations[a.key]; set {
			w.add(child(p, "metadata").Child("annotations").Key(a.key), "%s", a.warning)
		}
	}
	p = child(p, "spec")
	w.placement(s, p)
	for i := range s.Volumes {
		w.volume(&s.Volumes[i], p)
	}
	w.names(s, p)
	if g := s.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		w.add(p.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	}
	w.containers(s.InitContainers, p, "initContainers")
	w.containers(s.Containers, p, "containers")
	w.ports(s, p)
	return w.list
}

func child(p *field.Path, name string) *field.Path {
	if p == nil {
		return field.NewPath(name)
	}
	return p.Child(name)
}

func (w *warner) names(s *corev1.PodSpec, p *field.Path) {
	for i, ref := range s.ImagePullSecrets {
		at := p.Child("imagePullSecrets").Index(i).Child("name")
		if ref.Name == "" {
			w.add(at, "invalid empty name %q", "")
			continue
		}
		for _, other := range s.ImagePullSecrets[:i] {
			if other.Name == ref.Name {
				w.add(at, "duplicate name %q", ref.Name)
				break
			}
		}
	}
	for i, a := range s.HostAliases {
		for _, other := range s.HostAliases[:i] {
			if other.IP == a.IP {
				w.add(p.Child("hostAliases").Index(i).Child("ip"), "duplicate ip %q", a.IP)
				break
			}
		}
	}
}

func (w *warner) placement(s *corev1.PodSpec, p *field.Path) {
	for key := range s.NodeSelector {
		if why := check.DeprecatedNodeLabel(key); why != "" {
			w.add(p.Child("nodeSelector").Key(key), "%s", why)
		}
	}
	if a := s.Affinity; a != nil {
		at := p.Child("affinity")
		if a.NodeAffinity != nil {
			w.nodeAffinity(a.NodeAffinity, at.Child("nodeAffinity"))
		}
		if a.PodAffinity != nil {
			w.podTerms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAffinity"))
		}
		if a.PodAntiAffinity != nil {
			w.podTerms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAntiAffinity"))
		}
	}
	for i := range s.TopologySpreadConstraints {
		c, at := &s.TopologySpreadConstraints[i], p.Child("topologySpreadConstraints").Index(i)
		w.label(c.TopologyKey, at.Child("topologyKey"))
		if c.LabelSelector == nil {
			w.add(at.Child("labelSelector"), "a null labelSelector results in matching no pod")
		}
	}
}

func (w *warner) label(key string, p *field.Path) {
	if why := check.DeprecatedNodeLabel(key); why != "" {
		w.add(p, "%s is %s", key, why)
	}
}

func (w *warner) nodeAffinity(a *corev1.NodeAffinity, p *field.Path) {
	term := func(t *corev1.NodeSelectorTerm, p *field.Path) {
		for i := range t.MatchExpressions {
			w.label(t.MatchExpressions[i].Key, p.Child("matchExpressions").Index(i).Child("key"))
		}
	}
	if r := a.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
		at := p.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
		for i := range r.NodeSelectorTerms {
			term(&r.NodeSelectorTerms[i], at.Index(i))
		}
	}
	at := p.Child("preferredDuringSchedulingIgnoredDuringExecution")
	for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
		term(&a.PreferredDuringSchedulingIgnoredDuringExecution[i].Preference, at.Index(i).Child("preference"))
	}
}

func (w *warner) podTerms(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, p *field.Path) {
	term := func(t *corev1.PodAffinityTerm, p *field.Path) {
		if t.LabelSelector == nil {
			w.add(p.Child("labelSelector"), "a null labelSelector results in matching no pod")
		}
	}
	for i := range required {
		term(&required[i], p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))
	}
	for i := range preferred {
		term(&preferred[i].PodAffinityTerm, p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm"))
	}
}

func (w *warner) containers(list []corev1.Container, p *field.Path, name string) {
	for i := range list {
		c := &list[i]
		w.env(c.Env, func() *field.Path { return p.Child(name).Index(i).Child("env") })
		for j, port := range c.Ports {
			if port.HostIP != "" && port.HostPort == 0 {
				w.add(p.Child(name).Index(i).Child("ports").Index(j),
					"hostIP set without hostPort: {Name:%s HostPort:%d ContainerPort:%d Protocol:%s HostIP:%s}",
					port.Name, port.HostPort, port.ContainerPort, port.Protocol, port.HostIP)
			}
		}
		w.fractions(c.Resources.Requests, func() *field.Path { return p.Child(name).Index(i).Child("resources", "requests") })
		w.fractions(c.Resources.Limits, func() *field.Path { return p.Child(name).Index(i).Child("resources", "limits") })
	}
}

// manyVariables is the number above which comparing all pairs would be slow.
const manyVariables = 32

func (w *warner) env(env []corev1.EnvVar, p func() *field.Path) {
	var seen map[string]bool
	if len(env) > manyVariables {
		seen = make(map[string]bool, len(env))
	}
	for i := range env {
		double := seen[env[i].Name]
		for j := 0; seen == nil && j < i && !double; j++ {
			double = env[j].Name == env[i].Name
		}
		if double {
			w.add(p().Index(i), "hides previous definition of %q, which may be dropped when using apply", env[i].Name)
		}
		if seen != nil {
			seen[env[i].Name] = true
		}
	}
}

func (w *warner) fractions(list corev1.ResourceList, p func() *field.Path) {
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := list[name]; ok && q.MilliValue()%1000 != 0 {
			w.add(p().Key(string(name)), "fractional byte value %q is invalid, must be an integer", q.String())
		}
	}
}

// ports warns about ports that are declared twice.
func (w *warner) ports(s *corev1.PodSpec, p *field.Path) {
	type key struct {
		number, host int32
		protocol     corev1.Protocol
		ip           string
	}
	count := 0
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			count += len(list[i].Ports)
		}
	}
	if count < 2 {
		return
	}
	first := make(map[key]*field.Path, count)
	for _, l := range []struct {
		name string
		list []corev1.Container
	}{{"initContainers", s.InitContainers}, {"containers", s.Containers}} {
		for i := range l.list {
			for j, port := range l.list[i].Ports {
				at := p.Child(l.name).Index(i).Child("ports").Index(j)
				k := key{port.ContainerPort, port.HostPort, port.Protocol, port.HostIP}
				if before := first[k]; before != nil {
					w.add(at, "duplicate port definition with %s", before)
				} else {
					first[k] = at
				}
			}
		}
	}
}

func (w *warner) volume(v *corev1.Volume, p *field.Path) {
	switch {
	case v.ConfigMap != nil:
		w.overlaps(v.Name, fmt.Sprintf("ConfigMap %q", v.ConfigMap.Name), keyPaths(v.ConfigMap.Items, ""))
	case v.Secret != nil:
		w.overlaps(v.Name, fmt.Sprintf("Secret %q", v.Secret.SecretName), keyPaths(v.Secret.Items, ""))
	case v.DownwardAPI != nil:
		w.overlaps(v.Name, "DownwardAPI", downwardPaths(v.DownwardAPI.Items, ""))
	case v.Projected != nil:
		w.projected(v)
	}
}

// placed is a file in a volume and, in a projected volume, its source.
type placed struct{ path, from string }

func (f placed) String() string {
	if f.from == "" {
		return fmt.Sprintf("%q", f.path)
	}
	return fmt.Sprintf("%q (%s)", f.path, f.from)
}

func keyPaths(items []corev1.KeyToPath, from string) []placed {
	files := make([]placed, 0, len(items))
	for _, item := range items {
		files = append(files, placed{item.Path, from})
	}
	return files
}

func downwardPaths(items []corev1.DownwardAPIVolumeFile, from string) []placed {
	files := make([]placed, 0, len(items))
	for _, item := range items {
		files = append(files, placed{item.Path, from})
	}
	return files
}

func (w *warner) projected(v *corev1.Volume) {
	var files []placed
	any := false
	for i := range v.Projected.Sources {
		s := &v.Projected.Sources[i]
		any = any || s.Secret != nil || s.ConfigMap != nil || s.DownwardAPI != nil || s.ServiceAccountToken != nil ||
			s.ClusterTrustBundle != nil || s.PodCertificate != nil
		switch {
		case s.Secret != nil:
			files = append(files, keyPaths(s.Secret.Items, fmt.Sprintf("Secret %q", s.Secret.Name))...)
		case s.ConfigMap != nil:
			files = append(files, keyPaths(s.ConfigMap.Items, fmt.Sprintf("ConfigMap %q", s.ConfigMap.Name))...)
		case s.DownwardAPI != nil:
			files = append(files, downwardPaths(s.DownwardAPI.Items, "DownwardAPI")...)
		case s.ServiceAccountToken != nil:
			files = append(files, placed{s.ServiceAccountToken.Path, "ServiceAccountToken"})
		}
	}
	if !any && len(v.Projected.Sources) > 0 {
		w.list = append(w.list, fmt.Sprintf("volume %q (Projected) has no sources provided", v.Name))
	}
	w.overlaps(v.Name, "Projected", files)
}

// overlaps warns about files that hide each other, or of which one is below the other.
func (w *warner) overlaps(volume, what string, files []placed) {
	if len(files) < 2 || len(files) > manyVariables {
		return
	}
	for i, f := range files {
		for _, other := range files[:i] {
			a, b := path.Clean(f.path), path.Clean(other.path)
			if a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/") {
				w.list = append(w.list, fmt.Sprintf("volume %q (%s): overlapping paths: %v with %v", volume, what, f, other))
			}
		}
	}
}
