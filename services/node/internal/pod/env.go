package pod

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// EnvVar is one variable of a container's environment.
type EnvVar struct{ Name, Value string }

// EnvSources are the objects and values that an environment may refer to.
type EnvSources struct {
	// ConfigMap and Secret read an object of the pod's namespace. They return nil if it
	// does not exist.
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
	// Services must include those of the pod's namespace and default/kubernetes; others are
	// ignored.
	Services []*corev1.Service
	// Allocatable is the node's allocatable resources. It is the default for limits that
	// are not set.
	Allocatable corev1.ResourceList
	// PodIPs and HostIPs are the addresses of the pod and its node. They are empty until
	// known.
	PodIPs, HostIPs []string
}

// Env returns the environment of a container, in order. Names that are not valid for an
// environment variable are left out and returned in skipped.
func Env(p *corev1.Pod, c *corev1.Container, src EnvSources) (env []EnvVar, skipped []string, err error) {
	services := serviceEnv(p, src.Services)
	set := map[string]int{}
	put := func(name, value string) {
		if i, ok := set[name]; ok {
			env[i].Value = value
			return
		}
		set[name] = len(env)
		env = append(env, EnvVar{name, value})
	}
	for _, from := range c.EnvFrom {
		data, err := envFrom(p, from, src)
		if err != nil {
			return nil, nil, err
		}
		for _, k := range sortedKeys(data) {
			name := from.Prefix + k
			if name == "" || strings.ContainsAny(name, "=\x00") {
				skipped = append(skipped, name)
				continue
			}
			put(name, data[k])
		}
	}
	lookup := func(name string) (string, bool) {
		if i, ok := set[name]; ok {
			return env[i].Value, true
		}
		v, ok := services[name]
		return v, ok
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			put(e.Name, Expand(e.Value, lookup))
			continue
		}
		value, found, err := valueFrom(p, c, e.ValueFrom, src)
		if err != nil {
			return nil, nil, err
		}
		if found {
			put(e.Name, value)
		}
	}
	for _, k := range sortedKeys(services) {
		if _, ok := set[k]; !ok {
			put(k, services[k])
		}
	}
	return env, skipped, nil
}

// Lookup returns a function that looks up a variable in env.
func Lookup(env []EnvVar) func(string) (string, bool) {
	m := make(map[string]string, len(env))
	for _, e := range env {
		m[e.Name] = e.Value
	}
	return func(name string) (string, bool) {
		v, ok := m[name]
		return v, ok
	}
}

func envFrom(p *corev1.Pod, from corev1.EnvFromSource, src EnvSources) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		m, err := src.ConfigMap(from.ConfigMapRef.Name)
		if err != nil {
			return nil, fmt.Errorf("configmap %q: %w", from.ConfigMapRef.Name, err)
		}
		if m == nil {
			if isTrue(from.ConfigMapRef.Optional) {
				return nil, nil
			}
			return nil, fmt.Errorf("configmap %q not found", from.ConfigMapRef.Name)
		}
		return m.Data, nil
	case from.SecretRef != nil:
		s, err := src.Secret(from.SecretRef.Name)
		if err != nil {
			return nil, fmt.Errorf("secret %q: %w", from.SecretRef.Name, err)
		}
		if s == nil {
			if isTrue(from.SecretRef.Optional) {
				return nil, nil
			}
			return nil, fmt.Errorf("secret %q not found", from.SecretRef.Name)
		}
		out := make(map[string]string, len(s.Data))
		for k, v := range s.Data {
			out[k] = string(v)
		}
		return out, nil
	}
	return nil, nil
}

func valueFrom(p *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, src EnvSources) (value string, found bool, err error) {
	switch {
	case from.FieldRef != nil:
		v, err := Field(p, from.FieldRef.FieldPath, src.PodIPs, src.HostIPs)
		return v, true, err
	case from.ResourceFieldRef != nil:
		target := c
		if name := from.ResourceFieldRef.ContainerName; name != "" {
			if target, _ = Find(p, name); target == nil {
				return "", false, fmt.Errorf("container %s not found", name)
			}
		}
		v, err := ResourceField(target, from.ResourceFieldRef, src.Allocatable)
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m, err := src.ConfigMap(ref.Name)
		if err != nil {
			return "", false, fmt.Errorf("configmap %q: %w", ref.Name, err)
		}
		if m == nil {
			if isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, fmt.Errorf("configmap %q not found", ref.Name)
		}
		if v, ok := m.Data[ref.Key]; ok {
			return v, true, nil
		}
		if isTrue(ref.Optional) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", ref.Key, p.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := src.Secret(ref.Name)
		if err != nil {
			return "", false, fmt.Errorf("secret %q: %w", ref.Name, err)
		}
		if s == nil {
			if isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, fmt.Errorf("secret %q not found", ref.Name)
		}
		if v, ok := s.Data[ref.Key]; ok {
			return string(v), true, nil
		}
		if isTrue(ref.Optional) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %s in Secret %s/%s", ref.Key, p.Namespace, ref.Name)
	}
	return "", false, fmt.Errorf("the source of the environment variable is not supported")
}

// serviceEnv returns the service environment variables of a pod: those of the Services in
// its namespace, unless it disables service links, and always those of default/kubernetes.
func serviceEnv(p *corev1.Pod, services []*corev1.Service) map[string]string {
	links := p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks
	chosen := map[string]*corev1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		switch {
		case s.Namespace == p.Namespace && links:
			chosen[s.Name] = s
		case s.Namespace == namespaceDefault && s.Name == "kubernetes":
			if _, ok := chosen[s.Name]; !ok {
				chosen[s.Name] = s
			}
		}
	}
	env := map[string]string{}
	for name, s := range chosen {
		prefix := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		ip := s.Spec.ClusterIP
		env[prefix+"_SERVICE_HOST"] = ip
		env[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
		for i, port := range s.Spec.Ports {
			number := strconv.Itoa(int(port.Port))
			if port.Name != "" {
				env[prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_"))] = number
			}
			protocol := string(port.Protocol)
			if protocol == "" {
				protocol = string(corev1.ProtocolTCP)
			}
			url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, number)
			if i == 0 {
				env[prefix+"_PORT"] = url
			}
			one := prefix + "_PORT_" + number + "_" + strings.ToUpper(protocol)
			env[one] = url
			env[one+"_PROTO"] = strings.ToLower(protocol)
			env[one+"_PORT"] = number
			env[one+"_ADDR"] = ip
		}
	}
	return env
}

// namespaceDefault is the namespace of the Service "kubernetes".
const namespaceDefault = "default"

func isTrue(b *bool) bool { return b != nil && *b }

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
