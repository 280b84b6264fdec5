package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"keelson.dev/services/controller-manager/internal/csr"
	"keelson.dev/services/controller-manager/internal/nodeipam"
	"keelson.dev/services/controller-manager/internal/tokensecret"
	"keelson.dev/services/internal/boot"
)

type options struct {
	service *boot.Elected

	clusterCA         string
	serviceAccountKey string
	clusterCIDR       string
	nodeRanges        nodeipam.Config
	localVolumeDir    string
	nodeGrace         time.Duration
	nodeStartup       time.Duration
	terminatedPods    int

	authority *csr.Authority
	signer    *tokensecret.Signer
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ElectedFlags(fs, name)}
	fs.StringVar(&o.clusterCA, "cluster-ca", "", "directory with ca.crt and ca.key, to sign certificates with; empty signs none")
	fs.StringVar(&o.serviceAccountKey, "service-account-key", "", "private key in PEM that signs the tokens of kubernetes.io/service-account-token secrets; empty signs none")
	fs.StringVar(&o.clusterCIDR, "cluster-cidr", "10.244.0.0/16", "range of pod addresses")
	fs.IntVar(&o.nodeRanges.NodeMaskSize, "node-cidr-mask-size", 24, "size of a node's range of pod addresses")
	fs.StringVar(&o.localVolumeDir, "local-volume-dir", "/var/lib/keelson/volumes", "directory on the nodes below which the local provisioner's volumes lie")
	fs.DurationVar(&o.nodeGrace, "node-monitor-grace-period", 40*time.Second, "how long a node may be silent at the most before it counts as unreachable; a node's Lease may state less")
	fs.DurationVar(&o.nodeStartup, "node-startup-grace-period", time.Minute, "the same for a node that has not reported yet")
	fs.IntVar(&o.terminatedPods, "terminated-pod-gc-threshold", 12500, "how many finished pods are kept; 0 keeps all")
	return o
}

func (o *options) check() error {
	if err := o.service.Check(); err != nil {
		return err
	}
	var err error
	if o.nodeRanges.ClusterCIDR, err = netip.ParsePrefix(o.clusterCIDR); err != nil {
		return boot.Invalid("--cluster-cidr: %w", err)
	}
	if err := o.nodeRanges.Check(); err != nil {
		return boot.Invalid("%w", err)
	}
	switch {
	case !filepath.IsAbs(o.localVolumeDir):
		return boot.Invalid("--local-volume-dir %q: want an absolute path", o.localVolumeDir)
	case o.nodeGrace <= 0 || o.nodeStartup <= 0:
		return boot.Invalid("the grace periods of nodes must be positive")
	case o.terminatedPods < 0:
		return boot.Invalid("--terminated-pod-gc-threshold: must not be negative")
	}
	return o.readKeys()
}

// readKeys reads the keys that the flags name.
func (o *options) readKeys() error {
	if o.clusterCA != "" {
		var err error
		if o.authority, err = csr.LoadAuthority(o.clusterCA); err != nil {
			return boot.Invalid("--cluster-ca: %w", err)
		}
	}
	if o.serviceAccountKey == "" {
		return nil
	}
	data, err := os.ReadFile(o.serviceAccountKey)
	if err != nil {
		return boot.Invalid("--service-account-key: %w", err)
	}
	if o.signer, err = tokensecret.ParseKey(data); err != nil {
		return boot.Invalid("--service-account-key: %w", err)
	}
	return nil
}
