package main

import (
	"github.com/spf13/pflag"

	"keelson.dev/services/internal/boot"
)

// options are the flags.
type options struct {
	service *boot.Service

	dataDir                string
	memory                 bool
	listenGRPC, listenREST string
	advertise, name        string
	serviceAccountKey      string
	serviceAccountIssuer   string
	serviceRange           string
	nodePortRange          string
	notReadySeconds        int64
	unreachableSeconds     int64
	etcdListenClient       string
	etcdServers            []string
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ServiceFlags(fs)}
	fs.StringVar(&o.dataDir, "data-dir", "", "directory of the embedded etcd")
	fs.BoolVar(&o.memory, "memory", false, "keep all state in memory only, for tests: it is gone when the process ends")
	fs.StringVar(&o.listenGRPC, "listen-grpc", ":6444", "host:port of the gRPC API")
	fs.StringVar(&o.listenREST, "listen-https", ":6443", "host:port of the Kubernetes HTTP API")
	fs.StringVar(&o.advertise, "advertise-address", "", "address under which other machines reach this one; empty finds it out")
	fs.StringVar(&o.name, "name", "apiserver-0", "name of this apiserver and of its etcd member")
	fs.StringVar(&o.serviceAccountKey, "service-account-key", "", "private key (PEM) that signs and verifies service account tokens")
	fs.StringVar(&o.serviceAccountIssuer, "service-account-issuer", "https://kubernetes.default.svc.cluster.local", "issuer of service account tokens")
	fs.StringVar(&o.serviceRange, "service-cluster-ip-range", "10.96.0.0/16", "range of Services' cluster IPs")
	fs.StringVar(&o.nodePortRange, "service-node-port-range", "30000-32767", "range of Services' node ports")
	fs.Int64Var(&o.notReadySeconds, "default-not-ready-toleration-seconds", 300, "how long a pod that says nothing else tolerates a node that is not ready")
	fs.Int64Var(&o.unreachableSeconds, "default-unreachable-toleration-seconds", 300, "how long a pod that says nothing else tolerates a node that is unreachable")
	fs.StringVar(&o.etcdListenClient, "etcd-listen-client", "", "host:port where etcd's own clients may connect, by client certificate; empty is nowhere")
	fs.StringSliceVar(&o.etcdServers, "etcd-servers", nil, "URLs of an etcd to use instead of the embedded one")
	return o
}

func (o *options) check() error {
	if o.service.Identity == "" {
		return boot.Invalid("--identity is required")
	}
	if o.dataDir == "" && !o.memory && len(o.etcdServers) == 0 {
		return boot.Invalid("--data-dir is required")
	}
	if o.dataDir != "" {
		return boot.WritableDir("data-dir", o.dataDir, 0o700)
	}
	return nil
}
