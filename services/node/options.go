package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"keelson.dev/services/internal/boot"
	"keelson.dev/services/node/internal/eviction"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/shutdown"
)

// options are the flags of the node service.
type options struct {
	service *boot.Service

	name, address, dataDir string
	containerd             string
	clusterDNS             []string
	clusterDomain          string
	cniBinDir, cniConfDir  string
	cgroupRoot             string
	tokenFile, caFile      string
	labels, capacity       map[string]string
	taints                 []string
	zone, region           string
	serviceRange, podRange string
	simulated              int
	simulatedZones         []string
	resolvConf             string
	cloudProvider          string
	heartbeat              time.Duration
	maxPods                int64
	eviction               *eviction.Flags
	podMaxPIDs             int64
	enforce                []string
	mtu                    int
	podLogs, containerLogs string
	manifests              string
	kubeletDir             string
	shutdownGrace          time.Duration
	shutdownCritical       time.Duration
	cleanup, cleanupLogs   bool
	// named says whether the node's name was given.
	named func() bool
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ServiceFlags(fs)}
	host, _ := os.Hostname()
	fs.StringVar(&o.name, "node-name", strings.ToLower(host), "name of the Node")
	fs.StringVar(&o.address, "node-ip", "", "address of this node that others reach it by")
	fs.StringVar(&o.dataDir, "data-dir", "", "directory for pods' volumes and what the node must remember")
	fs.StringVar(&o.podLogs, "pod-logs-dir", "/var/log/pods", "directory for pods' logs; nodes of one machine may share it")
	fs.StringVar(&o.containerLogs, "container-logs-dir", "/var/log/containers", "directory for a link to each container's log; nodes of one machine may share it")
	fs.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "directory of the sockets at which programs expect a kubelet: device-plugins/kubelet.sock and pod-resources/kubelet.sock; nodes of one machine must not share it")
	fs.StringVar(&o.manifests, "pod-manifest-path", "", "directory with manifests of static pods, which only root may write; none if empty")
	fs.DurationVar(&o.shutdownGrace, "shutdown-grace-period", 0, "how long pods have to end when the machine is shut down, with systemd-logind; 0 does not delay a shutdown")
	fs.DurationVar(&o.shutdownCritical, "shutdown-grace-period-critical-pods", 0, "the last part of --shutdown-grace-period, for critical pods alone")
	fs.StringVar(&o.containerd, "containerd", "unix:///run/containerd/containerd.sock", "socket of the container runtime (CRI v1)")
	fs.StringSliceVar(&o.clusterDNS, "cluster-dns", []string{"10.96.0.10"}, "addresses of the cluster's DNS")
	fs.StringVar(&o.clusterDomain, "cluster-domain", "cluster.local", "domain of the cluster")
	fs.StringVar(&o.cniBinDir, "cni-bin-dir", "/usr/lib/cni", "directory with the CNI plugins")
	fs.StringVar(&o.cniConfDir, "cni-conf-dir", "/etc/cni/net.d", "directory where the container runtime reads its CNI configuration")
	fs.StringVar(&o.cgroupRoot, "cgroup-root", "/keelson", "cgroup below which this node's pods are")
	fs.StringVar(&o.tokenFile, "bootstrap-token-file", "", "file with the token to join with, if --identity has no certificate yet")
	fs.StringVar(&o.caFile, "ca-file", "", "the cluster's CA, for joining")
	fs.StringToStringVar(&o.labels, "label", nil, "label of the Node (key=value; may be repeated)")
	fs.StringSliceVar(&o.taints, "taint", nil, "taint of the Node (key=value:Effect; may be repeated)")
	fs.StringVar(&o.zone, "zone", "", "zone of the node")
	fs.StringVar(&o.region, "region", "", "region of the node")
	fs.StringToStringVar(&o.capacity, "capacity", nil, "capacity to report instead of the machine's (cpu=2,memory=4Gi)")
	fs.Int64Var(&o.maxPods, "max-pods", 110, "how many pods the node takes")
	fs.Int64Var(&o.podMaxPIDs, "pod-max-pids", -1, "how many processes and threads a pod may have; -1 for any number")
	fs.StringSliceVar(&o.enforce, "enforce-node-allocatable", []string{"pods"}, "\"pods\" to limit the memory of all pods together to the node's capacity, \"none\" not to")
	o.eviction = eviction.AddFlags(fs)
	fs.StringVar(&o.serviceRange, "service-cluster-ip-range", "10.96.0.0/16", "range of the Services' addresses")
	fs.StringVar(&o.podRange, "cluster-cidr", "10.244.0.0/16", "range of all pods' addresses")
	fs.IntVar(&o.mtu, "mtu", 0, "MTU of pods' interfaces; 0 is the kernel's choice")
	fs.IntVar(&o.simulated, "simulated", 0, "simulate this many nodes instead of being one")
	fs.StringSliceVar(&o.simulatedZones, "simulated-zones", nil, "zones over which the nodes of --simulated are spread in turn; empty: all are in --zone")
	fs.StringVar(&o.resolvConf, "resolv-conf", "/etc/resolv.conf", "the node's own resolver configuration")
	fs.StringVar(&o.cloudProvider, "cloud-provider", "", "\"external\" if a cloud controller initializes the node")
	fs.DurationVar(&o.heartbeat, "heartbeat", 2*time.Second, "how often to renew the node's Lease, until an apiserver says otherwise")
	fs.BoolVar(&o.cleanup, "cleanup", false, "remove what a node that has stopped left in this machine's network (links, routes, rules), and exit")
	fs.BoolVar(&o.cleanupLogs, "cleanup-logs", false, "remove the logs of the pods of the node that had --data-dir, and exit")
	o.named = func() bool { return fs.Changed("node-name") }
	return o
}

