package main

import (
	"github.com/spf13/pflag"

	"keelson.dev/services/controller-manager/internal/aggregation"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/cronjob"
	"keelson.dev/services/controller-manager/internal/csr"
	"keelson.dev/services/controller-manager/internal/daemonset"
	"keelson.dev/services/controller-manager/internal/deployment"
	"keelson.dev/services/controller-manager/internal/disruption"
	"keelson.dev/services/controller-manager/internal/endpoints"
	"keelson.dev/services/controller-manager/internal/endpointslice"
	"keelson.dev/services/controller-manager/internal/fencing"
	"keelson.dev/services/controller-manager/internal/garbage"
	"keelson.dev/services/controller-manager/internal/job"
	"keelson.dev/services/controller-manager/internal/namespace"
	"keelson.dev/services/controller-manager/internal/nodeipam"
	"keelson.dev/services/controller-manager/internal/nodelifecycle"
	"keelson.dev/services/controller-manager/internal/nodettl"
	"keelson.dev/services/controller-manager/internal/podautoscaler"
	"keelson.dev/services/controller-manager/internal/podgc"
	"keelson.dev/services/controller-manager/internal/replicaset"
	"keelson.dev/services/controller-manager/internal/replication"
	"keelson.dev/services/controller-manager/internal/resourcequota"
	"keelson.dev/services/controller-manager/internal/rootca"
	"keelson.dev/services/controller-manager/internal/serviceaccount"
	"keelson.dev/services/controller-manager/internal/statefulset"
	"keelson.dev/services/controller-manager/internal/tokencleaner"
	"keelson.dev/services/controller-manager/internal/tokensecret"
	"keelson.dev/services/controller-manager/internal/volume"
	"keelson.dev/services/internal/controller"
)

// entry is a row of the catalogue.
type entry struct {
	// name is the name for --controllers: Kubernetes' name of the controller, if it has
	// one. Rows of the same name are switched together.
	name string
	// component is the source of the controller's events; empty if it records none.
	component string
	// build makes the controller. It is called once to learn which caches the controller
	// reads, and then for each term of leadership.
	build func(*cluster.Cluster) controller.Controller
}

// newCatalogue returns all controllers. It adds their flags to fs.
func newCatalogue(fs *pflag.FlagSet) *catalogue {
	var (
		c       = &catalogue{}
		ranges  = optionsOf(c, nodeipam.Flags(fs))
		nodes   = optionsOf(c, nodelifecycle.Flags(fs))
		pods    = optionsOf(c, podgc.Flags(fs))
		volumes = optionsOf(c, volume.Flags(fs))
		signing = optionsOf(c, csr.Flags(fs))
		tokens  = optionsOf(c, tokensecret.Flags(fs))
		scaling = optionsOf(c, podautoscaler.Flags(fs))
	)
	c.entries = []entry{
		{"deployment-controller", "deployment-controller", deployment.New},
		{"replicaset-controller", "replicaset-controller", replicaset.New},
		{"replicationcontroller-controller", "replication-controller", replication.New},
		{"daemonset-controller", "daemonset-controller", daemonset.New},
		{"statefulset-controller", "statefulset-controller", statefulset.New},
		{"job-controller", "job-controller", job.New},
		{"ttl-after-finished-controller", "", job.NewTTL},
		{"cronjob-controller", "cronjob-controller", cronjob.New},
		{"horizontal-pod-autoscaler-controller", "horizontal-pod-autoscaler", with(podautoscaler.New, scaling)},
		{"disruption-controller", "controllermanager", disruption.New},
		{"disruption-controller", "", disruption.NewStale},
		{"resourcequota-controller", "resourcequota-controller", resourcequota.New},
		{"endpointslice-controller", "endpoint-slice-controller", endpointslice.New},
		{"endpointslice-mirroring-controller", "endpoint-slice-mirroring-controller", endpointslice.NewMirror},
		{"endpoints-controller", "endpoint-controller", endpoints.New},
		{"namespace-controller", "", namespace.New},
		{"garbage-collector-controller", "garbage-collector-controller", garbage.New},
		{"serviceaccount-controller", "", serviceaccount.New},
		{"serviceaccount-token-controller", "", func(s *cluster.Cluster) controller.Controller { return tokensecret.New(s, tokens.Signer, c.ca) }},
		{"token-cleaner-controller", "", tokencleaner.New},
		{"root-ca-certificate-publisher-controller", "", func(s *cluster.Cluster) controller.Controller { return rootca.New(s, c.ca) }},
		{"clusterrole-aggregation-controller", "", aggregation.New},
		{"node-ipam-controller", "cidrAllocator", with(nodeipam.New, ranges)},
		{"ttl-controller", "", nodettl.New},
		{"node-lifecycle-controller", "node-controller", with(nodelifecycle.New, nodes)},
		{"taint-eviction-controller", "taint-eviction-controller", nodelifecycle.NewEviction},
		{"fencing-controller", "fencing-controller", fencing.New},
		{"pod-garbage-collector-controller", "pod-garbage-collector", with(podgc.New, pods)},
		{"persistentvolume-binder-controller", "persistentvolume-controller", with(volume.NewClaims, volumes)},
		{"persistentvolume-binder-controller", "persistentvolume-controller", volume.NewVolumes},
		{"default-storageclass-controller", "", volume.NewDefaultClass},
		{"certificatesigningrequest-signing-controller", "", with(csr.New, signing)},
	}
	fs.StringSliceVar(&c.selected, "controllers", []string{"*"}, c.usage())
	return c
}
