package main

import (
	"keelson.dev/services/controller-manager/internal/aggregation"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/cronjob"
	"keelson.dev/services/controller-manager/internal/csr"
	"keelson.dev/services/controller-manager/internal/daemonset"
	"keelson.dev/services/controller-manager/internal/deployment"
	"keelson.dev/services/controller-manager/internal/disruption"
	"keelson.dev/services/controller-manager/internal/endpoints"
	"keelson.dev/services/controller-manager/internal/endpointslice"
	"keelson.dev/services/controller-manager/internal/garbage"
	"keelson.dev/services/controller-manager/internal/job"
	"keelson.dev/services/controller-manager/internal/namespace"
	"keelson.dev/services/controller-manager/internal/nodeipam"
	"keelson.dev/services/controller-manager/internal/nodelifecycle"
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
	"keelson.dev/services/internal/identity"
)

// catalogue lists the controllers, new for each term of leadership.
func (o *options) catalogue(s *cluster.Cluster, metadata []*garbage.Metadata, id *identity.Source) []controller.Controller {
	ca := func() []byte { return id.Current().RootsPEM }
	return []controller.Controller{
		deployment.New(s.As("deployment-controller")),
		replicaset.New(s.As("replicaset-controller")),
		replication.New(s.As("replication-controller")),
		daemonset.New(s.As("daemonset-controller")),
		statefulset.New(s.As("statefulset-controller")),
		job.New(s.As("job-controller")),
		cronjob.New(s.As("cronjob-controller")),
		disruption.New(s.As("controllermanager")),
		disruption.NewStale(s),
		resourcequota.New(s.As("resourcequota-controller"), metadata),
		endpointslice.New(s.As("endpoint-slice-controller")),
		endpointslice.NewMirror(s.As("endpoint-slice-mirroring-controller")),
		endpoints.New(s.As("endpoint-controller")),
		namespace.New(s),
		garbage.New(s.As("garbage-collector-controller"), metadata),
		serviceaccount.New(s),
		tokensecret.New(s, o.signer, ca),
		tokencleaner.New(s),
		rootca.New(s, ca),
		aggregation.New(s),
		nodeipam.New(s.As("cidrAllocator"), o.nodeRanges),
		nodelifecycle.New(s.As("node-controller"), nodelifecycle.Config{Grace: o.nodeGrace, StartGrace: o.nodeStartup}),
		nodelifecycle.NewEviction(s.As("taint-eviction-controller")),
		podgc.New(s.As("pod-garbage-collector"), o.terminatedPods),
		volume.NewClaims(s.As("persistentvolume-controller"), o.localVolumeDir),
		volume.NewVolumes(s.As("persistentvolume-controller")),
		volume.NewDefaultClass(s),
		csr.New(s, o.authority),
	}
}
