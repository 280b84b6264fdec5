package pod

import (
	"bufio"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resolver holds the node's DNS settings.
type Resolver struct {
	ClusterDNS    []string
	ClusterDomain string
	// Host is the node's own resolv.conf.
	Host *runtimev1.DNSConfig
}

// glibc's limits. Further entries are dropped.
const (
	maxNameservers = 3
	maxSearches    = 32
)

// DNS returns the content of a pod's resolv.conf.
func (r Resolver) DNS(p *corev1.Pod) *runtimev1.DNSConfig {
	out := &runtimev1.DNSConfig{}
	host := r.Host
	if host == nil {
		host = &runtimev1.DNSConfig{}
	}
	policy := p.Spec.DNSPolicy
	if policy == "" {
		policy = corev1.DNSClusterFirst
	}
	if policy == corev1.DNSClusterFirst && p.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	if policy == corev1.DNSClusterFirstWithHostNet {
		policy = corev1.DNSClusterFirst
	}
	if policy == corev1.DNSClusterFirst && len(r.ClusterDNS) == 0 {
		policy = corev1.DNSDefault
	}
	switch policy {
	case corev1.DNSDefault:
		out.Servers, out.Searches, out.Options = slices.Clone(host.Servers), slices.Clone(host.Searches), slices.Clone(host.Options)
	case corev1.DNSClusterFirst:
		out.Servers = slices.Clone(r.ClusterDNS)
		if r.ClusterDomain != "" {
			out.Searches = []string{p.Namespace + ".svc." + r.ClusterDomain, "svc." + r.ClusterDomain, r.ClusterDomain}
		}
		out.Searches = append(out.Searches, host.Searches...)
		out.Options = []string{"ndots:5"}
	}
	if c := p.Spec.DNSConfig; c != nil {
		out.Servers = append(out.Servers, c.Nameservers...)
		out.Searches = append(out.Searches, c.Searches...)
		for _, o := range c.Options {
			text := o.Name
			if o.Value != nil && *o.Value != "" {
				text += ":" + *o.Value
			}
			out.Options = slices.DeleteFunc(out.Options, func(s string) bool {
				name, _, _ := strings.Cut(s, ":")
				return name == o.Name
			})
			out.Options = append(out.Options, text)
		}
	}
	out.Servers = unique(out.Servers, maxNameservers)
	out.Searches = unique(out.Searches, maxSearches)
	return out
}

func unique(in []string, most int) []string {
	var out []string
	for _, s := range in {
		if len(out) < most && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// ParseResolvConf parses a resolv.conf.
func ParseResolvConf(text string) *runtimev1.DNSConfig {
	out := &runtimev1.DNSConfig{}
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			out.Servers = append(out.Servers, fields[1])
		case "search", "domain":
			out.Searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				out.Searches = append(out.Searches, s)
			}
		case "options":
			out.Options = append(out.Options, fields[1:]...)
		}
	}
	return out
}

// Hostname returns a pod's host name and, if it has a subdomain, its domain.
func Hostname(p *corev1.Pod, clusterDomain string) (host, domain string) {
	if p.Spec.HostnameOverride != nil && *p.Spec.HostnameOverride != "" {
		return *p.Spec.HostnameOverride, ""
	}
	host = p.Spec.Hostname
	if host == "" {
		host = p.Name
		if len(host) > 63 {
			host = strings.TrimRight(host[:63], "-.")
		}
	}
	if p.Spec.Subdomain != "" {
		domain = p.Spec.Subdomain + "." + p.Namespace + ".svc." + clusterDomain
	}
	return host, domain
}

// Hosts returns the content of the /etc/hosts that the node manages for a pod. own is the
// node's own file, for pods in the host network.
func Hosts(p *corev1.Pod, ips []string, clusterDomain string, own string) string {
	var b strings.Builder
	if p.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n" + own)
		if own != "" && !strings.HasSuffix(own, "\n") {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		host, domain := Hostname(p, clusterDomain)
		for _, ip := range ips {
			if domain != "" {
				b.WriteString(ip + "\t" + host + "." + domain + "\t" + host + "\n")
			} else {
				b.WriteString(ip + "\t" + host + "\n")
			}
		}
	}
	if len(p.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range p.Spec.HostAliases {
			b.WriteString(a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
		}
	}
	return b.String()
}
