package pod

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestDNS(t *testing.T) {
	r := Resolver{
		ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local",
		Host: ParseResolvConf("# comment\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch corp.example.\noptions rotate timeout:1\n"),
	}
	cluster := []string{"n.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"}
	value := "3"
	for name, c := range map[string]struct {
		spec corev1.PodSpec
		want *runtimev1.DNSConfig
	}{
		"default policy":            {corev1.PodSpec{}, &runtimev1.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: cluster, Options: []string{"ndots:5"}}},
		"host network":              {corev1.PodSpec{HostNetwork: true, DNSPolicy: corev1.DNSClusterFirst}, &runtimev1.DNSConfig{Servers: []string{"192.0.2.1", "192.0.2.2"}, Searches: []string{"corp.example"}, Options: []string{"rotate", "timeout:1"}}},
		"host network, cluster DNS": {corev1.PodSpec{HostNetwork: true, DNSPolicy: corev1.DNSClusterFirstWithHostNet}, &runtimev1.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: cluster, Options: []string{"ndots:5"}}},
		"the node's":                {corev1.PodSpec{DNSPolicy: corev1.DNSDefault}, &runtimev1.DNSConfig{Servers: []string{"192.0.2.1", "192.0.2.2"}, Searches: []string{"corp.example"}, Options: []string{"rotate", "timeout:1"}}},
		"none":                      {corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}}}, &runtimev1.DNSConfig{Servers: []string{"1.1.1.1"}}},
		"with dnsConfig":            {corev1.PodSpec{DNSConfig: &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "10.96.0.10"}, Searches: []string{"x", "cluster.local"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &value}, {Name: "edns0"}}}}, &runtimev1.DNSConfig{Servers: []string{"10.96.0.10", "1.1.1.1"}, Searches: append(append([]string{}, cluster...), "x"), Options: []string{"ndots:3", "edns0"}}},
		"at most three servers":     {corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{Nameservers: []string{"1", "2", "3", "4"}}}, &runtimev1.DNSConfig{Servers: []string{"1", "2", "3"}}},
	} {
		got := r.DNS(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n"}, Spec: c.spec})
		if !reflect.DeepEqual(got.Servers, c.want.Servers) || !reflect.DeepEqual(got.Searches, c.want.Searches) || !reflect.DeepEqual(got.Options, c.want.Options) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + "-b"
	override := "given"
	for _, c := range []struct {
		pod          corev1.Pod
		host, domain string
	}{
		{corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}, "p", ""},
		{corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: long}}, strings.Repeat("a", 62), ""},
		{corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}, Spec: corev1.PodSpec{Hostname: "h", Subdomain: "s"}}, "h", "s.n.svc.d"},
		{corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}, Spec: corev1.PodSpec{HostnameOverride: &override, Subdomain: "s"}}, "given", ""},
	} {
		if host, domain := Hostname(&c.pod, "d"); host != c.host || domain != c.domain {
			t.Errorf("%s: %q %q, want %q %q", c.pod.Name, host, domain, c.host, c.domain)
		}
	}
}

func TestHosts(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{HostAliases: []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b"}}}}}
	got := Hosts(p, []string{"10.0.0.1", "fd00::1"}, "d", "ignored")
	if !strings.HasSuffix(got, "10.0.0.1\tp\nfd00::1\tp\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n") || strings.Contains(got, "ignored") {
		t.Errorf("%q", got)
	}
	p.Spec.HostNetwork = true
	if got := Hosts(p, nil, "d", "127.0.0.1 own"); got != "# Kubernetes-managed hosts file (host network).\n127.0.0.1 own\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n" {
		t.Errorf("host network: %q", got)
	}
}