// settings are the options in the types that the parts want.
type settings struct {
	address   netip.Addr
	pods      netip.Prefix
	services  netip.Prefix
	dns       netip.Addr
	capacity  corev1.ResourceList
	policy    *eviction.Policy
	taints    []corev1.Taint
	labels    map[string]string
	bootstrap string
}

// check refuses what cannot work.
func (o *options) check() (*settings, error) {
	if err := o.service.Check(); err != nil {
		return nil, err
	}
	s := &settings{labels: map[string]string{}, capacity: corev1.ResourceList{}}
	if o.simulated < 0 {
		return nil, boot.Invalid("--simulated %d: must not be negative", o.simulated)
	}
	if len(o.simulatedZones) > 0 && (o.simulated == 0 || o.zone != "") {
		return nil, boot.Invalid("--simulated-zones needs --simulated and goes without --zone")
	}
	if o.cloudProvider != "" && o.cloudProvider != "external" {
		return nil, boot.Invalid("--cloud-provider %q: want external or nothing", o.cloudProvider)
	}
	if err := o.checkNode(s); err != nil {
		return nil, err
	}
	var err error
	if s.policy, err = o.eviction.Parse(); err != nil {
		return nil, boot.Invalid("%w", err)
	}
	if len(o.enforce) != 1 || o.enforce[0] != "pods" && o.enforce[0] != "none" {
		return nil, boot.Invalid("--enforce-node-allocatable %s: want pods or none", strings.Join(o.enforce, ","))
	}
	if o.podMaxPIDs == 0 || o.podMaxPIDs < -1 {
		return nil, boot.Invalid("--pod-max-pids %d: want a positive number, or -1", o.podMaxPIDs)
	}
	for k, v := range o.labels {
		s.labels[k] = v
	}
	if o.zone != "" {
		s.labels[corev1.LabelTopologyZone] = o.zone
	}
	if o.region != "" {
		s.labels[corev1.LabelTopologyRegion] = o.region
	}
	for name, text := range o.capacity {
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, boot.Invalid("--capacity %s=%s: %w", name, text, err)
		}
		s.capacity[corev1.ResourceName(name)] = q
	}
	for _, text := range o.taints {
		t, err := parseTaint(text)
		if err != nil {
			return nil, boot.Invalid("--taint %q: %w", text, err)
		}
		s.taints = append(s.taints, t)
	}
	if o.tokenFile != "" {
		b, err := os.ReadFile(o.tokenFile)
		if err != nil && !os.IsNotExist(err) {
			return nil, boot.Invalid("--bootstrap-token-file: %w", err)
		}
		s.bootstrap = strings.TrimSpace(string(b))
	}
	return s, boot.WritableDir("data-dir", o.dataDir, 0o711)
}

// checkNode checks what a node that is not simulated needs.
func (o *options) checkNode(s *settings) error {
	if o.simulated > 0 {
		return nil
	}
	if o.name == "" {
		return boot.Invalid("--node-name is required")
	}
	var err error
	if s.address, err = netip.ParseAddr(o.address); err != nil {
		return boot.Invalid("--node-ip %q: want an address", o.address)
	}
	if s.pods, err = netip.ParsePrefix(o.podRange); err != nil {
		return boot.Invalid("--cluster-cidr: %w", err)
	}
	if s.services, err = netip.ParsePrefix(o.serviceRange); err != nil {
		return boot.Invalid("--service-cluster-ip-range: %w", err)
	}
	if len(o.clusterDNS) > 0 {
		if s.dns, err = netip.ParseAddr(o.clusterDNS[0]); err != nil {
			return boot.Invalid("--cluster-dns %q: want an address", o.clusterDNS[0])
		}
	}
	if err := (shutdown.Config{Grace: o.shutdownGrace, Critical: o.shutdownCritical}).Check(); err != nil {
		return boot.Invalid("--shutdown-grace-period %s, --shutdown-grace-period-critical-pods %s: %w", o.shutdownGrace, o.shutdownCritical, err)
	}
	if o.manifests != "" && !filepath.IsAbs(o.manifests) {
		return boot.Invalid("--pod-manifest-path %q: want an absolute path", o.manifests)
	}
	for flag, dir := range map[string]string{"kubelet-dir": o.kubeletDir, "pod-logs-dir": o.podLogs, "container-logs-dir": o.containerLogs} {
		if !filepath.IsAbs(dir) {
			return boot.Invalid("--%s %q: want an absolute path", flag, dir)
		}
	}
	if !strings.HasPrefix(o.containerd, "unix:///") {
		return boot.Invalid("--containerd %q: want unix:///path", o.containerd)
	}
	return nil
}

func parseTaint(text string) (corev1.Taint, error) {
	var t corev1.Taint
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return t, fmt.Errorf("want key=value:Effect")
	}
	t.Key, t.Value, _ = strings.Cut(text[:i], "=")
	t.Effect = corev1.TaintEffect(text[i+1:])
	switch t.Effect {
	case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
	default:
		return t, fmt.Errorf("effect %q is none", t.Effect)
	}
	if t.Key == "" {
		return t, fmt.Errorf("key is empty")
	}
	return t, nil
}

// resolver is what pods are told about names.
func (o *options) resolver() (pod.Resolver, error) {
	r := pod.Resolver{ClusterDNS: o.clusterDNS, ClusterDomain: o.clusterDomain}
	b, err := os.ReadFile(o.resolvConf)
	if err != nil && !os.IsNotExist(err) {
		return r, boot.Invalid("--resolv-conf: %w", err)
	}
	r.Host = pod.ParseResolvConf(string(b))
	return r, nil
}
