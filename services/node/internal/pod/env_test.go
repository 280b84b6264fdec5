package pod

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "1", "EMPTY": "", "NEST": "$(A)"}[name]
		return v, ok
	}
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "1", "x$(A)y$(A)": "x1y1", "$$(A)": "$(A)", "$$$(A)": "$1", "$$$$(A)": "$$(A)", "$(B)": "$(B)",
		"$A": "$A", "$": "$", "$(": "$(", "$(A": "$(A", "$()": "$()", "$(EMPTY)|": "|", "$(NEST)": "$(A)", "a$": "a$", "$$": "$", "$(A)$(B)$$": "1$(B)$",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if ExpandAll(nil, lookup) != nil {
		t.Error("ExpandAll(nil) is not nil")
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$(A)", "$$(A)", "$(", "$$$$((A)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Expand(s, func(string) (string, bool) { return "", false })
		if !strings.Contains(s, "$$") && got != s {
			t.Errorf("%q became %q although no variable is defined", s, got)
		}
	})
}

func sources() EnvSources {
	return EnvSources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			switch name {
			case "config":
				return &corev1.ConfigMap{Data: map[string]string{"k": "v", "b=d": "x"}}, nil
			case "broken":
				return nil, errors.New("no answer")
			}
			return nil, nil
		},
		Secret: func(name string) (*corev1.Secret, error) {
			if name == "secret" {
				return &corev1.Secret{Data: map[string][]byte{"p": []byte("w")}}, nil
			}
			return nil, nil
		},
		Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("1Gi")},
		PodIPs:      []string{"10.0.0.1", "fd00::1"}, HostIPs: []string{"192.0.2.1"},
	}
}

func TestEnv(t *testing.T) {
	yes, no := true, false
	local := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	key := func(from corev1.EnvVarSource) *corev1.EnvVarSource { return &from }
	field := func(path string) *corev1.EnvVarSource {
		return key(corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}})
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Labels: map[string]string{"a/b": "c"}}, Spec: corev1.PodSpec{EnableServiceLinks: &no, NodeName: "node", ServiceAccountName: "account"}}
	for name, c := range map[string]struct {
		container corev1.Container
		want      []EnvVar
		err       string
	}{
		"in order, later wins": {corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)"}, {Name: "A", Value: "2"}, {Name: "C", Value: "$(A)"}}},
			[]EnvVar{{"A", "2"}, {"B", "1"}, {"C", "2"}}, ""},
		"no looking ahead": {corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "$(B)"}, {Name: "B", Value: "1"}}}, []EnvVar{{"A", "$(B)"}, {"B", "1"}}, ""},
		"env over envFrom": {corev1.Container{
			EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("config")}}, {Prefix: "S_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local("secret")}}},
			Env:     []corev1.EnvVar{{Name: "k", Value: "mine $(S_p)"}},
		}, []EnvVar{{"k", "mine w"}, {"S_p", "w"}}, ""},
		"fields": {corev1.Container{Env: []corev1.EnvVar{
			{Name: "1", ValueFrom: field("metadata.uid")}, {Name: "2", ValueFrom: field("metadata.labels['a/b']")}, {Name: "3", ValueFrom: field("status.podIPs")},
			{Name: "4", ValueFrom: field("spec.nodeName")}, {Name: "5", ValueFrom: field("spec.serviceAccountName")}, {Name: "6", ValueFrom: field("status.hostIP")},
		}}, []EnvVar{{"1", "u"}, {"2", "c"}, {"3", "10.0.0.1,fd00::1"}, {"4", "node"}, {"5", "account"}, {"6", "192.0.2.1"}}, ""},
		"no such field": {corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: field("spec.hostname")}}}, nil, "unsupported fieldPath: spec.hostname"},
		"resources": {corev1.Container{
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}},
			Env: []corev1.EnvVar{
				{Name: "1", ValueFrom: key(corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.cpu"}})},
				{Name: "2", ValueFrom: key(corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.cpu", Divisor: resource.MustParse("1m")}})},
				{Name: "3", ValueFrom: key(corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}})},
				{Name: "4", ValueFrom: key(corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}})},
				{Name: "5", ValueFrom: key(corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.memory"}})},
			},
		}, []EnvVar{{"1", "1"}, {"2", "250"}, {"3", "4"}, {"4", "1024"}, {"5", "0"}}, ""},
		"a missing ConfigMap":          {corev1.Container{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("none")}}}}, nil, `configmap "none" not found`},
		"a missing optional ConfigMap": {corev1.Container{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("none"), Optional: &yes}}}}, nil, ""},
		"an API that returns an error": {corev1.Container{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("broken"), Optional: &yes}}}}, nil, "no answer"},
		"a missing key": {corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: key(corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local("secret"), Key: "x"}})}}},
			nil, "couldn't find key x in Secret n/secret"},
		"a missing optional key": {corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: key(corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local("secret"), Key: "x", Optional: &yes}})}}}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := Env(pod, &c.container, sources())
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	_, skipped, err := Env(pod, &corev1.Container{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("config")}}}}, sources())
	if err != nil || !reflect.DeepEqual(skipped, []string{"b=d"}) {
		t.Errorf("skipped %q, %v", skipped, err)
	}
}

func TestServiceEnv(t *testing.T) {
	service := func(namespace, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	}
	services := []*corev1.Service{
		service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443}),
		service("n", "my-db", "10.96.0.2", corev1.ServicePort{Name: "main", Port: 5432, Protocol: corev1.ProtocolTCP}, corev1.ServicePort{Name: "stats", Port: 99, Protocol: corev1.ProtocolUDP}),
		service("n", "headless", corev1.ClusterIPNone, corev1.ServicePort{Port: 1}),
		service("other", "away", "10.96.0.3", corev1.ServicePort{Port: 1}),
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n"}}
	got := serviceEnv(p, services)
	for name, want := range map[string]string{
		"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443", "KUBERNETES_PORT": "tcp://10.96.0.1:443",
		"MY_DB_SERVICE_HOST": "10.96.0.2", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_STATS": "99", "MY_DB_PORT": "tcp://10.96.0.2:5432",
		"MY_DB_PORT_99_UDP": "udp://10.96.0.2:99", "MY_DB_PORT_99_UDP_PROTO": "udp", "MY_DB_PORT_99_UDP_PORT": "99", "MY_DB_PORT_99_UDP_ADDR": "10.96.0.2",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	for name := range got {
		if strings.HasPrefix(name, "HEADLESS") || strings.HasPrefix(name, "AWAY") {
			t.Errorf("%s is set, but should not be", name)
		}
	}
	no := false
	p.Spec.EnableServiceLinks = &no
	got = serviceEnv(p, services)
	if got["KUBERNETES_SERVICE_HOST"] == "" || got["MY_DB_SERVICE_HOST"] != "" {
		t.Errorf("without links: %v", got)
	}
}

func TestFieldMaps(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"b": "two\nlines", "a": `q"uote`}}}
	got, err := Field(p, "metadata.annotations", nil, nil)
	if err != nil || got != "a=\"q\\\"uote\"\nb=\"two\\nlines\"" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Field(p, "spec.x['y']", nil, nil); err == nil {
		t.Error("a subscript of a field that is not a map was accepted")
	}
}
