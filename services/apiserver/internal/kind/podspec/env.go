package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// Fields of a pod that are available as environment variables, as files of a volume (which may
// also contain whole maps and follow changes), and as resource fields.
var (
	fieldsOfEnv = []string{
		"metadata.name", "metadata.namespace", "metadata.uid",
		"spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
	}
	fieldsOfVolume = []string{
		"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid",
	}
	resourcesOfField = []string{
		"limits.cpu", "limits.ephemeral-storage", "limits.memory",
		"requests.cpu", "requests.ephemeral-storage", "requests.memory",
	}
)

func (v *validator) validateEnv(env []corev1.EnvVar, p *field.Path) {
	if len(env) == 0 {
		return
	}
	p = p.Child("env")
	for i := range env {
		e := &env[i]
		if e.Name == "" {
			v.Required(p.Index(i).Child("name"), "")
		} else if m := check.EnvName(e.Name); m != nil {
			v.Messages(p.Index(i), "name", e.Name, m)
		}
		if e.ValueFrom != nil {
			v.validateEnvSource(e, p.Index(i).Child("valueFrom"))
		}
	}
}

func (v *validator) validateEnvSource(e *corev1.EnvVar, p *field.Path) {
	from, count := e.ValueFrom, 0
	if s := from.FieldRef; s != nil {
		count++
		v.validateFieldRef(s, fieldsOfEnv, p.Child("fieldRef"))
	}
	if s := from.ResourceFieldRef; s != nil {
		count++
		v.validateResourceRef(s, p.Child("resourceFieldRef"), false)
	}
	if s := from.ConfigMapKeyRef; s != nil {
		count++
		v.validateKeyRef(s.Name, s.Key, p.Child("configMapKeyRef"))
	}
	if s := from.SecretKeyRef; s != nil {
		count++
		v.validateKeyRef(s.Name, s.Key, p.Child("secretKeyRef"))
	}
	if from.FileKeyRef != nil {
		count++
	}
	switch {
	case count == 0:
		v.Invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case e.Value != "":
		v.Invalid(p, "", "may not be specified when `value` is not empty")
	case count > 1:
		v.Invalid(p, "", "may not have more than one field specified at a time")
	}
}

func (v *validator) validateKeyRef(name, key string, p *field.Path) {
	v.Messages(p, "name", name, check.Subdomain(name))
	if key == "" {
		v.Required(p.Child("key"), "")
	} else {
		v.Messages(p, "key", key, check.ConfigKey(key))
	}
}

func (v *validator) validateEnvFrom(sources []corev1.EnvFromSource, p *field.Path) {
	if len(sources) == 0 {
		return
	}
	p = p.Child("envFrom")
	for i := range sources {
		s, at := &sources[i], p.Index(i)
		if s.Prefix != "" {
			v.Messages(at, "prefix", s.Prefix, check.EnvName(s.Prefix))
		}
		count := 0
		if s.ConfigMapRef != nil {
			count++
			v.validateEnvFromName(s.ConfigMapRef.Name, at.Child("configMapRef"))
		}
		if s.SecretRef != nil {
			count++
			v.validateEnvFromName(s.SecretRef.Name, at.Child("secretRef"))
		}
		switch {
		case count == 0:
			v.Invalid(p, "", "must specify one of: `configMapRef` or `secretRef`")
		case count > 1:
			v.Invalid(p, "", "may not have more than one field specified at a time")
		}
	}
}

func (v *validator) validateEnvFromName(name string, p *field.Path) {
	if name == "" {
		v.Required(p.Child("name"), "")
		return
	}
	v.Messages(p, "name", name, check.Subdomain(name))
}

// splitSubscript splits a path such as "metadata.labels['x']".
func splitSubscript(path string) (base, key string, ok bool) {
	base, rest, found := strings.Cut(path, "['")
	if !found || !strings.HasSuffix(rest, "']") {
		return path, "", false
	}
	return base, strings.TrimSuffix(rest, "']"), true
}

func (v *validator) validateFieldRef(s *corev1.ObjectFieldSelector, allowed []string, p *field.Path) {
	if s.APIVersion == "" {
		v.Required(p.Child("apiVersion"), "")
		return
	}
	if s.FieldPath == "" {
		v.Required(p.Child("fieldPath"), "")
		return
	}
	if base, key, ok := splitSubscript(s.FieldPath); ok {
		switch base {
		case "metadata.annotations":
			key = strings.ToLower(key)
			v.Messages(p, "", key, check.LabelKey(key))
		case "metadata.labels":
			v.Messages(p, "", key, check.LabelKey(key))
		default:
			v.Invalid(p.Child("fieldPath"), s.FieldPath, "error converting fieldPath: field label does not support subscript: "+s.FieldPath)
		}
		return
	}
	if s.APIVersion != "v1" {
		v.Invalid(p.Child("fieldPath"), s.FieldPath, "error converting fieldPath: unsupported pod version: "+s.APIVersion)
		return
	}
	if !knownPodField(s.FieldPath) {
		v.Invalid(p.Child("fieldPath"), s.FieldPath, "error converting fieldPath: field label not supported: "+s.FieldPath)
		return
	}
	check.Supported(&v.Errors, p, "fieldPath", s.FieldPath, allowed...)
}

// knownPodField reports whether a path is a known field of a pod.
func knownPodField(path string) bool {
	switch path {
	case "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid",
		"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
		"status.phase", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs", "status.nominatedNodeName":
		return true
	}
	return false
}

func (v *validator) validateResourceRef(s *corev1.ResourceFieldSelector, p *field.Path, volume bool) {
	switch {
	case volume && s.ContainerName == "":
		v.Required(p.Child("containerName"), "")
	case s.Resource == "":
		v.Required(p.Child("resource"), "")
	case strings.HasPrefix(s.Resource, "limits.hugepages-"), strings.HasPrefix(s.Resource, "requests.hugepages-"):
		v.validateDivisor(s, p)
	default:
		if check.Supported(&v.Errors, p, "resource", s.Resource, resourcesOfField...); len(v.List) == 0 {
			v.validateDivisor(s, p)
		}
	}
}

func (v *validator) validateDivisor(s *corev1.ResourceFieldSelector, p *field.Path) {
	divisor := s.Divisor.String()
	if divisor == "0" {
		return
	}
	_, name, _ := strings.Cut(s.Resource, ".")
	cpu := false
	what := "hugepages"
	switch name {
	case "cpu":
		cpu = true
	case "memory":
		what = "memory"
	case "ephemeral-storage":
		what = "local ephemeral storage"
	}
	if cpu {
		if divisor != "1" && divisor != "1m" {
			v.Invalid(p.Child("divisor"), s.Resource, "only divisor's values 1m and 1 are supported with the cpu resource")
		}
		return
	}
	switch divisor {
	case "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei":
	default:
		v.Invalid(p.Child("divisor"), s.Resource,
			"only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the "+what+" resource")
	}
}
